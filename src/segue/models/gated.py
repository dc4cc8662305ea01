"""A frozen network with the source's class prototypes beside its classifier, and a small gate that learns to use them.

After MoP (spec of test-time mixtures of prototypes), with additive logits: l' = l + g * s. For each cell, s_c is the
negative distance of its embedding, in units of the spread within classes, to the ``nearest`` closest prototypes of
class c (weighted by softmin), standardised over the classes; g = W m for each image, where m is the mean of s over the
image. W starts at zero. g is 0 where the style of the image lies inside the source's radius.

With W = 0, and for every image inside, the logits are those of the base bit for bit in eval mode; the prototypes are
not even compared when a whole batch is inside. (In training mode the sum is taken for its gradient: -0 may become 0.)
Prototypes, spread and style come from the anchor of the model that this one starts from (``segue anchor``); without one
the prototypes are random. Only the gate is to be trained: method ``prototype_gate``.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.anchor import PROTOTYPES, Anchor
from segue.models.base import MODELS, Output, ParamGroup
from segue.models.style import Style, noted, style_layer, style_width
from segue.models.wrapped import Wrapped, WrappedConfig
from segue.ops.precision import full


class GatedConfig(WrappedConfig):
    """Settings of ``gated``."""

    prototypes: int = Field(PROTOTYPES, ge=1)
    """Prototypes of each class, at least as many as the anchor has."""
    nearest: int = Field(2, ge=1)
    """How many of a class count for a cell, at most ``prototypes``."""


@MODELS.register("gated")
class Gated(Wrapped):
    """A network with source prototypes beside its classifier and a learned gate."""

    Config = GatedConfig
    config: GatedConfig

    centres: Tensor
    spread: Tensor
    known: Tensor
    style_mean: Tensor
    style_std: Tensor
    radius: Tensor

    def __init__(self, config: GatedConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        twin = copy.deepcopy(self.base).to("meta").eval()
        side = max(64, twin.multiple)
        outline = twin.decode(torch.empty(1, 3, side, side, device="meta"))
        channels = outline.embedding.shape[1]
        self.finer = outline.logits.shape[-2:] != outline.embedding.shape[-2:]
        self.outside = torch.zeros(0, dtype=torch.bool)
        self.layer = style_layer(self.base)
        width = style_width(self.base, self.layer)
        self.gate = nn.Linear(num_classes, num_classes, bias=False)
        nn.init.zeros_(self.gate.weight)
        self.register_buffer("centres", torch.randn(num_classes, config.prototypes, channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("known", torch.ones(num_classes, dtype=torch.bool))
        self.register_buffer("style_mean", torch.zeros(width))
        self.register_buffer("style_std", torch.ones(width))
        self.register_buffer("radius", torch.tensor(-1.0))  # no image is inside

    def adopt(self, anchor: Anchor | None) -> None:
        """See :class:`SegModel`; prototypes and style become the anchor's. ``UserError`` when they do not fit."""
        super().adopt(anchor)
        if anchor is None:
            return
        classes, number, channels = anchor.prototypes.shape
        most = self.config.prototypes
        if classes > self.num_classes or channels != self.centres.shape[2] or number > most:
            raise UserError(
                f"the anchor holds {number} prototypes of {channels} channels for {classes} classes, model 'gated' "
                f"has room for {most} of {self.centres.shape[2]} for {self.num_classes}: set model.prototypes, or make "
                f"the anchor again from the model that this one starts from"
            )
        self.spread.copy_(anchor.spread)
        self.centres.zero_()[:classes] = (anchor.prototypes / anchor.spread)[:, torch.arange(most) % number]
        self.known.fill_(False)[:classes] = anchor.known
        for name, value in (("style_mean", anchor.style.mean), ("style_std", anchor.style.std)):
            getattr(self, name).copy_(value)
        self.radius.copy_(anchor.style.radius)

    def decode(self, x: Tensor) -> Output:
        """See the module; ``outside`` then says which images the gate was open for."""
        with noted(self.base.get_submodule(self.layer)) as styles:
            output = self.base.decode(x)
        inside = Style(self.style_mean, self.style_std, self.radius).inside(styles[0])
        outside = ~inside
        if not (torch.compiler.is_exporting() or x.is_meta):  # a graph remembers nothing and branches nowhere
            self.outside = outside
            if not bool(outside.any()):
                return output
        gates, scores = self.gates(output.embedding)
        gates = gates * outside.unsqueeze(1)
        # Where nothing is added the old bits stay; in training all images outside keep their gradient to the gate.
        use = outside.unsqueeze(1).expand_as(gates) if self.training else gates != 0
        added = self._on_grid(gates[:, :, None, None] * scores, output.logits)
        use = F.pad(use, (0, output.logits.shape[1] - self.num_classes))[:, :, None, None]
        return replace(output, logits=torch.where(use, output.logits + added, output.logits))

    def gates(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (N,C), before images inside are left out, and scores s (N,C,h,w) of an embedding (N,D,h,w)."""
        scores = self._scores(embedding.detach())
        return F.linear(scores.mean((2, 3)), full(self.gate.weight)), scores

    def param_groups(self) -> list[ParamGroup]:
        """Those of the base, and the gate, which belongs to the head; decay pulls it towards the source model."""
        trained = [p for p in self.gate.parameters() if p.requires_grad]
        own = ParamGroup("gate", trained, self.config.head_lr_factor, True)
        return [*super().param_groups(), *([own] if trained else [])]

    def grow_head(
        self,
        added: int,
        init: Literal["random", "background", "unknown"] = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        """See :class:`SegModel`; new classes have no prototypes, their gates stay 0."""
        super().grow_head(added, init, generator)
        old = self.gate.weight
        self.gate = nn.Linear(self.num_classes, self.num_classes, bias=False).to(old)
        self.gate.weight = nn.Parameter(F.pad(old.detach(), (0, added, 0, added)), old.requires_grad)
        self.centres = torch.cat([self.centres, self.centres.new_zeros(added, *self.centres.shape[1:])])
        self.known = F.pad(self.known, (0, added))

    def _scores(self, embedding: Tensor) -> Tensor:
        x = full(embedding) / self.spread.view(1, -1, 1, 1)
        classes, number, channels = self.centres.shape
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            along = F.conv2d(x, self.centres.view(-1, channels, 1, 1))
        squared = x.square().sum(1, keepdim=True) - 2 * along + self.centres.square().sum(2).view(1, -1, 1, 1)
        distance = squared.clamp_min(1e-6).sqrt()
        distance = distance.view(x.shape[0], classes, number, *x.shape[2:])
        near = distance.topk(min(self.config.nearest, number), 2, largest=False).values
        near = (near.neg().softmax(2) * near).sum(2)
        known = self.known.view(1, -1, 1, 1).to(near)
        count = known.sum(1, keepdim=True).clamp_min(1)
        centred = (near - (near * known).sum(1, keepdim=True) / count) * known
        deviation = (centred.square().sum(1, keepdim=True) / count).sqrt().clamp_min(1e-6)
        out: Tensor = -centred / deviation
        return out

    def _on_grid(self, added: Tensor, logits: Tensor) -> Tensor:
        """With a zero for outputs beyond the classes, on the logits' grid and in their precision."""
        added = F.pad(added, (0, 0, 0, 0, 0, logits.shape[1] - self.num_classes))
        if self.finer:
            added = F.interpolate(added, logits.shape[-2:], mode="nearest")
        return added.to(logits.dtype)
