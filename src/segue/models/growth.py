"""A classifier with more outputs than it had: how class-incremental methods start the new ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def grown(old: nn.Conv2d, classes: int, added: int, init: str, generator: torch.Generator | None) -> nn.Conv2d:
    """A copy of ``old`` with ``added`` outputs inserted after its first ``classes``; see ``SegModel.grow_head``."""
    bias = old.bias
    if bias is None and init == "background":
        bias = nn.Parameter(old.weight.new_zeros(old.out_channels), requires_grad=old.weight.requires_grad)
    # From the meta device: a real constructor would draw from the global generator, and every value is set below.
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels + added,
        1,
        bias=bias is not None,
        device="meta",
        dtype=old.weight.dtype,
    ).to_empty(device=old.weight.device)
    with torch.no_grad():
        model = 0 if init == "background" else old.out_channels - 1
        # exp(w.x + b - log(k+1)), k+1 times, is exp(w.x + b): the mass of output 0 is shared out evenly.
        share = math.log(added + 1) if init == "background" else 0.0
        if init == "random":
            rows = torch.empty(added, *old.weight.shape[1:]).normal_(0, 0.01, generator=generator).to(old.weight)
        else:
            rows = old.weight[model].expand(added, *old.weight.shape[1:])
        new.weight.copy_(_insert(old.weight, rows, classes))
        if bias is not None and new.bias is not None:
            start = bias.new_zeros(added) if init == "random" else (bias[model] - share).expand(added)
            new.bias.copy_(_insert(bias, start, classes))
            new.bias[model] -= 0.0 if init == "random" else share
    for parameter in new.parameters():
        parameter.requires_grad_(old.weight.requires_grad)
    return new


def _insert(old: Tensor, rows: Tensor, at: int) -> Tensor:
    return torch.cat([old[:at], rows, old[at:]])
