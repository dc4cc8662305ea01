"""Bilinear upsampling U one tile at a time, and its adjoint, so that a map of many channels never exists in full.

U is linear and separable, U x = R x C^T with R (H,h) and C (W,w). A tile of the result needs a few rows and columns of
x; the adjoint U^T adds a tile's gradient to just those. One knob: how many values a tile may have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from segue.ops.resize import bilinear

CACHED_VALUES = 2**18
"""Values of a tile on CPU: a handful of such tensors stay in a core's cache."""
DEVICE_VALUES = 2**23
"""Values of a tile elsewhere: large enough to keep the device busy, 32 MiB in float32."""


class Tile(NamedTuple):
    """Where a tile lies in the upsampled map: its rows and columns."""

    rows: slice
    columns: slice


def tiles(size: tuple[int, int], channels: int, device: torch.device) -> Iterator[Tile]:
    """Nearly square tiles that cover ``size`` (H,W) once, each of a bounded number of values in ``channels`` maps."""
    positions = max(1, (CACHED_VALUES if device.type == "cpu" else DEVICE_VALUES) // channels)
    height = min(size[0], math.isqrt(positions))
    width = min(size[1], positions // height)
    for top in range(0, size[0], height):
        for left in range(0, size[1], width):
            yield Tile(slice(top, min(top + height, size[0])), slice(left, min(left + width, size[1])))


class Upsampling:
    """From the grid of ``like`` (…,h,w) to ``size`` (H,W), in its dtype and on its device."""

    def __init__(self, like: Tensor, size: tuple[int, int], align_corners: bool) -> None:
        self.rows = _axis(like.shape[-2], size[0], align_corners, like.dtype, like.device)
        self.columns = _axis(like.shape[-1], size[1], align_corners, like.dtype, like.device)

    def tile(self, x: Tensor, at: Tile) -> Tensor:
        """The tile ``at`` of U x: (K,h,w) to (K,rows,columns)."""
        (left, from_rows), (right, from_columns) = self.rows.block(at.rows), self.columns.block(at.columns)
        return left @ (x[:, from_rows, from_columns] @ right.t())

    def add_adjoint(self, total: Tensor, tile: Tensor, at: Tile) -> None:
        """Add U^T of a map that is ``tile`` (K,rows,columns) at ``at`` and 0 elsewhere to ``total`` (K,h,w)."""
        (left, from_rows), (right, from_columns) = self.rows.block(at.rows), self.columns.block(at.columns)
        total[:, from_rows, from_columns] += left.t() @ (tile @ right)

    def footprint(self) -> tuple[Tensor, Tensor]:
        """The cells of the grid that make each pixel, flat indices (4,H,W), and their weights (4,H,W)."""
        rows, columns = self.rows.cells * self.columns.weights.shape[1], self.columns.cells
        cells = rows[:, None, :, None] + columns[None, :, None, :]
        weights = self.rows.taps[:, None, :, None] * self.columns.taps[None, :, None, :]
        return cells.flatten(0, 1), weights.flatten(0, 1)


class _Axis:
    """``weights`` (new,old), of which a row has two at most: ``taps`` (2,new) at ``cells`` (2,new)."""

    def __init__(self, weights: Tensor, device: torch.device) -> None:
        used = weights != 0
        first, last = used.int().argmax(1), weights.shape[1] - 1 - used.flip(1).int().argmax(1)
        self.first, self.last = first.tolist(), last.tolist()  # on the host: no wait for the device
        tap = weights.gather(1, first.unsqueeze(1)).t()
        self.weights = weights.to(device)
        self.cells = torch.stack([first, (first + 1).clamp(max=weights.shape[1] - 1)]).to(device)
        self.taps = torch.cat([tap, 1 - tap]).to(device)

    def block(self, new: slice) -> tuple[Tensor, slice]:
        old = slice(self.first[new.start], self.last[new.stop - 1] + 1)
        return self.weights[new, old], old


@lru_cache(maxsize=32)
def _axis(old: int, new: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> _Axis:
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor could not be saved for a backward
        eye = torch.eye(old, dtype=dtype).view(1, 1, old, old)
        return _Axis(bilinear(eye, (new, old), align_corners)[0, 0], device)
