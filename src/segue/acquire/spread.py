"""Rows far apart, one by one: k-means++ seeding and greedy k-centre, in time N (D + C) a row and memory N.

Arthur and Vassilvitskii, "k-means++", SODA 2007 (draw a row by its squared distance to the nearest one drawn);
Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985 (take the farthest). Rows may be outer
products of factors: <a x, b y> = <a, b> <x, y>, so that BADGE's C·D-dimensional gradients never exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from segue.acquire.table import F32, RegionTable

BLOCK = 2048


def spread(
    factors: Sequence[F32],
    rng: np.random.Generator | None,
    nearest: F32 | None = None,
    weight: F32 | None = None,
) -> Iterator[int]:
    """All N rows of the outer product of ``factors`` (N, K_i), each far from those before it.

    ``rng``: drawn by squared distance; None: the farthest, equal ones by row. ``nearest`` (N,): squared distances to
    what is chosen already; without it the first row is that of the largest norm. ``weight`` (N,) multiplies distances.
    """
    norms = np.prod([np.einsum("nk,nk->n", f, f) for f in factors], axis=0)
    value = np.ones_like(norms) if weight is None else weight
    left = norms.copy() if nearest is None else nearest.copy()
    draw = None if nearest is None else rng
    taken = np.zeros(len(norms), bool)
    for number in range(len(norms)):
        row = _next(np.where(taken, -1, left * value), draw)
        yield row
        taken[row] = True
        products = np.prod([f @ f[row] for f in factors], axis=0)
        distance = np.maximum(norms + norms[row] - 2 * products, 0)
        left = distance if nearest is None and number == 0 else np.minimum(left, distance)
        draw = rng


def distance_to(points: F32, table: RegionTable) -> F32:
    """(N,) squared distance of each point to the nearest embedding of a table, in blocks; infinite if it is empty."""
    nearest = np.full(len(points), np.inf, np.float32)
    for others in table.blocks("embedding", BLOCK):
        square = np.einsum("nk,nk->n", others, others)
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            nearest[part] = np.minimum(nearest[part], (square - 2 * points[part] @ others.T).min(1))
    nearest += np.einsum("nk,nk->n", points, points)
    return np.maximum(nearest, 0)


def _next(value: F32, rng: np.random.Generator | None) -> int:
    sums = np.cumsum(np.maximum(value, 0), dtype=np.float64)
    if rng is None or not sums[-1] > 0:  # all that is left lies on chosen rows: the earliest of it
        return int(value.argmax())
    return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(value) - 1)
