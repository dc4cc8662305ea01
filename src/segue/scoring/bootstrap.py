"""Per-image counts on disk, and how far an mIoU could move if other images had been drawn.

The dataset mIoU depends on the images only through three sums a class (right, ground truth, predicted), so (N, C)
arrays of these are all a bootstrap needs: 500 images of 19 classes are 114 kB. Paired bootstrap over images: both
models are scored on the same resample (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, ch. 13,
percentile interval). It covers the choice of the images and nothing else: not the seed of the training, and
neighbouring frames of a video are less than independent. This module imports no torch.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segue.errors import UserError
from segue.files import replacing
from segue.scoring.matrix import F64, iou_of, ratio

U32 = npt.NDArray[np.uint32]
LEVEL = 0.9
CHUNK = 250  # resamples at a time: bounds the memory of 254 classes and thousands of images


@dataclass(frozen=True)
class PerImage:
    """Counts of every image of one evaluation: ``right``, ``truth``, ``predicted`` (N, C) uint32, labelled pixels only.

    ``rows`` are the train ids of the scoring view that ``miou`` averages.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    right: U32
    truth: U32
    predicted: U32
    rows: tuple[int, ...]

    def scores(self) -> F64:
        """(N,) mIoU of each image over the view's classes that its own ground truth holds; NaN without any.

        A class that is only predicted is left out here, unlike in the dataset's mIoU: one stray pixel would
        otherwise halve the score of a small picture.
        """
        rows = list(self.rows)
        iou = iou_of(self.right, self.truth, self.predicted)[:, rows]
        present = self.truth[:, rows] > 0
        return ratio(np.where(present, np.nan_to_num(iou), 0.0).sum(1), present.sum(1))

    def worst(self, count: int) -> list[tuple[str, float]]:
        """(id, mIoU) of the lowest-scoring images, lowest first; images without ground truth are left out."""
        scores = self.scores()
        order = [i for i in np.argsort(scores, kind="stable").tolist() if not math.isnan(scores[i])]
        return [(self.ids[i], float(scores[i])) for i in order[:count]]

    def miou(self, weights: F64) -> F64:
        """(n,) dataset mIoU of each of n resamples; ``weights`` (n, N) says how often each image was drawn."""
        rows = list(self.rows)
        sums = [weights @ a[:, rows].astype(np.float64) for a in (self.right, self.truth, self.predicted)]
        iou = iou_of(*sums)
        return ratio(np.nansum(iou, 1), (~np.isnan(iou)).sum(1))


@dataclass(frozen=True)
class Interval:
    """A number with its percentile interval: ``value`` on all images, ``low`` and ``high`` at ``level``; fractions."""

    value: float
    low: float
    high: float
    level: float
    num_images: int


def interval(a: PerImage, n: int = 1000, seed: int = 0, level: float = LEVEL) -> Interval:
    """Bootstrap interval of one evaluation's mIoU over ``n`` resamples of its images."""
    return _interval([a], n, seed, level)


def paired_interval(a: PerImage, b: PerImage, n: int = 1000, seed: int = 0, level: float = LEVEL) -> Interval:
    """Bootstrap interval of mIoU(b) - mIoU(a), on the same resamples; ``ValueError`` unless the images are equal."""
    if a.ids != b.ids or a.rows != b.rows or a.classes != b.classes:
        raise ValueError("a paired comparison needs two evaluations of the same images, classes and view")
    return _interval([b, a], n, seed, level)


def _interval(terms: Sequence[PerImage], n: int, seed: int, level: float) -> Interval:
    count = len(terms[0].ids)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, level, 0)
    rng = np.random.default_rng(seed)
    chunks = []
    for start in range(0, n, CHUNK):
        weights = rng.multinomial(count, [1 / count] * count, min(CHUNK, n - start)).astype(np.float64)
        chunks.append(_difference(terms, weights))
    draws = np.concatenate(chunks)
    draws = draws[~np.isnan(draws)]
    value = float(_difference(terms, np.ones((1, count)))[0])
    if draws.size == 0:
        return Interval(value, math.nan, math.nan, level, count)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, count)


def _difference(terms: Sequence[PerImage], weights: F64) -> F64:
    first = terms[0].miou(weights)
    return first - terms[1].miou(weights) if len(terms) > 1 else first


def write_per_image(per_image: PerImage, path: Path) -> None:
    """Write a compressed .npz of plain arrays: ids, classes, right, truth, predicted, rows. No pickle."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            ids=np.array(per_image.ids, dtype=np.str_),
            classes=np.array(per_image.classes, dtype=np.str_),
            right=per_image.right,
            truth=per_image.truth,
            predicted=per_image.predicted,
            rows=np.array(per_image.rows, np.int64),
        )


def read_per_image(path: Path) -> PerImage:
    """Read what :func:`write_per_image` wrote; ``UserError`` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as data:
            out = PerImage(
                tuple(data["ids"].tolist()),
                tuple(data["classes"].tolist()),
                data["right"].astype(np.uint32),
                data["truth"].astype(np.uint32),
                data["predicted"].astype(np.uint32),
                tuple(data["rows"].tolist()),
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} holds no per-image scores: {error}") from error
    shape = (len(out.ids), len(out.classes))
    in_range = all(isinstance(r, int) and 0 <= r < shape[1] for r in out.rows)
    if not in_range or any(a.shape != shape for a in (out.right, out.truth, out.predicted)):
        raise UserError(f"{path} holds arrays that do not fit together")
    return out
