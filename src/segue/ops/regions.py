"""Statistics of regions (superpixels) from maps on the network's grid, without a map of many channels in full size.

Bilinear upsampling U is linear, so the mean of U z over the pixels of a region r is (U^T 1_r)^T z / |r|: one sparse
matrix, a row for each region and a column for each cell of the grid, times z. D2ADA (Wu et al., ECCV 2022) upsamples
256 channels to 1024x2048 and scatters them instead. The matrix depends on the regions and the sizes alone and can be
kept (:meth:`Pooling.save`). What is not linear in z (probabilities, entropy, predicted class) needs its few channels
in full size: :func:`pixel_sums`, :func:`class_counts`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from segue.errors import UserError
from segue.files import replacing
from segue.ops.picture import at_least_one
from segue.ops.upsampling import Upsampling

_ROWS_VALUES = 2**20  # taps of a strip while a matrix is built, about 16 MiB for each of its lists
_PRODUCT_VALUES = 2**21  # of the map in one product: it is copied with its channels last, 8 MiB in float32


class Pooling:
    """Means of maps (D,h,w) over the R regions of one image, for a fixed grid (h,w); see :func:`pooling`.

    ``matrix`` (R,h*w) is sparse (CSR): a cell's share of each region's mean. ``area_px`` (R,) int64.
    """

    def __init__(self, matrix: Tensor, area_px: Tensor, grid: tuple[int, int]) -> None:
        self.matrix = matrix
        self.area_px = area_px
        self.grid = grid

    def means(self, maps: Tensor) -> Tensor:
        """(D,h,w) to (R,D) in float32, or the matrix's own precision if that is float64; 0 for an empty region.

        ``ValueError`` for a map on another grid.
        """
        if tuple(maps.shape[1:]) != self.grid:
            raise ValueError(f"a map (D,h,w) on the grid {self.grid} is asked for, not {tuple(maps.shape)}")
        out = maps.new_empty(len(self.area_px), len(maps), dtype=self.matrix.dtype)
        with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
            start = 0
            for some in torch.split(maps.flatten(1), max(1, _PRODUCT_VALUES // self.matrix.shape[1])):
                out[:, start : start + len(some)] = self.matrix @ some.t().to(self.matrix.dtype).contiguous()
                start += len(some)
        return out

    def sums(self, maps: Tensor) -> Tensor:
        """Sums over the pixels of each region, (D,h,w) to (R,D)."""
        return self.means(maps) * self.area_px.unsqueeze(1)

    def to(self, device: torch.device) -> Pooling:
        """The same on another device."""
        return Pooling(self.matrix.to(device), self.area_px.to(device), self.grid)

    def save(self, path: Path) -> None:
        """Keep it in a file, about 8 bytes a non-zero; written whole or not at all."""
        m = self.matrix.cpu()
        parts = (m.crow_indices(), m.col_indices(), m.values(), self.area_px.cpu(), torch.tensor(self.grid))
        with replacing(path) as temporary:
            torch.save(dict(zip(_PARTS, parts, strict=True)), temporary)

    @classmethod
    def load(cls, path: Path) -> Pooling:
        """What :meth:`save` kept, on the CPU; ``UserError`` for a file that is damaged or something else."""
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            rows, columns, values, area_px, grid = (held[name] for name in _PARTS)
            height, width = grid.tolist()
            matrix = _csr(rows, columns, values, (len(area_px), height * width))
        except FileNotFoundError:
            raise
        except Exception as error:  # torch names no errors of its own for damaged files
            raise UserError(f"{path} is damaged or no pooling matrix: delete it, and it is built again") from error
        return cls(matrix, area_px, (height, width))


_PARTS = ("rows", "columns", "values", "area_px", "grid")


def pooling(
    regions: Tensor,
    number: int,
    grid: tuple[int, int],
    covered: tuple[int, int] | None = None,
    align_corners: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Pooling:
    """The matrix that averages maps on ``grid`` (h,w) over ``regions`` (H,W), ids 0..``number``-1, others left out.

    ``covered``: the size that the grid is upsampled to before the margin at the bottom and right is cut off
    (:meth:`Output.covered`); default (H,W).
    Weights are summed in float64.
    """
    size = (regions.shape[0], regions.shape[1])
    upsampling = Upsampling(
        torch.empty(grid, dtype=torch.float64, device=regions.device), covered or size, align_corners
    )
    cells = grid[0] * grid[1]
    inside = regions.long().clamp(-1, number)
    area_px = torch.bincount(inside.flatten() + 1, minlength=number + 2)[1:-1]
    parts = [_coalesced(k, v) for k, v in _entries(inside, number, upsampling, grid)]
    keys, values = _coalesced(*(torch.cat(column) for column in zip(*parts, strict=True)))
    row = keys // cells
    values = values / at_least_one(area_px)[row]
    ends = torch.bincount(row, minlength=number).cumsum(0)
    ends = torch.cat([ends.new_zeros(1), ends]).int()
    matrix = _csr(ends, (keys % cells).int(), values.to(dtype), (number, cells))
    return Pooling(matrix, area_px, grid)


def pixel_sums(values: Tensor, regions: Tensor, number: int) -> Tensor:
    """Sums over the pixels of each region: values (K,H,W), regions (H,W), ids 0..R-1, to (R,K) float64.

    Other ids are left out. One channel after the other is widened to float64, so regions may be of any area.
    """
    ids = _inside(regions, number)
    counted = [torch.bincount(ids, one.flatten().double(), number + 2)[1:-1] for one in values]
    return torch.stack(counted, 1) if counted else values.new_zeros(number, 0, dtype=torch.float64)


def class_counts(predicted: Tensor, regions: Tensor, number: int, num_classes: int) -> Tensor:
    """How many pixels of each region are predicted as each class: (H,W) and (H,W) to (R,C) int64.

    Pixels of other classes (255) and other ids are left out.
    """
    ids = _inside(regions, number)
    classes = predicted.flatten().long().clamp(-1, num_classes) + 1
    cells = torch.bincount(ids * (num_classes + 2) + classes, minlength=(number + 2) * (num_classes + 2))
    return cells.view(number + 2, num_classes + 2)[1:-1, 1:-1]


def _csr(ends: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=True)


def _inside(regions: Tensor, number: int) -> Tensor:
    return regions.flatten().long().clamp(-1, number) + 1  # the first and the last are thrown away


def _entries(
    regions: Tensor, number: int, upsampling: Upsampling, grid: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys (region times cells plus cell) and weights, strip by strip.

    Columns first: the pixels of a row that share region and column of the grid become one, before each of them goes to
    two rows of the grid.
    """
    (height, width), (rows, columns) = grid, (upsampling.rows, upsampling.columns)
    strip = max(1, _ROWS_VALUES // (2 * regions.shape[1]))
    for top in range(0, len(regions), strip):
        part = regions[top : top + strip]
        y = torch.arange(len(part), device=part.device)
        pixel_row = (part + y[:, None] * (number + 2) + 1) * width  # ids from -1 to number
        keys = pixel_row + columns.cells[:, None, : part.shape[1]]
        keys, values = _coalesced(keys.flatten(), columns.taps[:, None, : part.shape[1]].expand_as(keys).flatten())
        column, of_row = keys % width, keys // width
        y, region = of_row // (number + 2), of_row % (number + 2) - 1
        kept = (region >= 0) & (region < number)
        column, y, region, values = column[kept], y[kept] + top, region[kept], values[kept]
        yield (
            (region * (height * width) + rows.cells[:, y] * width + column).flatten(),
            (rows.taps[:, y] * values).flatten(),
        )


def _coalesced(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Different keys in order, and the sums of their values; zeros are left out."""
    kept = values != 0
    keys, order = keys[kept].sort(stable=True)
    unique, count = torch.unique_consecutive(keys, return_counts=True)
    return unique, torch.segment_reduce(values[kept][order], "sum", lengths=count, unsafe=True)
