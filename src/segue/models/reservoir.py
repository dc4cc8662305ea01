"""A network with one set of norm layers for each domain that it has met; the style of an image chooses the set.

After ReservoirTTA (Vray et al., 2025), whose reservoir holds whole models. Slot 0 is the source. A slot owns the values
of every norm layer (statistics and affine parameters; of layer and group norms the affine ones), a centre and a radius
in the source's style space (``segue.models.style``). All other weights are shared, and frozen unless ``kinds`` says
otherwise. The norm layers of ``base`` are those of the *active* slot: in training mode every image uses them, and they
are what is trained; the other slots are buffers.

Eval mode: an image uses the source's slot when its style is within the source's radius, else the slot whose centre is
nearest in units of its radius, the source's among them. Images of one slot go through the network together; a batch
that is all source's gives the logits of the plain source model bit for bit.

*Meeting a stream* (before training on images of ``target``): when half of its images or more belong to one slot other
than the source's, that slot goes on; else a new one opens, which starts as the nearest known. When all are taken, the
nearest is reused: memory is bounded, and the domain that it held is forgotten by and by. Until the first stream there
is only the source, and it is trained as any network. A radius is at least the source's.

Knobs that matter: ``slots``; ``kinds: {}`` trains shared weights too, and the source's slot then no longer answers as
the source model did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from segue.errors import UserError
from segue.models.anchor import Anchor
from segue.models.base import MODELS, Output, SegModel
from segue.models.style import Style, radius_of, style_layer, style_of, style_width
from segue.models.trained import NORM_TYPES, Pattern
from segue.models.wrapped import Wrapped, WrappedConfig

SOURCE = 0
MAJORITY = 0.5


class ReservoirConfig(WrappedConfig):
    """Settings of ``reservoir``."""

    slots: int = Field(8, ge=2)
    """Domains that are kept, the source among them."""
    kinds: dict[Pattern, Literal["biases", "norms", "biases_and_norms"]] = Field(default={"": "norms"})
    """As for every model; by default norm layers alone are trained."""


class _Decoding(nn.Module):
    """``decode`` of a network as a module, to be called with other norm values."""

    def __init__(self, base: SegModel) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Output:
        return self.base.decode(x)


class Slots(nn.Module):
    """The values of norm layers, by name, for each slot: buffers (S,…)."""

    def __init__(self, base: SegModel, number: int) -> None:
        super().__init__()
        for name, value in norm_values(base).items():
            self.register_buffer(name.replace(".", "/"), value.detach().expand(number, *value.shape).clone())

    def store(self, base: SegModel, slot: int) -> None:
        """Take a slot's values from the network."""
        for name, value in norm_values(base).items():
            self.get_buffer(name.replace(".", "/"))[slot].copy_(value)

    def load(self, base: SegModel, slot: int) -> None:
        """Give a slot's values to the network."""
        for name, value in norm_values(base).items():
            value.copy_(self.get_buffer(name.replace(".", "/"))[slot])

    def of(self, base: SegModel, slot: int) -> dict[str, Tensor]:
        """A slot's values under the network's names."""
        return {name: self.get_buffer(name.replace(".", "/"))[slot] for name in norm_values(base)}


@MODELS.register("reservoir")
class Reservoir(Wrapped):
    """A network with norm layers for each domain, chosen by the style of the image."""

    Config = ReservoirConfig
    config: ReservoirConfig
    needs_anchor = True
    not_exported = "it chooses norm layers image by image, which no fixed graph does; predict with segue predict"

    style_mean: Tensor
    style_std: Tensor
    centres: Tensor
    radii: Tensor
    counts: Tensor
    active: Tensor

    def __init__(self, config: ReservoirConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.layer = style_layer(self.base)
        width, number = style_width(self.base, self.layer), config.slots
        self.slots = Slots(self.base, number)
        self.register_buffer("style_mean", torch.zeros(width))
        self.register_buffer("style_std", torch.ones(width))
        self.register_buffer("centres", torch.zeros(number, width))
        self.register_buffer("radii", torch.zeros(number))
        self.register_buffer("counts", torch.zeros(number, dtype=torch.int64))
        self.register_buffer("active", torch.tensor(SOURCE))
        self.last_slots = torch.zeros(0, dtype=torch.int64)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Around the smallest ERFNet, everything trained."""
        return {**super().tiny(), "slots": 2, "kinds": {}}

    def adopt(self, anchor: Anchor | None) -> None:
        """See :class:`SegModel`; the source's style is the anchor's. ``UserError`` when it is of another network."""
        super().adopt(anchor)
        if anchor is None:
            return
        if anchor.style.mean.shape != self.style_mean.shape:
            raise UserError(
                "the anchor's style is of another network: make it again from the model this one starts from"
            )
        self.style_mean.copy_(anchor.style.mean)
        self.style_std.copy_(anchor.style.std)
        self.radii[SOURCE] = anchor.style.radius
        self.counts[SOURCE] = anchor.images

    def decode(self, x: Tensor) -> Output:
        """See the module; ``last_slots`` (N,) then says which slot each image used."""
        if self.training or x.is_meta or not self.counts[1:].any():
            self.last_slots = self.active.expand(len(x)).clone()
            return self.base.decode(x)
        self.last_slots = slots = self._chosen(style_of(self.base, self.layer, x))
        used = sorted(set(slots.tolist()))
        if len(used) == 1:
            return self._answer(x, used[0])
        rows = [(slots == slot).nonzero().flatten() for slot in used]
        return _joined([self._answer(x[own], slot) for own, slot in zip(rows, used, strict=True)], rows, len(x))

    @torch.no_grad()
    def slots_of(self, image: Tensor) -> Tensor:
        """The slot (N,) int64 that each of (N,3,H,W) float 0..1 uses in eval mode."""
        return self._chosen(style_of(self.base, self.layer, self._prepared(image)))

    @torch.no_grad()
    def meet(self, images: Iterable[Tensor]) -> None:
        """See the module; ``UserError`` when the source's style is not known."""
        found = [style_of(self.base, self.layer, self._prepared(image)) for image in images]
        if not found:
            return
        if not self.counts[SOURCE]:
            raise UserError(
                "model 'reservoir' does not know the style of the source: start it from a model that has an anchor "
                "(segue anchor MODEL --data NAME:train makes one)"
            )
        vectors = torch.cat(found)
        self.slots.store(self.base, int(self.active))
        slot = self._joined_slot(vectors)
        if slot is None:
            slot, values = self._new_slot(vectors)
        else:
            values = slot
        self.slots.load(self.base, values)
        self._move(slot, self._style.standardised(vectors))
        self.active.fill_(slot)

    @property
    def _style(self) -> Style:
        return Style(self.style_mean, self.style_std, self.radii[SOURCE])

    def _distances(self, vectors: Tensor) -> Tensor:
        """(n,S) distances in units of each slot's radius, infinite for slots without a domain."""
        apart = self._style.standardised(vectors).unsqueeze(1) - self.centres.to(vectors)
        distance = apart.square().mean(2) / self.radii.clamp_min(1e-12).to(vectors)
        return torch.where(self.counts > 0, distance, torch.inf)

    def _chosen(self, vectors: Tensor) -> Tensor:
        distance = self._distances(vectors)
        return torch.where(distance[:, SOURCE] <= 1, SOURCE, distance.argmin(1))

    def _joined_slot(self, vectors: Tensor) -> int | None:
        """The slot that most images of a stream belong to, when they are half of it or more."""
        distance = self._distances(vectors)
        slots = self._chosen(vectors)
        inside = distance.gather(1, slots.unsqueeze(1)).squeeze(1) <= 1
        votes = torch.bincount(slots[inside], minlength=self.config.slots)
        votes[SOURCE] = 0
        best = int(votes.argmax())
        return best if votes[best] >= MAJORITY * len(vectors) else None

    def _new_slot(self, vectors: Tensor) -> tuple[int, int]:
        """A free slot, or the nearest when none is, and the slot whose values it starts with."""
        nearest = self._distances(vectors.mean(0, keepdim=True))[0]
        free = (self.counts == 0).nonzero().flatten().tolist()
        if free:
            return free[0], int(nearest.argmin())
        reused = 1 + int(nearest[1:].argmin())
        return reused, reused

    def _move(self, slot: int, standardised: Tensor) -> None:
        """Centre and radius of a slot that takes in a stream's images."""
        old, new = int(self.counts[slot]), len(standardised)
        centre = (self.centres[slot] * old + standardised.sum(0)) / (old + new)
        reach = radius_of((standardised - centre).square().mean(1))
        self.centres[slot] = centre
        self.radii[slot] = torch.stack([self.radii[SOURCE], self.radii[slot], reach.to(self.radii)]).max()
        self.counts[slot] += new

    def _answer(self, x: Tensor, slot: int) -> Output:
        if slot == int(self.active):
            return self.base.decode(x)
        values = {f"base.{name}": value for name, value in self.slots.of(self.base, slot).items()}
        output: Output = functional_call(_Decoding(self.base), values, (x,))
        return output


def norm_values(base: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of every norm layer, by name."""
    return dict(_norm_values(base))


def _norm_values(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in base.named_modules():
        if isinstance(module, NORM_TYPES):
            for values in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                yield from ((f"{path}.{name}", value) for name, value in values)


def _joined(outputs: list[Output], rows: list[Tensor], number: int) -> Output:
    """Answers to parts of a batch as that to the whole."""

    def whole(maps: list[Tensor]) -> Tensor:
        out = maps[0].new_empty(number, *maps[0].shape[1:])
        for own, part in zip(rows, maps, strict=True):
            out = out.index_copy(0, own, part)
        return out

    stages = zip(*(output.stages for output in outputs), strict=True)
    return Output(
        whole([output.logits for output in outputs]),
        whole([output.embedding for output in outputs]),
        tuple(whole(list(maps)) for maps in stages),
    )
