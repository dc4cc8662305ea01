"""Where in its picture each pixel of a sample lies: the way back through ``Meta.geometry``."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.data.batch import Meta


def places(meta: Meta, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixel centres of a sample of ``size`` (H,W) as shares of the picture's height and width, float64.

    Two tensors that broadcast to (H,W); 0 is the upper and left edge, 1 the other. Padding lies where the picture would
    go on, or beyond the far edge.
    """
    height, width = meta.geometry["resized"]
    top, left, _, columns = meta.geometry["window"]
    y = torch.arange(size[0], dtype=torch.float64).view(-1, 1)
    x = torch.arange(size[1], dtype=torch.float64).view(1, -1)
    if warp := meta.geometry.get("warp"):
        y, x = _warped(torch.tensor(warp, dtype=torch.float64), y, x)
    if meta.geometry["flip"]:
        x = columns - 1 - x
    return (y + top + 0.5) / height, (x + left + 0.5) / width


def _warped(matrix: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (y.shape[0], x.shape[1])
    y, x = y.expand(shape), x.expand(shape)
    moved = matrix @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    moved = (moved[:2] / moved[2]).view(2, *shape)
    return moved[1], moved[0]
