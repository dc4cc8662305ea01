"""What is dense in the target and sparse in the source, class by class.

Wu et al., "D2ADA: Dynamic Density-aware Active Domain Adaptation for Semantic Segmentation", ECCV 2022. Within the
regions predicted as class c the order is that of d = log p_S(z|c) - log p_T(z|c), lowest first. Classes take turns; c
takes w_c regions a turn, w_c = max(1, trunc(log10 KL_c)), and KL_c = -mean d over the class's target regions, labelled
ones too, estimates KL(p_T(z|c) || p_S(z|c)).

The published code takes |mean d|, has no lower end for w_c (a class with w_c <= 0 is never emptied: the selection
hangs), and cuts each class to its best 200 before it removes labelled regions, so that lists run dry. Here the best 200
of every class come first, then the next 200, and so on; regions without a density (of a class that had no mixture) come
last, in random order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from pydantic import Field

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig
from segue.acquire.order import places, round_robin
from segue.acquire.table import RegionTable

F64 = npt.NDArray[np.float64]


class DensityConfig(AcquisitionConfig):
    """Settings of ``density``."""

    best_per_class: int = Field(200, ge=1)
    """Regions of a class that come before any class gives more (published code: 200)."""


@ACQUISITIONS.register("density")
class Density(Acquisition):
    """Weighted round-robin over classes by density difference."""

    Config = DensityConfig
    config: DensityConfig
    needs = ("source_log_density", "target_log_density")
    reads = ("pool", "labelled")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """Regions with a density, then the others at random."""
        d = difference(pool)
        known = np.flatnonzero(~np.isnan(d))
        weight = class_weights(divergence([pool, labelled]))
        group = pool.predicted[known].astype(np.int64)
        place = places(group, d[known])
        block = place // self.config.best_per_class
        for number in range(int(block.max(initial=-1)) + 1):
            part = np.flatnonzero(block == number)
            inner = place[part] - number * self.config.best_per_class
            yield from known[part[round_robin(group[part], inner, weight)]].tolist()
        yield from rng.permutation(np.flatnonzero(np.isnan(d))).tolist()


def difference(table: RegionTable) -> F64:
    """(N,) log p_S - log p_T; NaN without a density, or where both are zero."""
    source, target = (table.statistic(f"{name}_log_density").astype(np.float64) for name in ("source", "target"))
    with np.errstate(invalid="ignore"):
        return source - target


def divergence(tables: list[RegionTable]) -> F64:
    """(C,) estimate of KL(p_T(z|c) || p_S(z|c)) from target regions with finite d; NaN for a class without any."""
    d = np.concatenate([difference(table) for table in tables])
    predicted = np.concatenate([table.predicted for table in tables])
    use, classes = np.isfinite(d), tables[0].num_classes
    count = np.bincount(predicted[use], minlength=classes)
    sums = np.bincount(predicted[use], d[use], classes)
    return np.where(count > 0, -sums / np.maximum(count, 1), np.nan)


def class_weights(kl: F64) -> F64:
    """(C,) regions a turn: the number of digits of KL before the point, less one, and at least 1."""
    return np.maximum(1, np.trunc(np.log10(np.where(kl > 1, kl, 1))))
