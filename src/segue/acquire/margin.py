"""Closest call first: the two most probable classes (Scheffer et al., "Active hidden Markov models", IDA 2001)."""

from __future__ import annotations

from segue.acquire.base import ACQUISITIONS, Acquisition
from segue.acquire.table import F32, RegionTable


@ACQUISITIONS.register("margin")
class Margin(Acquisition):
    """Mean of -(p1 - p2)."""

    needs = ("margin",)

    def score(self, pool: RegionTable) -> F32:
        """The column, reversed."""
        return -pool.statistic("margin")
