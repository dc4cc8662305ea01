"""Fingerprints of a set of images: histograms of every neuron, or a normal distribution of every neuron or layer.

Histograms count all positions (Ramtoula et al., CVPR 2023, ``histogram-B``, B = 1000 there). Their ranges are fixed
beforehand, so the histograms of shards, workers and ranks add up bit for bit to that of one pass over the same batches.
The normal forms (``gaussian``, ``layer-gaussian``) are of means over an image's positions; they keep a mean and sums of
squared deviations in float64, which merge without cancellation (Chan, Golub and LeVeque 1983).

Nothing here grows with the number of images. A histogram takes 8 bytes a neuron and bin, twice that when compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from segue.gap.errors import GapError
from segue.gap.layers import Probe
from segue.gap.ranges import Ranges, Table
from segue.ops.fingerprint import add_counts, cumulative

BINS = 1000  # of the published results


@dataclass(frozen=True)
class Histogram:
    """Counts (C,B) int64 by layer; ``ranges`` is None for published files, which do not tell them."""

    network: str
    images: int
    counts: Table
    ranges: Ranges | None = None

    @property
    def bins(self) -> int:
        """B."""
        return next(iter(self.counts.values())).shape[1]

    @cached_property
    def cumulative(self) -> Table:
        """Summed shares (C,B) float64 by layer, made once; ``GapError`` where a neuron has no counts."""
        for layer, counts in self.counts.items():
            if not counts.any(1).all():
                raise GapError(f"layer {layer} has neurons without a count: there is no distribution to compare")
        return {layer: cumulative(counts) for layer, counts in self.counts.items()}

    def check_same_bins(self, other: Histogram) -> None:
        """``GapError`` when counts of one mean something else in the other."""
        _check_same_layers(self, other, self.counts, other.counts)
        if self.ranges and other.ranges and self.ranges.digest() != other.ranges.digest():
            raise GapError("these fingerprints were counted in different ranges: count both in those of one reference")

    def merge(self, *others: Histogram) -> Histogram:
        """The fingerprint of all images together, equal to that of one pass."""
        counts, images = dict(self.counts), self.images
        for other in others:
            self.check_same_bins(other)
            counts = {layer: own + other.counts[layer] for layer, own in counts.items()}
            images += other.images
        return replace(self, counts=counts, images=images)


@dataclass(frozen=True)
class Gaussian:
    """Means (C,) and sums of products of deviations, (C,) or of all pairs (C,C), float64, by layer."""

    network: str
    images: int
    means: Table
    scatter: Table

    @property
    def full(self) -> bool:
        """Whether covariances between neurons are kept (``layer-gaussian``)."""
        return next(iter(self.scatter.values())).ndim == 2

    def spread(self, layer: str) -> Tensor:
        """Unbiased variances (C,) or covariances (C,C); 0 for one image, as published."""
        return self.scatter[layer] / max(1, self.images - 1)

    def variance(self, layer: str) -> Tensor:
        """Unbiased variances (C,)."""
        return self.spread(layer).diagonal() if self.full else self.spread(layer)

    def check_same_layers(self, other: Gaussian) -> None:
        """``GapError`` for fingerprints of other networks, layers or numbers of neurons."""
        _check_same_layers(self, other, self.means, other.means)

    def merge(self, *others: Gaussian) -> Gaussian:
        """The fingerprint of all images together, equal to that of one pass up to rounding in float64."""
        result = self
        for other in others:
            _check_same_layers(self, other, self.scatter, other.scatter)
            merged = {
                layer: _merged(result.images, mean, result.scatter[layer], other, layer)
                for layer, mean in result.means.items()
            }
            means, scatter = ({layer: pair[k] for layer, pair in merged.items()} for k in (0, 1))
            result = Gaussian(self.network, result.images + other.images, means, scatter)
        return result


Fingerprint = Histogram | Gaussian


def count(probe: Probe, ranges: Ranges, batches: Iterable[Tensor], bins: int = BINS) -> Histogram:
    """The histograms of batches of images (N,3,H,W); ``GapError`` when the ranges are another network's."""
    if ranges.network != probe.identity:
        raise GapError(f"the ranges are those of {ranges.network}, the network is {probe.identity}: measure its own")
    ranges = ranges.only(probe.names)
    limits = {name: ranges.limits(name) for name in probe.names}
    counts: Table = {}

    def see(layer: str, values: Tensor) -> None:
        low, high = (end.to(values.device) for end in limits[layer])
        if layer not in counts:
            check_neurons(layer, values.shape[1], len(low))
            counts[layer] = torch.zeros(len(low), bins, dtype=torch.int64, device=values.device)
        add_counts(counts[layer], values, low, high)

    images = probe.run(batches, see)
    return Histogram(probe.identity, images, {name: counts[name].cpu() for name in probe.names}, ranges)


def gaussian(probe: Probe, batches: Iterable[Tensor], full: bool = False) -> Gaussian:
    """The normal form of batches of images (N,3,H,W); ``full`` keeps covariances: 8 C^2 bytes a layer."""
    result: Gaussian | None = None
    for images in batches:
        means: Table = {}
        scatter: Table = {}

        def see(layer: str, values: Tensor, means: Table = means, scatter: Table = scatter) -> None:
            by_image = values.mean(2, dtype=torch.float64)
            means[layer] = by_image.mean(0).cpu()
            deviation = by_image - by_image.mean(0)
            scatter[layer] = (deviation.mT @ deviation if full else deviation.square().sum(0)).cpu()

        own = Gaussian(probe.identity, probe.run([images], see), means, scatter)
        result = own if result is None else result.merge(own)
    if result is None:
        raise GapError("no images: a fingerprint needs at least one")
    return result


def _merged(images: int, mean: Tensor, scatter: Tensor, other: Gaussian, layer: str) -> tuple[Tensor, Tensor]:
    total = images + other.images
    step = other.means[layer] - mean
    product = torch.outer(step, step) if scatter.ndim == 2 else step.square()
    moved = mean + step * (other.images / total)
    return moved, scatter + other.scatter[layer] + product * (images * other.images / total)


def check_neurons(layer: str, found: int, known: int) -> None:
    """``GapError`` when a network's layer is not that of the ranges."""
    if found != known:
        raise GapError(f"layer {layer} has {found} neurons, the ranges have {known}: measure them on this network")


def _check_same_layers(a: Fingerprint, b: Fingerprint, own: Table, others: Table) -> None:
    if a.network != b.network:
        raise GapError(f"fingerprints of different networks cannot be compared: {a.network} and {b.network}")
    if odd := sorted(set(own) ^ set(others)):
        raise GapError(f"only one of these fingerprints has the layers {', '.join(odd[:3])}: take the same of both")
    for layer, table in own.items():
        if table.shape != others[layer].shape:
            shapes = f"{tuple(table.shape)} and {tuple(others[layer].shape)}"
            raise GapError(f"layer {layer} has different neurons or bins in these fingerprints: {shapes}")
