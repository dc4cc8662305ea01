"""What a loader hands to the engine and the engine to a method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Meta:
    """Where a sample comes from.

    ``uid`` counts the samples of a stream since the start of the stage (the key of all its random draws), ``id`` names
    the image inside its data set, ``file_size`` is (height, width) of the image file in pixels, ``geometry`` the
    transform that was applied, enough to map results back to the file: the 3x3 matrix ``warp``, where
    there is one, takes a pixel (x, y, 1) of the sample to its place before the augmentation block, and the window's
    corner, size and flip lead on to the file.
    """

    uid: int
    id: str
    domain: str
    file_size: tuple[int, int]
    geometry: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """N images with what is known of them.

    ``image`` (N,3,H,W): uint8 until the engine has moved it to the device, then float 0..1.
    ``label`` (N,H,W) int64: a train id, or 255 = not labelled here.
    ``pixel`` (N,H,W) bool: false where there is no picture (padding); such pixels enter no loss at all.
    ``weight`` (N,H,W) float or None: trust in the label; None is 1 everywhere.
    ``label_count`` scalar float: labelled pixels of the global batch divided by the number of micro-batches (over all
    devices). A sum over pixels divided by it, averaged over micro-batches and devices, is the mean over the global
    batch, however that batch is split.
    ``counts`` (256,) float: the same of the picture's pixels that have each label, 255 among them. None in a batch that
    no loader made, see :meth:`tally`.
    """

    image: Tensor
    label: Tensor
    pixel: Tensor
    weight: Tensor | None
    label_count: Tensor
    meta: tuple[Meta, ...]
    counts: Tensor | None = None

    def tally(self) -> Tensor:
        """``counts``; those of this batch alone, as if it were the whole one, where it has none."""
        if self.counts is not None:
            return self.counts
        return torch.bincount(self.label[self.pixel].long(), minlength=256).float()

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, image as float 0..1 (uint8 travels, a quarter of the bytes)."""
        image = self.image.to(device, non_blocking=True)
        return replace(
            self,
            image=image.float().div_(255) if image.dtype == torch.uint8 else image,
            label=self.label.to(device, torch.int64, non_blocking=True),
            pixel=self.pixel.to(device, non_blocking=True),
            weight=None if self.weight is None else self.weight.to(device, non_blocking=True),
            label_count=self.label_count.to(device, non_blocking=True),
            counts=None if self.counts is None else self.counts.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """Called by torch's loader when it pins."""
        return replace(
            self,
            image=self.image.pin_memory(),
            label=self.label.pin_memory(),
            pixel=self.pixel.pin_memory(),
            weight=None if self.weight is None else self.weight.pin_memory(),
        )
