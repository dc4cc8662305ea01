"""A classifier with more outputs than it had: how class-incremental methods start the new ones.

A classifier is a module whose output is the sum over the convolutions inside it (one 1x1, one transposed, several
dilated ones, …), each with one output channel a class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Conv = nn.Conv2d | nn.ConvTranspose2d


def convolutions(classifier: nn.Module) -> list[Conv]:
    """The convolutions whose outputs a classifier sums; the first carries what must be counted once."""
    return [m for m in classifier.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


def class_dim(conv: Conv) -> int:
    """The dimension of the weight that counts output channels."""
    return 1 if isinstance(conv, nn.ConvTranspose2d) else 0


def add_bias(classifier: nn.Module) -> bool:
    """Give a classifier without any bias one of zeros; False when it had one."""
    convs = convolutions(classifier)
    if any(conv.bias is not None for conv in convs):
        return False
    first = convs[0]
    first.bias = nn.Parameter(first.weight.new_zeros(first.out_channels), requires_grad=first.weight.requires_grad)
    return True


def grow(classifier: nn.Module, classes: int, added: int, init: str, generator: torch.Generator | None) -> bool:
    """Insert ``added`` outputs after the first ``classes``, in place; see ``SegModel.grow_head``.

    Parameters become new objects. True when the classifier got a bias that it was not built with.
    """
    new_bias = init == "background" and add_bias(classifier)
    # exp(w.x + b - log(k+1)), k+1 times, is exp(w.x + b): the mass of output 0 is shared out evenly.
    share = math.log(added + 1) if init == "background" else 0.0
    carrier = next((conv for conv in convolutions(classifier) if conv.bias is not None), None)
    for conv in convolutions(classifier):
        _grow(conv, classes, added, init, generator, share if conv is carrier else 0.0)
    return new_bias


@torch.no_grad()
def _grow(conv: Conv, classes: int, added: int, init: str, generator: torch.Generator | None, share: float) -> None:
    model = 0 if init == "background" else conv.out_channels - 1
    weight = conv.weight.movedim(class_dim(conv), 0)
    if init == "random":
        rows = torch.empty(added, *weight.shape[1:]).normal_(0, 0.01, generator=generator).to(weight)
    else:
        rows = weight[model].expand(added, *weight.shape[1:])
    if conv.bias is not None:
        start = conv.bias.new_zeros(added) if init == "random" else (conv.bias[model] - share).expand(added)
        bias = _insert(conv.bias, start, classes)
        bias[model] -= share
        conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
    wide = _insert(weight, rows, classes).movedim(0, class_dim(conv)).contiguous()
    conv.weight = nn.Parameter(wide, requires_grad=conv.weight.requires_grad)
    conv.out_channels += added


def _insert(old: Tensor, rows: Tensor, at: int) -> Tensor:
    return torch.cat([old[:at], rows, old[at:]])
