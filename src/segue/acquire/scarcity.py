"""Uncertain regions of classes that have been seen little.

The Euclidean form of Franco et al., "Hyperbolic Active Learning for Semantic Segmentation under Domain Shift" (HALO),
ICML 2024, whose hyperbolic radius is reported to follow how scarce a class is: score = u (-ln f_c), u the mean entropy,
f_c the share of the predicted class among source and labelled pixels (every class counts one average region more than
it has).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segue.acquire.base import ACQUISITIONS, Acquisition, regions_for
from segue.acquire.order import best_first
from segue.acquire.table import RegionTable


@ACQUISITIONS.register("scarcity")
class Scarcity(Acquisition):
    """Entropy times scarcity of the predicted class."""

    needs = ("entropy",)
    reads = ("pool", "labelled", "source")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """By the product."""
        predicted = np.concatenate([source.predicted, labelled.predicted])
        area_px = np.concatenate([source.area_px, labelled.area_px])
        seen_px = np.bincount(predicted, area_px, pool.num_classes) + (area_px.mean() if len(area_px) else 1)
        scarcity = -np.log(seen_px / seen_px.sum())
        return best_first(pool.statistic("entropy") * scarcity[pool.predicted], 2 * regions_for(pool, budget_px))
