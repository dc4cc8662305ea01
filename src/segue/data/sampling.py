"""Which image stands at a position of a stream: each once a round, or by rare classes.

Rare class sampling (Hoyer et al., "DAFormer", CVPR 2022, sec. 3.3) first draws a class, the rarer the more often,
then an image that shows it: ``P(c) = exp((1 - f_c) / T) / sum_c' exp((1 - f_c') / T)`` with the share ``f_c`` of all
labelled pixels, over the classes that occur. The temperature ``T`` is the knob: 0.01 prefers the rarest classes by
far, infinity makes all alike. Every draw is a pure function of (key, position).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from segue.config import RareClassConfig
from segue.data.errors import DataError
from segue.labels import LabelSpace
from segue.ops.keys import generator

Key = tuple[int | str, ...]
Pixels = npt.NDArray[np.uint32]
"""(images, classes): pixels of each class in each image's label, at the file's resolution."""

_SHORTEST_ROUND = 1000
"""A weighted round has at least this many positions, so that weights are met to 0.1 %."""


class Place(NamedTuple):
    """What is read for one sample: image index over all data sets, uid, and the class its crop should show if any."""

    image: int
    uid: int
    wanted: int | None = None


class Order:
    """A keyed permutation of all images a round, the rounds one after the other.

    With one data set, or without weights, a round is every image once. With weights it holds of each data set its
    share, and each data set runs through its own keyed permutations, so that its images come equally often.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, key: Key) -> None:
        if not sizes or min(sizes) < 1:
            raise DataError("a stream needs at least one data set with at least one image")
        self._sizes = list(sizes)
        self._starts = [sum(sizes[:d]) for d in range(len(sizes))]
        self._weighted = weights is not None and len(sizes) > 1
        counts = None if weights is None else _counts(weights, len(sizes), sum(sizes))
        self._counts = counts if counts is not None and self._weighted else list(sizes)
        self._key = key
        self._round = lru_cache(maxsize=2)(self._make_round)

    def place(self, position: int) -> Place:
        """The image at a position."""
        number, place = divmod(position, sum(self._counts))
        return Place(int(self._round(number)[place]), position)

    def _make_round(self, number: int) -> npt.NDArray[np.int64]:
        parts = []
        for d, (count, size, start) in enumerate(zip(self._counts, self._sizes, self._starts, strict=True)):
            turns = np.arange(number * count, (number + 1) * count) if self._weighted else np.arange(size)
            parts.append(start + (self._turn(d, turns) if self._weighted else turns))
        images = np.concatenate(parts)
        return images[_permutation(len(images), *self._key, "order", number)]

    def _turn(self, d: int, turns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Images of data set ``d`` at its own positions ``turns``."""
        passes, places = np.divmod(turns, self._sizes[d])
        out = np.empty_like(turns)
        for number in np.unique(passes):
            here = passes == number
            out[here] = _permutation(self._sizes[d], *self._key, "order", d, int(number))[places[here]]
        return out


class RareOrder:
    """A class by ``P(c)``, then an image with more than ``config.min_px`` pixels of it.

    ``pixels``: one array for each data set. With weights a data set counts, in ``f_c`` and among the images of a class,
    with the share of the stream that it would have without rare class sampling; without, all images count alike.
    Classes without such an image are ``left_out`` (the published code stops there); ``DataError`` when none is left.
    Memory: 4 bytes for each pair of an image and a class with more than ``min_px`` pixels in it.
    """

    def __init__(
        self,
        pixels: Sequence[Pixels],
        weights: Sequence[float] | None,
        config: RareClassConfig,
        space: LabelSpace,
        key: Key,
    ) -> None:
        if not pixels or not all(map(len, pixels)):
            raise DataError("a stream needs at least one data set with at least one image")
        rates = np.ones(len(pixels))
        if weights is not None and len(pixels) > 1:
            rates = _positive(weights, len(pixels)) / [len(p) for p in pixels]
        totals = np.sum([rate * p.sum(0, dtype=np.float64) for rate, p in zip(rates, pixels, strict=True)], 0)
        asked = np.flatnonzero(totals) if config.classes is None else [space.index(c) for c in config.classes]
        self._images: dict[int, list[npt.NDArray[np.int32]]] = {}
        self._ends: dict[int, npt.NDArray[np.float64]] = {}
        starts = np.cumsum([0, *map(len, pixels)])
        for c in map(int, asked):
            images = [np.flatnonzero(p[:, c] > config.min_px) + s for p, s in zip(pixels, starts, strict=False)]
            mass = np.cumsum([rate * len(i) for rate, i in zip(rates, images, strict=True)])
            if mass[-1] > 0:
                self._images[c] = [i.astype(np.int32) for i in images]
                self._ends[c] = mass / mass[-1]
        self.left_out = [space.classes[c] for c in asked if c not in self._images]
        if not self._images:
            names = " or ".join(self.left_out) or "any class"
            raise DataError(f"rare_class: no image has more than {config.min_px} pixels of {names}; lower min_px")
        self._key = key
        self.classes = sorted(self._images)
        self.probabilities = probabilities(totals, config.temperature, self.classes)
        self._class_ends = np.cumsum(self.probabilities)

    def place(self, position: int) -> Place:
        """The image at a position, and its class."""
        class_draw, image_draw = torch.rand(2, generator=generator(*self._key, "rare", position), dtype=torch.float64)
        wanted = self.classes[_part(self._class_ends, float(class_draw))]
        ends, images = self._ends[wanted], self._images[wanted]
        d = _part(ends, float(image_draw))
        start = ends[d - 1] if d else 0.0
        inside = (float(image_draw) - start) / (ends[d] - start)
        return Place(int(images[d][min(int(inside * len(images[d])), len(images[d]) - 1)]), position, wanted)


def probabilities(
    totals: npt.NDArray[np.float64], temperature: float, classes: Sequence[int] | None = None
) -> npt.NDArray[np.float64]:
    """``P(c)`` of ``classes`` (default: all) from the pixel totals of all; a class that does not occur has 0."""
    shares = totals / totals.sum() if totals.any() else totals
    shares = shares if classes is None else shares[list(classes)]
    exponent = (shares.min(initial=1.0, where=shares > 0) - shares) / temperature
    out = np.where(shares > 0, np.exp(exponent), 0.0)
    return np.asarray(out / max(out.sum(), 1.0), np.float64)


def table(pixels: Pixels, space: LabelSpace, config: RareClassConfig) -> list[str]:
    """Lines with pixels, share, images, images with more than ``min_px`` pixels and ``P(c)`` of every class."""
    totals = pixels.sum(0, dtype=np.float64)
    shares = totals / max(totals.sum(), 1.0)
    images, shown = (pixels > 0).sum(0), (pixels > config.min_px).sum(0)
    classes = np.flatnonzero(shown).tolist()
    drawn = dict(zip(classes, probabilities(totals, config.temperature, classes), strict=True))
    width = max(len(c) for c in space.classes)
    chance, enough = f"P at T={config.temperature:g}", f"> {config.min_px} px"
    return [f"{'class':{width}} {'pixels':>14} {'share %':>8} {'images':>7} {enough:>10} {chance:>12}"] + [
        f"{name:{width}} {int(totals[c]):>14} {100 * shares[c]:>8.3f} {images[c]:>7} {shown[c]:>10} "
        f"{drawn.get(c, 0.0):>12.4g}"
        for c, name in enumerate(space.classes)
    ]


def _part(ends: npt.NDArray[np.float64], number: float) -> int:
    # A part without width is never drawn, nor one past the last end, which may be a rounding below 1.
    return min(int(np.searchsorted(ends, number, side="right")), int(np.searchsorted(ends, ends[-1])))


def _permutation(length: int, *key: int | str) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = torch.randperm(length, generator=generator(*key)).numpy()
    return out


def _counts(weights: Sequence[float], number: int, length: int) -> list[int]:
    """Positions of each data set in one round, by largest remainder; at least one each."""
    shares = _positive(weights, number)
    wanted = shares / shares.sum() * max(length, _SHORTEST_ROUND)
    counts = np.floor(wanted).astype(int)
    for d in np.argsort(counts - wanted, kind="stable")[: round(float(wanted.sum())) - int(counts.sum())]:
        counts[d] += 1
    return [max(1, int(c)) for c in counts]


def _positive(weights: Sequence[float], number: int) -> npt.NDArray[np.float64]:
    if len(weights) != number or not all(w > 0 for w in weights):
        raise DataError(f"a stream of {number} data sets needs {number} positive weights, not {list(weights)}")
    return np.array(weights, np.float64)
