"""The precision in which losses are computed, whatever the network's own was."""

from __future__ import annotations

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is when it is float64 already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
