"""Histograms of activations, all neurons of a layer in one pass, and distances between distributions of neurons.

A value x of a neuron with range [low, high] lies in bin floor((x - low) B / (high - low)), clipped to 0..B-1: a value
on an interior edge counts once, in the upper bin (Ramtoula et al., "Visual DNA", CVPR 2023, whose library calls
``torch.histc`` once a neuron). Arithmetic is float64, and sums of counts, whole numbers, do not depend on their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = {"cpu": 2**16, "cuda": 2**24}
"""Values that are indexed at once: on a CPU they and their indices stay in a core's cache."""


def add_counts(counts: Tensor, values: Tensor, low: Tensor, high: Tensor) -> None:
    """Add finite ``values`` (N,C,P) to ``counts`` (C,B) int64 in place; ``low`` and ``high`` (C,) float64, low < high.

    Beside the counts it needs memory for ``CHUNK`` values, or for those of one neuron.
    """
    neurons, bins = counts.shape
    scale = bins / (high - low)
    step = max(1, CHUNK.get(values.device.type, 2**20) * neurons // max(1, values.numel()))
    step = min(step, 2**30 // bins)  # indices are int32
    first = torch.arange(min(step, neurons), dtype=torch.int32, device=values.device).mul_(bins).view(-1, 1)
    for start in range(0, neurons, step):
        own = slice(start, start + step)
        place = values[:, own].double().sub_(low[own, None]).mul_(scale[own, None]).clamp_(0, bins - 1)
        index = place.to(torch.int32).add_(first[: place.shape[1]]).reshape(-1)
        # Not scatter_add_ to all counts: those of a few neurons stay in the cache, in two thirds of the time.
        counts[own] += torch.bincount(index, minlength=place.shape[1] * bins).view(-1, bins)


def cumulative(counts: Tensor) -> Tensor:
    """Shares of a histogram summed up to each bin, (...,B) to (...,B) float64; every neuron has a count."""
    summed = counts.double().cumsum(-1)
    return summed.div_(summed[..., -1:].clone())


def earth_mover(a: Tensor, b: Tensor) -> Tensor:
    """Earth mover's distance of every neuron, in bins, from two :func:`cumulative` (C,B): (C,) float64."""
    # One fused kernel: the difference is never stored.
    return torch.cdist(a.unsqueeze(1), b.unsqueeze(1), p=1).flatten()


def image_earth_mover(values: Tensor, low: Tensor, high: Tensor, reference: Tensor) -> Tensor:
    """:func:`earth_mover` of one image's ``values`` (C,P) to a reference's :func:`cumulative` (C,B): (C,) float64."""
    neurons, bins = reference.shape
    step = max(1, CHUNK.get(values.device.type, 2**20) // bins)
    out = []
    for start in range(0, neurons, step):
        own = slice(start, start + step)
        counts = torch.zeros_like(reference[own], dtype=torch.int64)
        add_counts(counts, values[None, own], low[own], high[own])
        out.append(earth_mover(cumulative(counts), reference[own]))
    return torch.cat(out)


def normal_frechet(mean_a: Tensor, variance_a: Tensor, mean_b: Tensor, variance_b: Tensor) -> Tensor:
    """Frechet distance of one-dimensional normal distributions, (C,) each to (C,)."""
    return (mean_a - mean_b).square() + (variance_a.sqrt() - variance_b.sqrt()).square()


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> Tensor:
    """|mean_a - mean_b|^2 + Tr(A + B - 2 (A B)^(1/2)) of covariances A, B (C,C) float64: a scalar >= 0.

    With A = R R' and B = S S' the trace of the root is the sum of the singular values of R' S: no root of a product
    that is symmetric only up to rounding.
    """
    mixed = torch.linalg.svdvals(_root(covariance_a).mT @ _root(covariance_b)).sum()
    total = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * mixed
    return torch.clamp(total, min=0)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
