"""A drift alarm on the distances of single images to a source, with a stated rate of false alarms.

Windows of a stream, one after the other and without overlap, are each compared with *calibration* images: images of the
source that its reference fingerprint was not made of. When a window's images are like those, that is, exchangeable with
them, it raises an alarm with probability ``rate`` at most, whatever the network and however its distances are
distributed. This holds over the choice of the calibration images; windows of one stream share them, so the expected
number of false alarms in K windows is K times ``rate`` at most, but they are not independent.

The test is the permutation form of the multivariate rank sum test (Puri and Sen, "Nonparametric Methods in Multivariate
Analysis", 1971): distances of every layer are ranked over window and calibration together; the statistic is the squared
length of the window's sum of ranks, whitened by their covariance over all these images; p is the share of the ways to
choose so many of them that give as much or more. Where these ways are many, p is of a random sample which the window
itself belongs to, and is as valid (Phipson and Smyth 2010). It has two sides: images nearer than the source's own are
drift, and so is one layer that moves against the others.

Knob: ``window``. Twice as many images find about 1.4 times smaller a shift, twice as late.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from segue.gap.between import ImageSet, fingerprint_of
from segue.gap.distances import ImageDistances, image_distances
from segue.gap.errors import GapError
from segue.gap.fingerprint import Histogram
from segue.gap.networks import Extractor

F64 = npt.NDArray[np.float64]
WINDOW = 20
RATE = 0.01
LOWEST_RATE = 1e-4
EXCEEDING = 100
"""Sampled ways expected at or above the bar where there is no drift: the sample moves a rate by a tenth of it."""
MOST_WAYS = 100_000
RIDGE = 0.01
"""Added to the variance 1 of ranks: a layer that repeats another has no say of its own."""


@dataclass(frozen=True)
class Window:
    """Images ``first`` to ``last`` (counted from 0) of a stream: their mean distance, p-value, and if it is an alarm.

    ``layer`` moved most, by ``deviation`` standard errors of its mean rank, above 0 when farther than the source's own.
    """

    first: int
    last: int
    distance: float
    p: float
    alarm: bool
    layer: str
    deviation: float


def needed(window: int, rate: float) -> int:
    """The smallest number of calibration images: as many as a window, and enough for p-values as low as ``rate``.

    Of one layer, the farthest and the nearest images are alike extreme.
    """
    images = window
    while math.comb(images + window, window) < 2 / rate:
        images += 1
    return images


class Watch:
    """Compares windows with the distances of calibration images: ``images`` of them, ``distance`` in the mean."""

    def __init__(self, calibration: ImageDistances, window: int = WINDOW, rate: float = RATE) -> None:
        """``GapError`` for settings out of range and for too few calibration images, with the number that is needed."""
        images = len(calibration.numbers)
        _check(images, window, rate)
        self.images, self.window, self.rate = images, window, rate
        self.layers = tuple(calibration.layers)
        self.distance = float(calibration.numbers.mean())
        self._calibration = _matrix(calibration)
        self._ways = _ways(window + images, window, rate)

    def judge(self, images: ImageDistances, first: int = 0) -> Window:
        """One window: the distances of ``window`` images, on the calibration's layers (``GapError`` otherwise)."""
        if tuple(images.layers) != self.layers:
            raise GapError("calibration and stream have different layers: measure both with one network and layers")
        if len(images.numbers) != self.window:
            raise GapError(f"a window has {self.window} images, not {len(images.numbers)}")
        scores = _scores(np.concatenate([_matrix(images), self._calibration]))
        every, own = len(scores), self.window
        whitened = scores @ np.linalg.inv(np.linalg.cholesky(_covariance(scores))).T
        length = np.square(sum(whitened[place] for place in self._ways.T)).sum(1)
        p = float((length >= length[0] * (1 - 1e-9)).mean())  # the same images in another order are as far
        moved = scores[:own].mean(0) / math.sqrt((1 / own - 1 / every) * every / (every - 1))
        most = int(np.abs(moved).argmax())
        mean = float(images.numbers.mean())
        last = first + own - 1
        return Window(first, last, mean, p, p <= self.rate, self.layers[most], float(moved[most]))

    def windows(self, stream: ImageDistances) -> Iterator[Window]:
        """All full windows of a stream in its order; images after the last one are left out."""
        for first in range(0, len(stream.numbers) - self.window + 1, self.window):
            own = slice(first, first + self.window)
            part = ImageDistances(stream.numbers[own], {name: v[own] for name, v in stream.layers.items()})
            yield self.judge(part, first)


@dataclass(frozen=True)
class Calibrated:
    """An alarm that is ready for images: the network, the source's fingerprint, and the distances of other images."""

    extractor: Extractor
    reference: Histogram
    watch: Watch

    def windows(self, stream: ImageSet) -> Iterator[Window]:
        """Judge a stream in its order, window by window as its images are read; ``GapError`` where none is full."""
        chosen, size = stream.indices, self.watch.window
        require_window(len(chosen), size)
        for first in range(0, len(chosen) - size + 1, size):
            batches = stream.batches(self.extractor, chosen[first : first + size])
            yield self.watch.judge(image_distances(self.extractor.probe, self.reference, batches), first)


def calibrate(extractor: Extractor, source: ImageSet, window: int = WINDOW, rate: float = RATE) -> Calibrated:
    """An alarm from images of the source: a random half makes the reference, the other half calibrates.

    ``GapError`` as :class:`Watch`, before anything is read.
    """
    chosen = source.indices
    order = np.random.default_rng(0).permutation(len(chosen)).tolist()
    half = len(order) // 2
    if not half:
        raise GapError(f"an alarm needs more images of the source than {len(chosen)}")
    _check(len(order) - half, window, rate)
    first, second = (sorted(chosen[k] for k in part) for part in (order[:half], order[half:]))
    reference = fingerprint_of(extractor, source, indices=first)
    assert isinstance(reference, Histogram)
    distances = image_distances(extractor.probe, reference, source.batches(extractor, second))
    return Calibrated(extractor, reference, Watch(distances, window, rate))


def require_window(images: int, window: int) -> None:
    """``GapError`` when the images of a stream fill no window."""
    if images < window:
        raise GapError(f"the stream has {images} images, which fill no window of {window}: choose a smaller one")


def _check(images: int, window: int, rate: float) -> None:
    if window < 1 or not LOWEST_RATE <= rate <= 0.5:
        raise GapError(f"an alarm needs a window of 1 image at least and a rate from {LOWEST_RATE} to 0.5")
    if images < (least := needed(window, rate)):
        raise GapError(
            f"{images} calibration images are too few for windows of {window} images at a rate of {rate}: {least} are "
            f"needed and {10 * window} are better (of a source that is given whole, half are for calibration)"
        )


def _matrix(images: ImageDistances) -> F64:
    return np.stack([values.double().numpy() for values in images.layers.values()], 1)


@lru_cache(4)
def _ways(images: int, window: int, rate: float) -> npt.NDArray[np.int64]:
    """Ways to choose a window (W,window) of numbers below ``images``, all or a sample; the first is 0, 1, 2, …"""
    most = min(round(EXCEEDING / rate), MOST_WAYS)
    if math.comb(images, window) <= most:
        return np.array(list(combinations(range(images), window)))
    generator = np.random.default_rng(0)
    ways = np.empty((most, window), np.int64)
    step = max(1, 2**22 // images)
    for start in range(0, most, step):
        part = ways[start : start + step]
        part[:] = generator.random((len(part), images)).argpartition(window, 1)[:, :window]
    ways[0] = np.arange(window)
    return ways


def _scores(values: F64) -> F64:
    """Ranks (N,L) in each column, equal values share theirs, with mean 0 and variance 1; 0 where all are equal."""
    ranks = np.empty_like(values)
    for column, own in enumerate(values.T):
        _, place, number = np.unique(own, return_inverse=True, return_counts=True)
        ranks[:, column] = (np.cumsum(number) - (number - 1) / 2)[place]
    ranks -= ranks.mean(0)
    deviation = ranks.std(0)
    return ranks / np.where(deviation > 0, deviation, 1)


def _covariance(scores: F64) -> F64:
    covariance: F64 = scores.T @ scores / len(scores) + RIDGE * np.eye(scores.shape[1])
    return covariance
