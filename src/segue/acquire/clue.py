"""One uncertain region of each kind: k-means weighted by entropy.

Prabhu et al., "Active Domain Adaptation via Clustering Uncertainty-weighted Embeddings", ICCV 2021: as many
clusters as the budget buys regions, points weighted by the entropy of their class probabilities at a temperature. Every
cluster gives its member nearest to the centre, heavy clusters first, then each its second, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig, regions_for
from segue.acquire.clusters import kmeans, seeds
from segue.acquire.order import places, round_robin
from segue.acquire.table import F32, RegionTable


class ClueConfig(AcquisitionConfig):
    """Settings of ``clue``."""

    temperature: float = Field(1.0, gt=0)
    """Of the probabilities before their entropy; higher weighs regions more alike (published baseline: 1)."""
    most_clusters: int = Field(2048, ge=1)
    """Ours: what a large budget may cost in time. Further regions come from the same clusters."""


@ACQUISITIONS.register("clue")
class Clue(Acquisition):
    """Entropy-weighted k-means, nearest to the centres."""

    Config = ClueConfig
    config: ClueConfig
    needs = ("embedding", "prob")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """Cluster after cluster."""
        number = min(max(regions_for(pool, budget_px), 1), self.config.most_clusters)
        points, weight = pool.statistic("embedding"), self.weight(pool)
        kind, distance = kmeans(points, seeds(points, number, rng, weight), weight)
        by_mass = np.argsort(-np.bincount(kind, weight), kind="stable")
        turn = np.argsort(by_mass)[kind]
        yield from round_robin(turn, places(turn, distance), np.ones(len(by_mass))).tolist()

    def weight(self, pool: RegionTable) -> F32:
        """(N,) entropy of the region's probabilities at the temperature, in nats."""
        p = np.maximum(pool.statistic("prob"), 0) ** (1 / self.config.temperature)
        p /= np.maximum(p.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        entropy: F32 = -(p * np.log(np.maximum(p, np.finfo(np.float32).tiny))).sum(1)
        return entropy
