"""Binary cross-entropy of every output: classes that do not compete, so that some can be trained without the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.labels import IGNORE
from segue.models.base import Output
from segue.ops.precision import full


def binary_losses(logits: Tensor, true: Sequence[Tensor]) -> Tensor:
    """-sum_k [t_k ln s_k + (1 - t_k) ln(1 - s_k)], s the sigmoid: (N,K,H,W) to (N,H,W).

    ``true``: maps (N,H,W) int64 of the outputs that are 1 at a pixel, one a map, 255 for none; all others are 0. No two
    maps may name the same output at a pixel.
    """
    loss = F.softplus(logits).sum(1)
    for index in true:
        picked = logits.gather(1, index.clamp(max=logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
        loss = loss - torch.where(index == IGNORE, 0.0, picked)
    return loss


def binary_at_pixels(output: Output, logits: Tensor, true: Sequence[Tensor]) -> Tensor:
    """:func:`binary_losses` of logits (N,K,h,w) on the network's grid, upsampled to the maps' size."""
    size = (true[0].shape[-2], true[0].shape[-1])
    # One image at a time on CPU: the upsampled logits then stay in the cache.
    chunk = 1 if logits.device.type == "cpu" else len(logits)
    rows = zip(*(torch.split(tensor, chunk) for tensor in (logits, *true)), strict=True)
    return torch.cat([binary_losses(output.upsample(full(part), size), maps) for part, *maps in rows])


def certain(output: Output, logits: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Where some output has a sigmoid of at least ``threshold``: logits (N,K,h,w) to (N,*size*) bool; K may be 0."""
    if not logits.shape[1]:
        return torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    parts = torch.split(logits, 1 if logits.device.type == "cpu" else len(logits))
    return torch.cat([output.upsample(full(part), size).amax(1) for part in parts]).sigmoid() >= threshold
