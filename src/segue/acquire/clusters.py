"""Weighted k-means by Lloyd's steps in blocks: time N K D a step, memory N + K D, never N x K.

Lloyd, "Least squares quantization in PCM", 1982. Starts are k-means++ seeds (:mod:`segue.acquire.spread`).
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from segue.acquire.spread import BLOCK, spread
from segue.acquire.table import F32, I64


def seeds(points: F32, number: int, rng: np.random.Generator, weight: F32 | None = None) -> F32:
    """(K, D) rows to start from, at most N of them."""
    return points[list(islice(spread([points], rng, weight=weight), number))]


def kmeans(points: F32, centres: F32, weight: F32 | None = None, iterations: int = 20) -> tuple[I64, F32]:
    """Cluster of each point (N,) and its squared distance to that centre, from starting ``centres`` (K, D).

    Ends when no point moves, or after ``iterations``. A cluster that loses all its weight keeps its centre.
    """
    weight = np.ones(len(points), np.float32) if weight is None else weight
    labels, distance = _nearest(points, centres)
    for _ in range(iterations):
        mass = np.bincount(labels, weight, len(centres))
        sums = np.stack([np.bincount(labels, weight * x, len(centres)) for x in points.T], 1)
        moved = sums / np.where(mass > 0, mass, 1)[:, None]
        centres = np.where(mass[:, None] > 0, moved, centres).astype(np.float32)
        before = labels
        labels, distance = _nearest(points, centres)
        if (labels == before).all():
            break
    return labels, distance


def _nearest(points: F32, centres: F32) -> tuple[I64, F32]:
    labels, distance = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    square = np.einsum("kd,kd->k", centres, centres)
    for start in range(0, len(points), BLOCK):
        part = slice(start, start + BLOCK)
        block = points[part]
        all_distances = square - 2 * block @ centres.T
        labels[part] = all_distances.argmin(1)
        distance[part] = all_distances.min(1) + np.einsum("nd,nd->n", block, block)
    return labels, np.maximum(distance, 0)
