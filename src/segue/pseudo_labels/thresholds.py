"""How sure a model must be of a pixel for each class: thresholds from streamed counts, and what they keep.

The rule of FDA (Yang & Soatto, CVPR 2020, section 3.3; official ``getSudoLabel_multi``): of the n pixels that are
predicted as a class, sorted by confidence p from below, the one at place round(quantile n) gives the threshold, which
is at most ``cap``; pixels with p below it have no label. The published code sorts all confidences of all images; here
they are counted by a 16-bit code, so memory is constant and counts of shards add up bit for bit.

A code holds the bits of 1 - p as a float16. These order numbers as their values do, so the place in the order is exact
and only the value is rounded: by 2^-11 of 1 - p, and by less than float32 itself where p is above 1 - 2^-13. The sign
bit, free in a code, marks pixels that another rule has refused: they count for the thresholds, and get no label.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segue.errors import UserError
from segue.labels import IGNORE, U8

U16 = npt.NDArray[np.uint16]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

CODES = 0x3C00 + 1
"""Float16 bits of 0 … 1."""
REFUSED = np.uint16(0x8000)
"""The bit of a code that is above every limit."""


def encode(confidence: npt.ArrayLike | Tensor) -> U16:
    """Codes of probabilities of any shape, on any device; 0 is certain. ``UserError`` outside 0..1 and for NaN."""
    unsure = (1 - torch.as_tensor(confidence)).half().cpu()
    codes = unsure.view(torch.int16).numpy().view(np.uint16)
    if codes.max(initial=0) >= CODES:  # a sign bit, infinity and NaN are above
        raise UserError("confidences lie between 0 and 1, these do not: has the model diverged?")
    return codes


def decode(codes: npt.ArrayLike) -> F64:
    """The probabilities that codes stand for."""
    return 1 - np.asarray(codes, np.uint16).view(np.float16).astype(np.float64)


class Histogram:
    """Counts (C, CODES) of pixels by predicted class and code. ``+`` adds the counts of shards or ranks."""

    def __init__(self, num_classes: int, counts: I64 | None = None) -> None:
        self.num_classes = num_classes
        self.counts: I64 = np.zeros((num_classes, CODES), np.int64) if counts is None else counts

    def add(self, classes: U8, confidence: npt.ArrayLike | Tensor) -> None:
        """Count pixels by predicted train ids and largest probabilities of equal shape."""
        self.add_codes(classes, encode(confidence))

    def add_codes(self, classes: U8, codes: U16) -> I64:
        """Count pixels, refused ones too, and return how many each class has here, (C,).

        ``ValueError`` for other classes than 0 … C-1 or unequal shapes.
        """
        if classes.shape != codes.shape or classes.max(initial=0) >= self.num_classes:
            raise ValueError(f"{classes.shape} classes below {self.num_classes} and {codes.shape} codes do not fit")
        if codes.max(initial=0) >= REFUSED:
            codes = codes & ~REFUSED
        cells = classes.astype(np.int32)
        cells *= CODES
        cells += codes
        # numpy's bincount would first widen every cell to 64 bits
        counted = torch.bincount(torch.from_numpy(cells.ravel()), minlength=self.counts.size).numpy()
        counted = counted.reshape(self.counts.shape)
        self.counts += counted
        return np.asarray(counted.sum(1))

    def __add__(self, other: Histogram) -> Histogram:
        """The counts of both; neither changes."""
        if self.num_classes != other.num_classes:
            raise ValueError(f"cannot add counts of {self.num_classes} and {other.num_classes} classes")
        return Histogram(self.num_classes, self.counts + other.counts)

    def pixels(self) -> I64:
        """(C,) pixels predicted as each class."""
        return np.asarray(self.counts.sum(1))

    def kept(self, thresholds: F64) -> I64:
        """(C,) pixels that (C,) thresholds keep."""
        places = np.arange(CODES) <= limits(thresholds)[: self.num_classes, None]
        return np.asarray((self.counts * places).sum(1))


def published(histogram: Histogram, quantile: float | Sequence[float], cap: float) -> F64:
    """(C,) thresholds by FDA's rule, of one quantile or one for each class; 0 for a class that is never predicted.

    Where the published index lies behind the last pixel (n = 1, or a quantile of nearly 1) the last one is taken.
    """
    out = np.zeros(histogram.num_classes)
    quantiles = np.broadcast_to(quantile, histogram.num_classes).tolist()
    for c, (counts, n) in enumerate(zip(histogram.counts, histogram.pixels().tolist(), strict=True)):
        if n:
            above = n - 1 - min(round(quantiles[c] * n), n - 1)
            out[c] = decode(np.searchsorted(np.cumsum(counts), above, side="right"))
    return np.asarray(np.minimum(out, cap))


def limits(thresholds: F64) -> U16:
    """(256,) largest code that is kept of each train id."""
    out = np.zeros(IGNORE + 1, np.uint16)
    out[: len(thresholds)] = encode(thresholds)
    return out


def apply(classes: U8, codes: U16, limits: U16) -> U8:
    """(H, W) train ids with 255 where the code is above the limit of the predicted class."""
    unsure = cv2.compare(codes, cv2.LUT(classes, limits), cv2.CMP_GT)  # 255 where true
    return np.asarray(cv2.bitwise_or(classes, unsure), np.uint8)
