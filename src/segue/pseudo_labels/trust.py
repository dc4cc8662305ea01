"""How far a label is trusted: how often such labels are right on labelled images of a source.

A label is described by its class, by how many other views of its image (mirrored, at other scales) get the same label,
and by its confidence, in octaves of 1 - p: below 0.5, to 0.75, to 0.875, … The share of right ones among the source's
pixels that are described alike is its trust. Where there are few, the prior counts like ``PRIOR_PX`` further pixels:
what all classes together say of this agreement and confidence, its odds times those of the class over those of all.
So a class that the model never says of the source has the trust of all classes.

Without a source the trust is the share of the views that agree, the image itself among them: an order of pixels and no
probability. Knobs that matter: the views, and that the source's images are not those of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.labels import IGNORE, U8
from segue.pseudo_labels.thresholds import CODES, F64, I64, U16

OCTAVES = 14
"""Confidences above 1 - 2^-13 are alike."""
PRIOR_PX = 1000
"""Neighbouring pixels tell little that is new: so many of them weigh as much as what is known otherwise."""
_BITS = 10  # of a code below the exponent


def agreement(classes: U8, views: Sequence[U8]) -> U8:
    """(H, W) number of ``views`` (H, W) that say what ``classes`` (H, W) says."""
    out = np.zeros(classes.shape, np.uint8)
    for view in views:
        out += view == classes
    return out


def octaves(codes: U16) -> U16:
    """0 … OCTAVES - 1: how often 1 - p can be doubled within 0 … 1, of confidences p as codes of any shape."""
    return np.asarray(np.minimum((CODES - 1 - codes) >> _BITS, OCTAVES - 1), np.uint16)


class Trust:
    """Trust by class, agreement of 0 … ``views`` other views, and octave of confidence; from what was added."""

    def __init__(self, num_classes: int, views: int) -> None:
        self.num_classes, self.views = num_classes, views
        self.counts: I64 = np.zeros((2, num_classes, views + 1, OCTAVES), np.int64)
        """(wrong and right, class, agreement, octave) pixels."""

    def add(self, classes: U8, codes: U16, agree: U8, label: U8) -> None:
        """Count the pixels of a source image that have a label; arrays (H, W), codes as ``thresholds.encode``."""
        known = label != IGNORE
        cells = self._cells(classes, codes, agree)[known]
        cells += (label == classes)[known] * (self.counts.size // 2)
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def table(self) -> F64:
        """(C, views + 1, OCTAVES) trust in 0 … 1; the share of agreeing views where nothing was added."""
        if not self.counts.any():
            share = np.arange(1, self.views + 2) / (self.views + 1)
            return np.broadcast_to(share[:, None], self.counts.shape[1:]).copy()
        right, pixels = self.counts[1].astype(np.float64), self.counts.sum(0).astype(np.float64)
        overall = _shrunk(right.sum(), pixels.sum(), 0.5)
        alike = _shrunk(right.sum(0), pixels.sum(0), overall)
        own = _shrunk(right.sum((1, 2)), pixels.sum((1, 2)), overall)
        odds = _odds(alike) * (_odds(own) / _odds(overall))[:, None, None]
        return _shrunk(right, pixels, odds / (1 + odds))

    def weights(self, classes: U8, codes: U16, agree: U8) -> U8:
        """(H, W) uint8 trust of pixels, 255 = certainly right; in the same terms as :meth:`add`."""
        return np.rint(255 * self.table()).astype(np.uint8).ravel()[self._cells(classes, codes, agree)]

    def told(self, names: Sequence[str]) -> dict[str, Any]:
        """What was counted: pixels and share of right ones, by class name and by agreement; None where none were."""
        right, pixels = self.counts[1], self.counts.sum(0)
        return {
            "pixels": dict(zip(names, pixels.sum((1, 2)).tolist(), strict=True)),
            "right": dict(zip(names, _shares(right.sum((1, 2)), pixels.sum((1, 2))), strict=True)),
            "right_by_agreement": _shares(right.sum((0, 2)), pixels.sum((0, 2))),
        }

    def _cells(self, classes: U8, codes: U16, agree: U8) -> npt.NDArray[np.intp]:
        cells = classes.astype(np.intp)
        cells *= self.views + 1
        cells += agree
        cells *= OCTAVES
        cells += octaves(codes)
        return cells


def _shrunk(right: Any, pixels: Any, prior: Any) -> F64:
    return np.asarray((right + PRIOR_PX * prior) / (pixels + PRIOR_PX))


def _odds(share: F64) -> F64:
    return share / (1 - share)


def _shares(right: I64, pixels: I64) -> list[float | None]:
    return [int(r) / int(n) if n else None for r, n in zip(right, pixels, strict=True)]
