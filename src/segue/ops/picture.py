"""Averages over the picture of an image, without what was padded on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def picture_mean(values: Tensor, pixel: Tensor) -> Tensor:
    """Mean over the picture of each image, then over images: values (N,h,w), ``pixel`` (N,H,W) to a scalar.

    ``pixel`` is true, or 1, where there is picture. A cell of a coarser grid counts by the share of it that is picture,
    so nothing depends on how much padding an image has, nor on how a batch is split. No picture at all gives 0.
    """
    share = pixel.to(values)
    if share.shape != values.shape:
        share = F.adaptive_avg_pool2d(share.unsqueeze(1), (values.shape[-2], values.shape[-1])).squeeze(1)
    return ((values * share).sum((1, 2)) / at_least_one(share.sum((1, 2)))).mean()


def at_least_one(count: Tensor) -> Tensor:
    """A denominator that is never 0: 1 where the count is 0, because the sum above it is 0 too."""
    return torch.where(count > 0, count, torch.ones_like(count))
