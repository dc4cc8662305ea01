"""Least confident first (Lewis and Gale, "A sequential algorithm for training text classifiers", SIGIR 1994)."""

from __future__ import annotations

from segue.acquire.base import ACQUISITIONS, Acquisition
from segue.acquire.table import F32, RegionTable


@ACQUISITIONS.register("confidence")
class Confidence(Acquisition):
    """Mean of -max p."""

    needs = ("confidence",)

    def score(self, pool: RegionTable) -> F32:
        """The column, reversed."""
        return -pool.statistic("confidence")
