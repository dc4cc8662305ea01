"""ClassMix masks, mixing, and how far a teacher's labels are trusted.

Olsson et al., "ClassMix", WACV 2021, and Tranheden et al., "DACS", WACV 2021: half of the classes of a labelled image
are pasted onto an unlabelled one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segue.labels import IGNORE

CODES = 256


def class_mask(
    label: Tensor, generators: Sequence[torch.Generator], pixel: Tensor | None = None, published: bool = False
) -> Tensor:
    """Pixels of ceil(n/2) of the n classes of each image, (N,H,W) int64 in 0..255 to (N,H,W) bool.

    ``generators``: one (CPU) an image. 255 is never chosen, nor a pixel outside the picture (``pixel`` false).
    ``published`` is the form of DACS and DAFormer: n counts the classes of the whole batch, 255 (unlabelled) is one of
    them, and an image's choice may fall on classes it does not have. One look-up a pixel, and no wait for the device.
    """
    if len(generators) != len(label):
        raise ValueError(f"{len(label)} images need as many generators, got {len(generators)}")
    if pixel is not None:
        label = label.masked_fill(~pixel, IGNORE)
    flat = label.flatten(1)
    present = torch.zeros(len(label), CODES, dtype=torch.bool, device=label.device).scatter_(1, flat, True)
    if published:
        present = present.any(0, keepdim=True).expand_as(present)
    else:
        present[:, IGNORE] = False
    scores = torch.stack([torch.rand(CODES, generator=g) for g in generators]).to(label.device)
    order = scores.masked_fill(~present, -1).argsort(1, descending=True)  # present classes first, in random order
    half = (present.sum(1, keepdim=True) + 1) // 2
    first = torch.arange(CODES, device=label.device) < half
    chosen = torch.zeros_like(present).scatter_(1, order, first)
    mask = chosen.gather(1, flat).view_as(label)
    return mask if pixel is None else mask & pixel


def mix(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """``a`` where ``mask`` (N,H,W) is true, ``b`` elsewhere; images (N,C,H,W) or maps (N,H,W), of equal shape."""
    if a.shape != b.shape:
        raise ValueError(f"a is {tuple(a.shape)}, b is {tuple(b.shape)}: they must be equal")
    return torch.where(mask.unsqueeze(1) if a.ndim == 4 else mask, a, b)


def confidence_weight(
    prob_max: Tensor, threshold: float = 0.968, pixel: Tensor | None = None, per: Literal["image", "batch"] = "image"
) -> Tensor:
    """Share of the picture's pixels with probability >= threshold, (N,H,W) to (N,1,1): multiplies a weight map.

    DACS, section 3.2; threshold as published. ``per="batch"`` is the published form: one number for all images of the
    micro-batch. 0 where there is no picture.
    """
    count = torch.ones_like(prob_max) if pixel is None else pixel.to(prob_max.dtype)
    sure = ((prob_max >= threshold) * count).sum((1, 2), keepdim=True)
    count = count.sum((1, 2), keepdim=True)
    if per == "batch":
        sure, count = sure.sum(0, keepdim=True).expand_as(sure), count.sum(0, keepdim=True).expand_as(count)
    return sure / count.clamp(min=1)
