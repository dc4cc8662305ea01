"""Cover the feature space: always the region farthest from all that has a label.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm 1
(greedy k-centre, L2), starting from source and labelled regions. The published baselines could not hold the distances
of a million regions; here only the nearest one is kept, and a sample of the source stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig
from segue.acquire.spread import distance_to, spread
from segue.acquire.table import RegionTable


class CoverConfig(AcquisitionConfig):
    """Settings of ``core_set`` and ``diversity``."""

    source_regions: int = Field(20_000, ge=0)
    """Source regions that count as covered, drawn once a round (ours: time grows with it)."""


class Cover(Acquisition):
    """Base: far from source, labelled and each other."""

    Config = CoverConfig
    config: CoverConfig
    needs = ("embedding",)
    reads = ("pool", "labelled", "source")
    by_lot: bool

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """One region after the other."""
        points = pool.statistic("embedding")
        number = min(self.config.source_regions, len(source))
        sample = source.take(np.sort(rng.choice(len(source), number, replace=False)))
        covered = [distance_to(points, table) for table in (labelled, sample) if len(table)]
        nearest = np.min(covered, axis=0) if covered else None
        return spread([points], rng if self.by_lot else None, nearest)


@ACQUISITIONS.register("core_set")
class CoreSet(Cover):
    """The farthest region."""

    by_lot = False
