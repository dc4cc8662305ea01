"""Large and different gradients: k-means++ on what the classifier would learn from its own guess.

Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR 2020, algorithm 1. A region's
gradient is g = (p - onehot(argmax p)) ⊗ z. Because <g_i, g_j> = <a_i, a_j> <z_i, z_j>, the N x (C·D) matrix never
exists. The first region is that of the largest |g|, the others are drawn by squared distance to the nearest chosen one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segue.acquire.base import ACQUISITIONS, Acquisition
from segue.acquire.spread import spread
from segue.acquire.table import RegionTable


@ACQUISITIONS.register("badge")
class Badge(Acquisition):
    """k-means++ on gradient embeddings."""

    needs = ("embedding", "prob")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """One seed after the other."""
        residual = pool.statistic("prob")
        residual[np.arange(len(pool)), residual.argmax(1)] -= 1
        return spread([residual, pool.statistic("embedding")], rng)
