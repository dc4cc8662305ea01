"""Where predictions are mixed and unsure at once, the same number in every image.

Xie et al., "Towards Fewer Annotations: Active Learning via Region Impurity and Prediction Uncertainty", CVPR 2022:
score = impurity x uncertainty over the (2k+1)² window around a pixel; impurity is the entropy of the histogram of
predicted classes there, uncertainty the mean pixel entropy, both divided by ln C. Best window first, windows within 2k
of a chosen one are out (:class:`segue.acquire.partition.Windows`). Of regions (k = 1) the window is labelled, of pixels
(k = 32) its centre. On superpixels both are statistics of the region.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig
from segue.acquire.order import places, round_robin
from segue.acquire.partition import Windows
from segue.acquire.table import F32, RegionTable
from segue.labels import U8


class RipuConfig(AcquisitionConfig):
    """Settings of ``ripu_region`` and ``ripu_pixel``."""

    per_image: bool = True
    """Images take turns, as published; false: the best regions of all images."""


@ACQUISITIONS.register("ripu_region")
class RipuRegion(Acquisition):
    """Impurity times uncertainty."""

    Config = RipuConfig
    config: RipuConfig
    needs = ("impurity", "entropy")
    partition = "windows"
    windows = Windows(radius_px=1)

    def score(self, pool: RegionTable) -> F32:
        """The product."""
        return pool.statistic("impurity") * pool.statistic("entropy")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """By score within an image, images in turn."""
        if not self.config.per_image:
            return super().rank(pool, labelled, source, budget_px, rng)
        order = round_robin(pool.image, places(pool.image, -self.score(pool)), np.ones(len(pool.images)))
        return iter(order.tolist())


@ACQUISITIONS.register("ripu_pixel")
class RipuPixel(RipuRegion):
    """The same for single pixels (published: 40 an image in five rounds)."""

    windows = Windows(radius_px=32, label_px=0)


def window_maps(predicted: U8, entropy: npt.NDArray[np.floating], num_classes: int, radius_px: int) -> tuple[F32, F32]:
    """Impurity and uncertainty (H, W), 0 … 1, over the window around each pixel, cut at the border of the picture.

    ``predicted`` (H, W) classes, ``entropy`` (H, W) of pixels / ln C. The score of :class:`Windows` is their product.
    """

    def total(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        size = (2 * radius_px + 1, 2 * radius_px + 1)
        # in float64 the running sums of whole numbers are exact
        return np.asarray(
            cv2.boxFilter(values.astype(np.float64), -1, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
        )

    count = total(np.ones(predicted.shape))
    impurity = np.zeros(predicted.shape)
    for c in np.unique(predicted):
        share = total(predicted == c) / count
        impurity -= share * np.log(np.where(share > 0, share, 1))
    limit = np.log(num_classes)
    return (impurity / limit).astype(np.float32), (total(entropy) / count).astype(np.float32)
