"""Local pooled-output distillation (POD): two maps agree when their means along rows and columns of regions do.

Douillard et al., "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR 2021, eq. 3 to 6. A map
x (D,h,w) is squared and cut into s x s regions for every scale s; Phi(x) holds, of every region, the means of its rows
and those of its columns. The distance of two maps is ||Phi(a) - Phi(b)||_2.

A row's mean in a region does not depend on how rows are cut, and Phi is linear in x^2, so all of it is two products of
a^2 - b^2 with the table of which cell lies in which region. Regions are h/s x w/s cells whatever h and w are: a cell on
a border belongs to both sides by its share. The published code cuts by the width alone and drops what is left over;
where s divides both sides the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.base import Output
from segue.ops.picture import at_least_one
from segue.ops.precision import full

SCALES = (1, 2, 4)
"""Regions a side, as published."""


def local_pod(student: Tensor, teacher: Tensor, share: Tensor, scales: Sequence[int] = SCALES) -> Tensor:
    """Distance of the local POD of two maps, (N,D,h,w) each, to (N,); no graph to the teacher.

    ``share`` (N,h,w) in 0..1: how much of a cell is picture. Means are over the picture; where there is none they are
    0. Its gradient where both maps are equal is 0. ``ValueError`` when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps must have one shape, they have {tuple(student.shape)} and {tuple(teacher.shape)}")
    difference = (full(student).square() - full(teacher.detach()).square()) * share.to(full(student)).unsqueeze(1)
    weight = share.to(difference).unsqueeze(1)
    rows = _regions(difference.shape[-2], scales).to(difference)
    columns = _regions(difference.shape[-1], scales).to(difference)
    with torch.autocast(difference.device.type, enabled=False):
        along_rows = (difference @ columns) / at_least_one(weight @ columns)
        along_columns = (rows.t() @ difference) / at_least_one(rows.t() @ weight)
    distance: Tensor = torch.linalg.vector_norm(torch.cat([along_rows.flatten(1), along_columns.flatten(1)], 1), dim=1)
    return distance


def picture_share(output: Output, pixel: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each cell of a network's map of size ``grid`` is picture: ``pixel`` (N,H,W) to (N,h,w) in 0..1."""
    padding = (0, output.padded[1] - output.size[1], 0, output.padded[0] - output.size[0])
    return F.adaptive_avg_pool2d(F.pad(full(pixel), padding).unsqueeze(1), grid).squeeze(1)


def folded(logits: Tensor, old: int) -> Tensor:
    """Logits (N,C,h,w) as (N,old,h,w) that the old model's are compared with: those of new classes added to output 0.

    As the published code does with background; a sum of logits, not of probabilities.
    """
    first = logits[:, :1] + logits[:, old:].sum(1, keepdim=True)
    return torch.cat([first, logits[:, 1:old]], 1)


def _regions(size: int, scales: Sequence[int]) -> Tensor:
    """How much of each cell lies in each region of every scale, (size, sum of scales)."""
    cell = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    parts = []
    for scale in scales:
        edges = torch.arange(scale + 1, dtype=torch.float64) * size / scale
        parts.append((torch.minimum(cell + 1, edges[1:]) - torch.maximum(cell, edges[:-1])).clamp(min=0))
    return torch.cat(parts, 1)
