"""What a domain discriminator takes for target (Su et al., "Active Adversarial Domain Adaptation", WACV 2020).

An image's score is w H with the importance w = s / (1 - s), s = P(target), and the entropy H. Of regions, the D2ADA
authors' baseline takes s alone. ``domain_prob`` comes from the discriminator of an adversarial warm-up.
"""

from __future__ import annotations

from segue.acquire.base import ACQUISITIONS, Acquisition
from segue.acquire.table import F32, RegionTable

LEAST = 2.0**-11  # what float16 resolves below 1


@ACQUISITIONS.register("aada_image")
class AadaImage(Acquisition):
    """Importance times entropy."""

    needs = ("domain_prob", "entropy")
    partition = "image"

    def score(self, pool: RegionTable) -> F32:
        """s / (1 - s) H."""
        s = pool.statistic("domain_prob")
        score: F32 = s / (1 - s).clip(LEAST) * pool.statistic("entropy")
        return score


@ACQUISITIONS.register("aada_region")
class AadaRegion(Acquisition):
    """Probability of the target domain."""

    needs = ("domain_prob",)

    def score(self, pool: RegionTable) -> F32:
        """The column."""
        return pool.statistic("domain_prob")
