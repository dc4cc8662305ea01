"""Unlike what is known, by lot: k-means++ seeds on region embeddings, source and labelled regions being seeds already.

Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007. Against ``core_set`` it is robust
to outliers: a region is drawn by its squared distance to the nearest known one, the farthest is only the likeliest.
"""

from __future__ import annotations

from segue.acquire.base import ACQUISITIONS
from segue.acquire.core_set import Cover


@ACQUISITIONS.register("diversity")
class Diversity(Cover):
    """Drawn by squared distance."""

    by_lot = True
