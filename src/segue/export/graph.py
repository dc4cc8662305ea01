"""What an exported graph computes: picture in, answer at the picture's size out, for any size.

``SegModel.forward`` decides in Python whether it must pad; a graph cannot. Here the padded side is written as
``multiple * k``, which is right with and without a margin and from which an exporter can derive every inner shape.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.base import SegModel

Takes = Literal["float", "uint8"]
"""``float``: RGB (N,3,H,W) 0..1. ``uint8``: RGB (N,H,W,3) 0..255, as cameras and image files give it."""
Gives = Literal["logits", "ids", "both"]
"""``logits``: (N,C,H,W) float32 of the classes. ``ids``: (N,H,W) uint8 train ids. ``both``: the two, in this order."""


class Deployed(nn.Module):
    """A copy of a network in eval mode with all that belongs before and after it: normalise, pad, resize, crop.

    Outputs beyond the label space are folded away (``Output.to_classes``).
    """

    def __init__(self, model: SegModel, takes: Takes = "float", gives: Gives = "logits") -> None:
        super().__init__()
        self.model = model.deployed()
        self.takes, self.gives = takes, gives
        self.eval()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See ``Takes`` and ``Gives``; sides of at least 32 pixels."""
        model = self.model
        if self.takes == "uint8":
            image = image.permute(0, 3, 1, 2).float() / 255
        height, width = image.shape[-2:]
        full_h, full_w = (model.multiple * ((side + model.multiple - 1) // model.multiple) for side in (height, width))
        x = F.pad((image - model.mean) / model.std, (0, full_w - width, 0, full_h - height))
        output = replace(
            model.decode(x),
            size=(height, width),
            padded=(full_h, full_w),
            align_corners=model.align_corners,
            num_classes=model.num_classes,
        )
        logits = output.upsample(output.to_classes())
        if self.gives == "logits":
            return logits
        ids = logits.argmax(1).to(torch.uint8)
        return ids if self.gives == "ids" else (logits, ids)
