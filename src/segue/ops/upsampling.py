"""Bilinear upsampling U one tile at a time, and its adjoint, so that a map of many channels never exists in full.

U is linear and separable, U x = R x C^T with R (H,h) and C (W,w). A tile of the result needs a few rows and columns of
x; the adjoint U^T adds a tile's gradient to just those. One knob: how many values a tile may have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
        self.rows = _Axis(like.shape[-2], size[0], align_corners, like)
        self.columns = _Axis(like.shape[-1], size[1], align_corners, like)

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
        (rows, row_weights), (columns, column_weights) = self.rows.taps(), self.columns.taps()
        cells = rows[:, None, :, None] * self.columns.weights.shape[1] + columns[None, :, None, :]
        return cells.flatten(0, 1), (row_weights[:, None, :, None] * column_weights[None, :, None, :]).flatten(0, 1)


class _Axis:
    def __init__(self, old: int, new: int, align_corners: bool, like: Tensor) -> None:
        eye = torch.eye(old, dtype=like.dtype).view(1, 1, old, old)
        weights = bilinear(eye, (new, old), align_corners)[0, 0]
        used = weights != 0
        self.first = used.int().argmax(1).tolist()  # of every new position, on the host: no wait for the device
        self.last = (old - 1 - used.flip(1).int().argmax(1)).tolist()
        self.weights = weights.to(like.device)

    def block(self, new: slice) -> tuple[Tensor, slice]:
        old = slice(self.first[new.start], self.last[new.stop - 1] + 1)
        return self.weights[new, old], old

    def taps(self) -> tuple[Tensor, Tensor]:
        first = torch.tensor(self.first, device=self.weights.device).unsqueeze(0)
        weight = self.weights.t().gather(0, first)
        return torch.cat([first, (first + 1).clamp(max=self.weights.shape[1] - 1)]), torch.cat([weight, 1 - weight])
