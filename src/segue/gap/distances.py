"""Distances between fingerprints, and of single images to a reference (Ramtoula et al., CVPR 2023).

``emd``: earth mover's distance of every neuron's histogram, in bins (0 to B-1; divided by B it is a share of the
neuron's range). ``normal_distance``: Frechet distance of every neuron's normal distribution (NFD).
``frechet_distance``: of all neurons of a layer with their covariances (FD).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.gap.errors import GapError
from segue.gap.fingerprint import Gaussian, Histogram, check_neurons
from segue.gap.layers import Probe
from segue.labels import nearest
from segue.ops.fingerprint import earth_mover, frechet, image_earth_mover, normal_frechet

Layers = Sequence[str] | None


@dataclass(frozen=True)
class Distance:
    """One ``number``, and one of each of the ``layers``; ``neurons`` (C,) float64 by layer, empty for FD.

    The number is the mean over all neurons, as published: a layer counts by its size. FD is the mean over layers.
    """

    number: float
    layers: dict[str, float]
    neurons: dict[str, Tensor]


@dataclass(frozen=True)
class ImageDistances:
    """``numbers`` (M,) float64 of M images in their order: means over all neurons, and the same by layer."""

    numbers: Tensor
    layers: dict[str, Tensor]


def emd(a: Histogram, b: Histogram, layers: Layers = None) -> Distance:
    """Earth mover's distance of histograms, on all or some layers; summed shares are kept by both for the next call.

    ``GapError`` for fingerprints of other networks, layers, ranges or bins.
    """
    a.check_same_bins(b)
    first, second = a.cumulative, b.cumulative
    return _by_neuron({n: earth_mover(first[n], second[n]) for n in _chosen(first, layers)})


def normal_distance(a: Gaussian, b: Gaussian, layers: Layers = None) -> Distance:
    """NFD; of a layer-gaussian the diagonal is taken."""
    a.check_same_layers(b)
    names = _chosen(a.means, layers)
    return _by_neuron({n: normal_frechet(a.means[n], a.variance(n), b.means[n], b.variance(n)) for n in names})


def frechet_distance(a: Gaussian, b: Gaussian, layers: Layers = None) -> Distance:
    """FD of every layer, for fingerprints with covariances (``GapError`` otherwise)."""
    a.check_same_layers(b)
    if not (a.full and b.full):
        raise GapError("FD needs covariances: make both fingerprints as layer-gaussian")
    names = _chosen(a.means, layers)
    found = {n: float(frechet(a.means[n], a.spread(n), b.means[n], b.spread(n))) for n in names}
    return Distance(sum(found.values()) / len(found), found, {})


def image_distances(probe: Probe, reference: Histogram, batches: Iterable[Tensor]) -> ImageDistances:
    """Earth mover's distance of every image of the batches (N,3,H,W) to a reference, on the probe's layers.

    Equal to :func:`emd` of one-image fingerprints; no image's histogram is kept. ``GapError`` for a reference of
    another network, without its ranges, or that lacks a layer.
    """
    if reference.network != probe.identity:
        raise GapError(f"the reference is of {reference.network}, the network is {probe.identity}: count it again")
    if reference.ranges is None:
        raise GapError("the reference does not tell its ranges: images cannot be counted in them; give its ranges file")
    _chosen(reference.counts, probe.names)
    limits: dict[str, tuple[Tensor, ...]]
    limits = {name: (*reference.ranges.limits(name), reference.cumulative[name]) for name in probe.names}
    found: dict[str, list[Tensor]] = {name: [] for name in probe.names}

    def see(layer: str, values: Tensor) -> None:
        low, high, shares = limits[layer] = tuple(part.to(values.device) for part in limits[layer])
        check_neurons(layer, values.shape[1], len(low))
        found[layer].append(torch.stack([image_earth_mover(one, low, high, shares).mean() for one in values]).cpu())

    probe.run(batches, see)
    means = {name: torch.cat(found[name]) for name in probe.names}
    neurons = {name: len(reference.counts[name]) for name in probe.names}
    numbers = torch.stack([means[name] * neurons[name] for name in probe.names]).sum(0) / sum(neurons.values())
    return ImageDistances(numbers, means)


def outlying(layers: Mapping[str, float], deviations: float = 1.0) -> tuple[str, ...]:
    """Layers farther than the mean of all by more than ``deviations`` (population) standard deviations, in order.

    The rule by which the vDNA project of Freiburg chose what to fine-tune, with 1.
    """
    values = torch.tensor(list(layers.values()), dtype=torch.float64)
    bar = float(values.mean() + deviations * values.std(correction=0))
    return tuple(name for name, value in layers.items() if value > bar)


def _by_neuron(neurons: dict[str, Tensor]) -> Distance:
    layers = {name: float(values.mean()) for name, values in neurons.items()}
    return Distance(float(torch.cat(list(neurons.values())).mean()), layers, neurons)


def _chosen(table: Mapping[str, Tensor], layers: Layers) -> list[str]:
    if layers is None:
        return list(table)
    for name in layers:
        if name not in table:
            raise GapError(f"the fingerprint has no layer {name}{nearest(name, list(table))}")
    return list(layers)
