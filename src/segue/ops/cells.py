"""What the labels of its pixels say of each cell of a coarse grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.labels import IGNORE


def cell_classes(
    label: Tensor, padded: tuple[int, int], grid: tuple[int, int], num_classes: int, min_share: float
) -> Tensor:
    """Class that has the most pixels of a cell and at least ``min_share`` of them, else 255: (N,H,W) to (N,h,w) int64.

    ``padded`` is the size that the grid covers. What it has beyond (H,W), and ids outside 0..C-1, are no class but
    count as pixels, and may be most of them (DAFormer, eq. 8: 0.75 of a cell of 32x32).
    """
    counts = cell_counts(label, padded, grid, num_classes)
    most = counts.max(-1)
    enough = most.values >= min_share * counts.sum(-1)
    return torch.where(enough & (most.indices < num_classes), most.indices, IGNORE)


def cell_counts(
    label: Tensor,
    padded: tuple[int, int],
    grid: tuple[int, int],
    num_classes: int,
    *,
    align_corners: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Pixels, or their summed ``weight`` (N,H,W), of each class in each cell: (N,H,W) to (N,h,w,C+1) float32.

    The last count is of what is no class: ids outside 0..C-1 and what ``padded`` has beyond (H,W). A pixel belongs to
    the cell with its upper left corner in it; ``align_corners``: whose centre is nearest. One addition a pixel.
    """
    images, height, width = label.shape
    margin = (0, padded[1] - width, 0, padded[0] - height)
    label = torch.where((label >= 0) & (label < num_classes), label, num_classes)
    label = F.pad(label, margin, value=num_classes)
    rows, columns = (
        _cell_of(full, cells, align_corners, label.device) for full, cells in zip(padded, grid, strict=True)
    )
    cells = rows.unsqueeze(1) * grid[1] + columns
    image = torch.arange(images, device=label.device).view(-1, 1, 1) * (grid[0] * grid[1])
    index = (image + cells) * (num_classes + 1) + label
    counts = torch.zeros(images * grid[0] * grid[1] * (num_classes + 1), device=label.device)
    added = counts.new_ones(()).expand(index.numel()) if weight is None else F.pad(weight, margin).flatten().float()
    return counts.scatter_add_(0, index.flatten(), added).view(images, *grid, num_classes + 1)


def _cell_of(full: int, cells: int, align_corners: bool, device: torch.device) -> Tensor:
    pixels = torch.arange(full, device=device)
    if not align_corners:
        return pixels * cells // full
    return (2 * pixels * (cells - 1) + full - 1) // (2 * (full - 1))
