"""Most uncertain first: mean pixel entropy (the uncertain half of D2ADA, Wu et al., ECCV 2022)."""

from __future__ import annotations

from segue.acquire.base import ACQUISITIONS, Acquisition
from segue.acquire.table import F32, RegionTable


@ACQUISITIONS.register("entropy")
class Entropy(Acquisition):
    """Mean of -sum p ln p."""

    needs = ("entropy",)

    def score(self, pool: RegionTable) -> F32:
        """The column."""
        return pool.statistic("entropy")
