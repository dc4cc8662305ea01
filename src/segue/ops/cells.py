"""The class of each cell of a coarse grid, from the labels of its pixels."""

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
    count as pixels, and may be most of them (DAFormer, eq. 8: 0.75 of a cell of 32x32). One addition a pixel, no
    one-hot maps.
    """
    images, height, width = label.shape
    label = torch.where((label >= 0) & (label < num_classes), label, num_classes)
    label = F.pad(label, (0, padded[1] - width, 0, padded[0] - height), value=num_classes)
    rows = torch.arange(padded[0], device=label.device) * grid[0] // padded[0]
    columns = torch.arange(padded[1], device=label.device) * grid[1] // padded[1]
    cells = rows.unsqueeze(1) * grid[1] + columns
    image = torch.arange(images, device=label.device).view(-1, 1, 1) * (grid[0] * grid[1])
    index = (image + cells) * (num_classes + 1) + label
    counts = torch.zeros(images * grid[0] * grid[1] * (num_classes + 1), device=label.device)
    counts = counts.scatter_add_(0, index.flatten(), counts.new_ones(()).expand(index.numel()))
    counts = counts.view(images, *grid, num_classes + 1)
    most = counts.max(-1)
    enough = most.values >= min_share * counts.sum(-1)
    return torch.where(enough & (most.indices < num_classes), most.indices, IGNORE)
