"""Boundary IoU: how well contours are met (Cheng et al., "Boundary IoU", CVPR 2021, eq. 3).

Of each class, only pixels within d of the contour of its own mask count, in the ground truth and in the prediction; d
is 2 % of the image's diagonal (the paper's value) in pixels, at least 1, in the maximum norm (d erosions by 3x3). The
image's border and ignored pixels count as contour on both sides, and a prediction on an ignored pixel is ignored.
Intersections and unions are summed over the data set. The paper's combined score takes the smaller of IoU and boundary
IoU, because the latter alone cannot see the inside of a mask.

All classes at once: a pixel is inside its mask when the smallest and the largest id in the (2d+1)² window around it are
equal, which costs two separable filters a map, however many classes there are.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from segue.labels import IGNORE, U8
from segue.scoring.matrix import CODES, F64, I64, iou_of, mean_present, pairs

RATIO = 0.02


class Boundary:
    """Counts (C,) of contour pixels: ``right``, ``truth``, ``predicted``."""

    def __init__(self, num_classes: int, ratio: float = RATIO) -> None:
        self.num_classes, self.ratio = num_classes, ratio
        self.right, self.truth, self.predicted = (np.zeros(num_classes, np.int64) for _ in range(3))

    def add(self, label: U8, prediction: U8) -> None:
        """Count one image: (H, W) train ids, 255 = ignored in the label, no class in the prediction."""
        distance = max(1, round(self.ratio * float(np.hypot(*label.shape))))
        seen = np.where(label == IGNORE, np.uint8(IGNORE), prediction)
        table: I64 = pairs(contour(label, distance), contour(seen, distance))
        classes = self.num_classes
        self.right += np.diagonal(table)[:classes]
        self.truth += table[:classes].sum(1)
        self.predicted += table[:, :classes].sum(0)

    def iou(self) -> F64:
        """(C,) boundary IoU, NaN for a class that is neither in the ground truth nor predicted."""
        return iou_of(self.right, self.truth, self.predicted)


def contour(ids: U8, distance: int) -> U8:
    """(H, W) ids where another id, 255 or the outside lies within ``distance`` in the maximum norm, else 255."""
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    low, high = (f(ids, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=CODES - 1) for f in (cv2.erode, cv2.dilate))
    out: U8 = np.where(low != high, ids, np.uint8(IGNORE))
    return out


def to_dict(boundary: Boundary, iou: dict[str, float], classes: tuple[str, ...]) -> dict[str, Any]:
    """Plain containers: boundary IoU of the classes of ``iou``, their mean, and the mean of the smaller of the two."""
    own = dict(zip(classes, boundary.iou().tolist(), strict=True))
    values = np.array([own[name] for name in iou])
    smaller = np.minimum(values, np.array(list(iou.values())))
    return {
        "mean": mean_present(values),
        "mean_smaller": mean_present(smaller),
        "iou": {name: own[name] for name in iou},
        "dilation_ratio": boundary.ratio,
    }
