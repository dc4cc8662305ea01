"""Labelled pictures in memory of a chosen colour, small networks, and anchors of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue import checkpoint
from segue.data.dataset import Dataset
from segue.labels import U8, LabelSpace, load_space
from segue.models.anchor import Anchor, make_anchor
from segue.models.base import SegModel
from segue.models.build import build_model

SPACE = load_space("street7")
CLASSES = len(SPACE)
BASE: dict[str, Any] = {"name": "bisenet", "width": 0.125}


class Colours(Dataset):
    """Noise around a colour (``shift`` in 0..255 on the first channel) whose label is by brightness, class 6 missing.

    ``scale``: how much finer labels are than images.
    """

    def __init__(self, number: int, shift: float = 0, *, seed: int = 0, scale: int = 1, space: LabelSpace = SPACE):
        super().__init__("colours", space, [str(i) for i in range(number)], None)
        self.labelled = True
        self.shift, self.seed, self.scale = shift, seed, scale

    def read_image(self, index: int) -> U8:
        rng = np.random.default_rng((self.seed, index))
        coarse = rng.uniform(60, 120, (4, 6, 3)).repeat(16, 0).repeat(16, 1)
        coarse[..., 0] += self.shift
        return (coarse + rng.normal(0, 5, coarse.shape)).clip(0, 255).astype(np.uint8)

    def read_scored(self, index: int) -> tuple[U8, U8]:
        image = self.read_image(index)
        label = (image[..., 1].astype(int) - 60) // 10
        label = np.where(label < 0, 255, label.clip(0, 5)).astype(np.uint8)
        return image, label.repeat(self.scale, 0).repeat(self.scale, 1)


def images(dataset: Dataset, first: int = 0, number: int = 4) -> Tensor:
    """(N,3,H,W) float 0..1."""
    pictures = np.stack([dataset.read_image(i) for i in range(first, first + number)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255


def network(seed: int = 0, **settings: Any) -> SegModel:
    """A small network whose norm layers look trained."""
    torch.manual_seed(seed)
    model = build_model({**BASE, **settings}, CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


@cache
def anchor() -> Anchor:
    """Of ``network()`` on 16 images without a shift."""
    return make_anchor(network(), Colours(16), SPACE)


def stored(folder: Path, model: SegModel | None = None, *, anchored: bool = True) -> Path:
    """``network()`` in a folder, with its anchor."""
    folder.mkdir(parents=True)
    model = model or network()
    if anchored:
        model.anchor = anchor()
    checkpoint.save_model(folder, model, SPACE, {})
    return folder


def bits(tensor: Tensor) -> Tensor:
    """Of float32 values: -0 and 0 differ, NaN equals itself."""
    return tensor.detach().contiguous().view(torch.int32)
