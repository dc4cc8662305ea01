"""How far a teacher's labels are trusted: by confidence, and by where in the picture they are.

Confidence: the share of pixels with probability >= ``threshold`` weighs a whole image (DACS, Tranheden et al., WACV
2021, section 3.2). Margin: DAFormer drops the rows of the ego car and of the image border by row numbers of the crop,
HRDA by a mask on the file; both are the same shares of the picture, and so is ``margin`` here, whatever the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch, Meta
from segue.data.places import places
from segue.ops.mixing import confidence_weight
from segue.settings import Settings


class Margin(Settings):
    """Parts of the whole picture, as shares of its height and width, whose pseudo-labels get weight 0."""

    top: float = Field(0.0, ge=0, le=1)
    """DAFormer 15/512 = 0.0293, HRDA 30/1024."""
    bottom: float = Field(0.0, ge=0, le=1)
    """DAFormer 120/512 = 0.2344, HRDA 240/1024; 0.25 in VFM-UDA."""
    left: float = Field(0.0, ge=0, le=1)
    """HRDA 30/2048 = 0.0146."""
    right: float = Field(0.0, ge=0, le=1)
    """HRDA 30/2048."""

    def keeps(self, metas: Sequence[Meta], size: tuple[int, int]) -> Tensor | None:
        """(N,H,W) bool on the CPU: samples' pixels inside the margin; None when there is none."""
        if not (self.top or self.bottom or self.left or self.right):
            return None
        inside = []
        for meta in metas:
            y, x = places(meta, size)
            inside.append((y >= self.top) & (y < 1 - self.bottom) & (x >= self.left) & (x < 1 - self.right))
        return torch.stack([mask.expand(size) for mask in inside])


class TrustConfig(Settings):
    """Settings of :func:`trusted`; defaults are DACS's where it names one."""

    threshold: float = Field(0.968, ge=0, le=1)
    """A pixel is confident when the teacher's largest probability reaches this."""
    confidence: Literal["image", "batch", "none"] = "image"
    """Weight of a pseudo-label: the share of confident pixels in its image, or in the whole (micro-)batch as published,
    or 1."""
    margin: Margin = Margin()
    """Borders of the picture without pseudo-labels."""


def trusted(target: Batch, probability: Tensor, config: TrustConfig) -> tuple[Batch, dict[str, Tensor]]:
    """The target batch with the teacher's labels and their weights, and what the report shows of them.

    ``probability`` (N,C,H,W): the teacher's.
    """
    sure, label = probability.max(1)
    weight = torch.ones_like(sure)
    if config.confidence != "none":
        weight = confidence_weight(sure, config.threshold, target.pixel, per=config.confidence).expand_as(sure)
    keeps = config.margin.keeps(target.meta, (sure.shape[-2], sure.shape[-1]))
    if keeps is not None:
        weight = weight * keeps.to(weight)
    shown = label[target.pixel]
    counts = torch.bincount(shown, minlength=probability.shape[1]).float()
    logs = {
        "share_kept": (sure >= config.threshold)[target.pixel].float().mean(),
        "pseudo_histogram": counts / counts.sum().clamp(min=1),
    }
    return replace(target, label=label, weight=weight), logs
