"""Masks of hidden blocks (Hoyer et al., "MIC", CVPR 2023, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def block_mask(generators: Sequence[torch.Generator], size: tuple[int, int], block_px: int, ratio: float) -> Tensor:
    """(N,H,W) bool on the CPU, false where a block is hidden; one generator an image.

    A grid of round(H/b) x round(W/b) cells, at least one, each kept when U(0,1) > ``ratio``, is enlarged to the image
    by nearest neighbours: where b does not divide the size, cells are stretched, as published.
    """
    grid = [max(1, round(side / block_px)) for side in size]
    kept = torch.stack([torch.rand(grid, generator=g) > ratio for g in generators])
    return F.interpolate(kept.unsqueeze(1).float(), size, mode="nearest").squeeze(1) > 0
