"""Uncertain regions with edges, and not many of a kind.

Wu et al., "ReDAL: Region-based and Diversity-aware Active Learning for Point Cloud Semantic Segmentation", ICCV 2021,
in the form that D2ADA's authors gave it for images: score = mean over classes of -p log2 p, plus ``edge_weight`` times
the share of edge pixels. Regions are clustered by embedding; in falling order of score the k-th one of a cluster (k =
0, 1, …) has its score multiplied by decay^k, and the new scores are the order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig, regions_for
from segue.acquire.clusters import kmeans, seeds
from segue.acquire.order import best_first, places
from segue.acquire.table import F32, RegionTable


class RedalConfig(AcquisitionConfig):
    """Settings of ``redal``; defaults are those of the D2ADA authors' baseline."""

    edge_weight: float = Field(0.05, ge=0)
    """Factor of the share of edge pixels."""
    clusters: int = Field(500, ge=1)
    """Kinds of regions."""
    decay: float = Field(0.95, gt=0, le=1)
    """Factor for each better region of the same kind."""


@ACQUISITIONS.register("redal")
class Redal(Acquisition):
    """Entropy and edges, thinned by clusters."""

    Config = RedalConfig
    config: RedalConfig
    needs = ("entropy", "edge", "embedding")

    def score(self, pool: RegionTable) -> F32:
        """Information before thinning."""
        per_class = np.float32(np.log2(pool.num_classes) / pool.num_classes)  # of entropy over its largest value
        return pool.statistic("entropy") * per_class + self.config.edge_weight * pool.statistic("edge")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """By thinned score."""
        points = pool.statistic("embedding")
        kind, _ = kmeans(points, seeds(points, self.config.clusters, rng))
        score = self.score(pool)
        return best_first(score * self.config.decay ** places(kind, -score), 2 * regions_for(pool, budget_px))
