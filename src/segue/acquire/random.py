"""Regions by lot: what every other acquisition must beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segue.acquire.base import ACQUISITIONS, Acquisition
from segue.acquire.table import RegionTable


@ACQUISITIONS.register("random")
class Random(Acquisition):
    """Uniform over regions, whatever their size."""

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """A permutation."""
        yield from rng.permutation(len(pool)).tolist()
