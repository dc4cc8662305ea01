"""How activations map to bins: the range of every neuron, measured once on a reference and fixed before counting.

The published rule multiplies both limits of [smallest, largest] by 1.2, so that a neuron whose smallest activation is
above 0 may start counting above it; ours widens the range by 1.2 around its middle. A neuron that never moved on the
reference has a range of 2e-8 by the published rule, so that any change moves it to an end, and its layer's median by
ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from segue.gap.errors import GapError
from segue.gap.layers import Probe

Rule = Literal["centred", "published"]
Table = dict[str, Tensor]

SCALE = 1.2
NARROWEST = 1e-8


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest activation (C,) float64 of every neuron by layer, and the rule that widens them.

    ``images``: of how many; 0 where it is not known.
    """

    network: str
    images: int
    minima: Table
    maxima: Table
    rule: Rule = "centred"

    def limits(self, layer: str) -> tuple[Tensor, Tensor]:
        """Ends (C,), (C,) of the range that is cut into bins."""
        low, high = self.minima[layer], self.maxima[layer]
        middle, half = (low + high) / 2, (high - low) / 2
        if self.rule == "published":
            middle, half = SCALE * middle, SCALE * half + NARROWEST
        else:
            moving = half[half > 0]
            usual = moving.median() if len(moving) else torch.ones((), dtype=torch.float64)
            half = SCALE * torch.where(half > 0, half, usual)
        return middle - half, middle + half

    def only(self, layers: Iterable[str]) -> Ranges:
        """Those of some layers, in their order; ``GapError`` for a layer that was not measured."""
        names = list(layers)
        for name in names:
            if name not in self.minima:
                raise GapError(f"the ranges hold no layer {name}: measure them on the same layers")
        minima, maxima = ({name: table[name] for name in names} for table in (self.minima, self.maxima))
        return replace(self, minima=minima, maxima=maxima)

    def digest(self) -> str:
        """Equal for equal limits of equal layers of one network: only such histograms can be added or compared."""
        digest = hashlib.blake2b(self.network.encode(), digest_size=16)
        for layer in sorted(self.minima):
            digest.update(layer.encode())
            for ends in self.limits(layer):
                digest.update(ends.numpy().tobytes())
        return digest.hexdigest()

    def merge(self, *others: Ranges) -> Ranges:
        """The ranges of all images together; before anything is counted."""
        minima, maxima, images = dict(self.minima), dict(self.maxima), self.images
        for other in others:
            if (other.network, set(other.minima), other.rule) != (self.network, set(minima), self.rule):
                raise GapError("these ranges are of different networks, layers or rules: measure them alike")
            minima = {k: torch.minimum(v, other.minima[k]) for k, v in minima.items()}
            maxima = {k: torch.maximum(v, other.maxima[k]) for k, v in maxima.items()}
            images += other.images
        return replace(self, minima=minima, maxima=maxima, images=images)


def measure(probe: Probe, batches: Iterable[Tensor], rule: Rule = "centred") -> Ranges:
    """The ranges of all neurons over batches of images (N,3,H,W), which are the reference of later counts."""
    minima: Table = {}
    maxima: Table = {}

    def see(layer: str, values: Tensor) -> None:
        low, high = values.amin((0, 2)), values.amax((0, 2))
        minima[layer] = torch.minimum(minima[layer], low) if layer in minima else low
        maxima[layer] = torch.maximum(maxima[layer], high) if layer in maxima else high

    images = probe.run(batches, see)
    low, high = ({name: table[name].double().cpu() for name in probe.names} for table in (minima, maxima))
    return Ranges(probe.identity, images, low, high, rule)
