"""Levels of a prediction that a method adapts: ``main`` is the model's output, others are its heads, by name.

Tsai et al. (CVPR 2018, section 4.3) and Vu et al. (CVPR 2019) adapt two levels, DeepLabV2's ``main`` and ``auxiliary``;
BiSeNet's heads are ``out16`` and ``out32``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from segue.errors import UserError
from segue.models.base import Output, SegModel

MAIN = "main"
Levels = Annotated[dict[Annotated[str, Field(pattern=r"^\w+$")], Annotated[float, Field(ge=0)]], Field(min_length=1)]
"""Level -> weight of its term."""


def level_logits(output: Output, names: Iterable[str]) -> dict[str, Tensor]:
    """Logits (N,C,h,w) of each level, C the classes of the label space; ``UserError`` when the model has no such head.

    Heads exist in training mode only. One that saw a crop, or that predicts boundaries, is no level.
    """
    whole = {head.name: head.logits for head in output.heads if head.target == "classes" and head.window is None}
    known = {MAIN: output.logits} | whole
    for name in names:
        if name not in known:
            heads = ", ".join(whole) or "none: give its head or its auxiliary classifier in the model's settings"
            raise UserError(f"method.levels names {name!r}; this model has 'main' and the heads {heads}")
    return {name: known[name][:, : output.num_classes] for name in names}


def require_levels(model: SegModel, names: Iterable[str]) -> None:
    """``UserError`` when the model has no such level."""
    level_logits(outline(model), names)


def outline(model: SegModel) -> Output:
    """Shapes of what a model gives in training; nothing is computed, and no statistics change."""
    twin = copy.deepcopy(model).to("meta").train()
    output: Output = twin(torch.empty(2, 3, 64, 64, device="meta"))  # two: norms of 1x1 maps need more than one value
    return output


def without_graph(output: Output) -> Output:
    """The logits alone, main and heads', for use after their graph is freed; everything else is let go."""
    heads = tuple(replace(head, logits=head.logits.detach()) for head in output.heads)
    logits = output.logits.detach()
    return replace(output, logits=logits, embedding=logits, stages=(), heads=heads)
