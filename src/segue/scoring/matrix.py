"""Confusion matrix and the scores read from it: intersection over union as ``cityscapesscripts`` computes it.

IoU of class c is tp / (tp + fp + fn); fp counts only on labelled pixels. A class whose denominator is 0 (no labelled
pixel of it, and predicted on no labelled pixel) is *absent*: NaN, in no mean. A class without ground truth that is
predicted somewhere scores 0 and is in the mean, in cityscapesscripts and here. Accuracy of a class is tp / (tp + fn),
NaN without ground truth.

A *view* is a subset of rows of the full matrix: the classes whose IoUs are averaged. The network may still predict the
others, and their ground-truth pixels still count as false positives, so mIoU16 = mIoU19 * 19/16 when the three left-out
classes score 0. The view ``NAME-lenient`` averages the same classes over the pixels of their own ground truth alone, as
evaluators do that map the other ids to ignore: its scores are never lower, and are no substitute for the strict ones.

Scores are fractions (0..1) everywhere; only people are shown percent. This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from segue.labels import IGNORE, LabelSpace

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
CODES = 256
LENIENT = "-lenient"
EXACT_PX = 1 << 24  # float32 counts whole numbers up to here, and cv2's histograms are float32


class TensorLike(Protocol):
    """What is used of a ``torch.Tensor`` here, so that torch need not be imported."""

    def detach(self) -> Any:
        """The same values without a graph."""


@dataclass(frozen=True)
class Scores:
    """Scores of one view, fractions 0..1, NaN where a class is absent.

    ``miou`` and ``mean_accuracy`` average over the present classes of the view; ``accuracy`` is the share of the
    labelled pixels of the view's classes that are predicted right; ``iou`` and ``class_accuracy`` are by class name.
    """

    view: str
    protocol: str
    miou: float
    accuracy: float
    mean_accuracy: float
    iou: dict[str, float]
    class_accuracy: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; NaN becomes None."""
        return {
            "protocol": self.protocol,
            "view": self.view,
            "miou": _plain(self.miou),
            "accuracy": _plain(self.accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "iou": {k: _plain(v) for k, v in self.iou.items()},
            "class_accuracy": {k: _plain(v) for k, v in self.class_accuracy.items()},
        }


class Confusion:
    """Counts of (ground truth, prediction) pairs over labelled pixels.

    ``counts`` (C, C+1) int64: rows are ground truth, columns predictions; the last column holds predictions that are no
    class of the space (such as 255), which are misses of their row. ``+`` adds the counts of shards or ranks.
    """

    def __init__(self, num_classes: int, counts: I64 | None = None) -> None:
        if not 0 < num_classes < IGNORE:
            raise ValueError(f"a confusion matrix needs 1 to 254 classes, not {num_classes}")
        self.num_classes = num_classes
        shape = (num_classes, num_classes + 1)
        self.counts: I64 = np.zeros(shape, np.int64) if counts is None else np.asarray(counts, np.int64)
        if self.counts.shape != shape:
            raise ValueError(f"counts of {num_classes} classes have shape {shape}, not {self.counts.shape}")

    @property
    def matrix(self) -> I64:
        """(C, C) counts without the predictions that are no class."""
        return self.counts[:, :-1]

    def add(self, label: npt.ArrayLike | TensorLike, prediction: npt.ArrayLike | TensorLike) -> Confusion:
        """Count one image or batch (train ids of equal shape, arrays or tensors) and return the counts of it alone.

        Pixels labelled 255 are left out. ``ValueError`` for other labels outside the space or unequal shapes.
        """
        counts = count(as_uint8(label, "label"), as_uint8(prediction, "prediction"), self.num_classes)
        self.counts += counts
        return Confusion(self.num_classes, counts)

    def __add__(self, other: Confusion) -> Confusion:
        """The counts of both; neither changes."""
        if self.num_classes != other.num_classes:
            raise ValueError(f"cannot add confusions of {self.num_classes} and {other.num_classes} classes")
        return Confusion(self.num_classes, self.counts + other.counts)

    def sums(self) -> tuple[I64, I64, I64]:
        """Each (C,): pixels predicted right, pixels of ground truth, predictions on labelled pixels."""
        return np.diagonal(self.matrix).copy(), self.counts.sum(1), self.matrix.sum(0)

    def only(self, rows: Sequence[int]) -> Confusion:
        """The counts of pixels whose ground truth is one of ``rows``; as if all others were ignored."""
        counts = np.zeros_like(self.counts)
        counts[list(rows)] = self.counts[list(rows)]
        return Confusion(self.num_classes, counts)

    def scores(
        self, space: LabelSpace, view: str = "all", protocol: str = "native", absent: float | None = None
    ) -> Scores:
        """Scores of a view of the label space; ``LabelError`` for an unknown view, ``ValueError`` for a wrong space.

        ``absent``: IoU that the protocol gives a class without any ground truth (None: NaN when it is not predicted
        either, else 0).
        """
        if len(space) != self.num_classes:
            raise ValueError(
                f"label space {space.name!r} has {len(space)} classes, the confusion matrix {self.num_classes}"
            )
        rows, lenient = view_rows(space, view)
        return (self.only(rows) if lenient else self).scores_of(space, rows, view, protocol, absent)

    def scores_of(
        self, space: LabelSpace, rows: Sequence[int], view: str, protocol: str, absent: float | None = None
    ) -> Scores:
        """Scores of the classes ``rows``, which are called ``view``; otherwise as :meth:`scores`."""
        names = [space.classes[r] for r in rows]
        right, truth, predicted = (s[list(rows)] for s in self.sums())
        iou = iou_of(right, truth, predicted)
        if absent is not None:
            iou[truth == 0] = absent
        accuracy = ratio(right, truth)
        return Scores(
            view=view,
            protocol=protocol,
            miou=mean_present(iou),
            accuracy=float(ratio(right.sum(), truth.sum())),
            mean_accuracy=mean_present(accuracy),
            iou=dict(zip(names, iou.tolist(), strict=True)),
            class_accuracy=dict(zip(names, accuracy.tolist(), strict=True)),
        )


def view_rows(space: LabelSpace, view: str) -> tuple[list[int], bool]:
    """Train ids of a view, and whether it is lenient; ``LabelError`` for an unknown one."""
    lenient = view.endswith(LENIENT) and view not in space.views
    return list(space.view(view.removesuffix(LENIENT) if lenient else view)), lenient


def count(label: U8, prediction: U8, num_classes: int) -> I64:
    """(C, C+1) counts of two uint8 arrays of equal shape, see :class:`Confusion`."""
    return classes_of(pairs(label, prediction), num_classes)


def pairs(label: U8, prediction: U8) -> I64:
    """(256, 256) counts of (label, prediction) values of two uint8 arrays of equal shape."""
    if label.shape != prediction.shape:
        raise ValueError(f"label is {label.shape} and prediction {prediction.shape}: they must have the same shape")
    # A joint histogram in one pass: no mask of ignored pixels, no copy, and wrong labels are found for free.
    table = np.zeros((CODES, CODES), np.int64)
    flat = label.reshape(1, -1), prediction.reshape(1, -1)
    for start in range(0, label.size, EXACT_PX):
        part = [a[:, start : start + EXACT_PX] for a in flat]
        table += cv2.calcHist(part, [0, 1], None, [CODES, CODES], [0, CODES, 0, CODES]).astype(np.int64)
    return table


def classes_of(table: I64, num_classes: int) -> I64:
    """(C, C+1) counts from those of :func:`pairs`; ``ValueError`` for labels outside the space."""
    wrong = np.flatnonzero(table[num_classes:IGNORE].any(1)) + num_classes
    if wrong.size:
        raise ValueError(f"labels {wrong[:8].tolist()} are no train ids of {num_classes} classes (255 is ignore)")
    counts = np.empty((num_classes, num_classes + 1), np.int64)
    counts[:, :-1] = table[:num_classes, :num_classes]
    counts[:, -1] = table[:num_classes, num_classes:].sum(1)
    return counts


def as_uint8(value: npt.ArrayLike | TensorLike, what: str) -> U8:
    """Train ids in any integer type, array or tensor, as a uint8 array; ``ValueError`` outside 0..255."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype == np.uint8:
        out: U8 = array
        return out
    if array.dtype.kind not in "iu":
        raise ValueError(f"{what} must hold integer train ids, not {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= CODES):
        raise ValueError(f"{what} holds ids outside 0..255")
    return array.astype(np.uint8)


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> F64:
    """part / whole, NaN where whole is 0."""
    whole_array = np.asarray(whole, np.float64)
    out: F64 = np.full(whole_array.shape, np.nan)
    np.divide(np.asarray(part, np.float64), whole_array, out=out, where=whole_array != 0)
    return out


def iou_of(right: npt.ArrayLike, truth: npt.ArrayLike, predicted: npt.ArrayLike) -> F64:
    """IoU from pixels predicted right, of ground truth, and predicted (any equal shapes); NaN for absent classes."""
    r = np.asarray(right, np.float64)
    return ratio(r, np.asarray(truth, np.float64) + np.asarray(predicted, np.float64) - r)


def mean_present(values: F64 | Sequence[float]) -> float:
    """Mean of what is not NaN; NaN when nothing is left."""
    array = np.asarray(values, np.float64)
    present = array[~np.isnan(array)]
    return float(present.mean()) if present.size else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
