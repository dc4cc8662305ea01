"""Calibration: whether a network is right as often as its confidence says, and the temperature that mends it.

Expected calibration error (Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3): labelled pixels
fall into 15 equal bins (lo, hi] of their largest probability; the error is the mean distance between a bin's accuracy
and its mean confidence, weighted by pixels. By class: the same over the pixels that are predicted as it. Both are
streamed: three (C, 15) tables.

Temperature scaling (the same paper, section 4.2): softmax(logits / T) with the one T that minimises the negative
log-likelihood on labelled *source* pixels; no prediction changes. In 1/T that likelihood is convex with the derivative
mean(E_p[z] - z_y), so T is the root of an increasing function, bracketed and bisected in float64. At most ``PIXELS``
pixels are kept for it, evenly spaced over all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segue.errors import UserError
from segue.labels import IGNORE, U8
from segue.scoring.inference import Answer
from segue.scoring.matrix import F64, I64, ratio

BINS = 15
PIXELS = 200_000
COLDEST, HOTTEST = 1e-3, 1e3
HALVINGS = 100  # of the bracket in log T: to the last bit of a float64


class Calibration:
    """Tables (C, 15) of predicted class and confidence bin: ``pixels``, ``right``, summed ``confidence``; and NLL.

    ``kept``: train ids of the C rows. The likelihood counts pixels whose class is among them.
    """

    def __init__(self, kept: tuple[int, ...], temperature: float = 1.0) -> None:
        self.kept, self.temperature = kept, temperature
        self.pixels: I64 = np.zeros((len(kept), BINS), np.int64)
        self.right: I64 = np.zeros((len(kept), BINS), np.int64)
        self.confidence: F64 = np.zeros((len(kept), BINS))
        self.nll, self.nll_pixels = 0.0, 0
        self._rows = np.full(IGNORE + 1, IGNORE, np.int64)
        self._rows[list(kept)] = range(len(kept))

    def add(self, label: U8, answer: Answer) -> None:
        """Count one image: (H, W) train ids, 255 = ignored, and the network's answer of that size."""
        for tile in answer.tiles():
            truth = label[tile.place]
            seen = truth != IGNORE
            if seen.any():
                logs = tile.log_probability(self.temperature)
                self._add(self._rows[truth[seen]], logs[:, torch.from_numpy(seen).to(logs.device)])

    def _add(self, truth: npt.NDArray[np.int64], logs: Tensor) -> None:
        best, winner = (x.cpu().numpy() for x in logs.max(0))
        largest = np.exp(best.astype(np.float64))
        bins = np.clip(np.ceil(largest * BINS).astype(np.int64) - 1, 0, BINS - 1)
        cell, shape = winner * BINS + bins, self.pixels.shape
        self.pixels += np.bincount(cell, minlength=self.pixels.size).reshape(shape)
        self.right += np.bincount(cell[winner == truth], minlength=self.pixels.size).reshape(shape)
        self.confidence += np.bincount(cell, largest, self.pixels.size).reshape(shape)
        known = np.flatnonzero(truth != IGNORE)
        place = torch.from_numpy(np.stack([truth[known], known])).to(logs.device)
        self.nll -= float(logs[place[0], place[1]].double().sum())
        self.nll_pixels += len(known)

    def error(self) -> float:
        """Expected calibration error over all pixels; NaN without any."""
        return float(_error(self.pixels.sum(0), self.right.sum(0), self.confidence.sum(0)))

    def errors(self) -> F64:
        """(C,) expected calibration error of the pixels predicted as each class; NaN for a class never predicted."""
        return np.array([_error(*rows) for rows in zip(self.pixels, self.right, self.confidence, strict=True)])

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Plain containers; ``classes`` names every train id of the label space."""
        names = [classes[k] for k in self.kept]
        return {
            "ece": self.error(),
            "ece_by_class": dict(zip(names, self.errors().tolist(), strict=True)),
            "nll": float(ratio(self.nll, self.nll_pixels)),
            "pixels": int(self.pixels.sum()),
            "bins": BINS,
            "temperature": self.temperature,
        }


def _error(pixels: I64, right: I64, confidence: F64) -> F64:
    return ratio(np.abs(right - confidence).sum(), pixels.sum())


class Sample:
    """Scores and classes of evenly spaced labelled pixels of a data set of ``num_images``."""

    def __init__(self, kept: tuple[int, ...], num_images: int, limit: int = PIXELS) -> None:
        self.quota = max(1, limit // max(1, num_images))
        self._rows = np.full(IGNORE + 1, IGNORE, np.int64)
        self._rows[list(kept)] = range(len(kept))
        self._scores: list[Tensor] = []
        self._classes: list[npt.NDArray[np.int64]] = []

    def add(self, label: U8, answer: Answer) -> None:
        """Keep pixels of one image; those of classes that the network may not answer are left out."""
        rows = self._rows[label]
        found = np.flatnonzero(rows != IGNORE)
        chosen = np.zeros(label.shape, bool)
        chosen.flat[found[np.linspace(0, len(found) - 1, min(self.quota, len(found))).astype(np.int64)]] = True
        for tile in answer.tiles():
            here = chosen[tile.place]
            if here.any():
                scores = tile.log_scores()
                self._scores.append(scores[:, torch.from_numpy(here).to(scores.device)].t().cpu())
                self._classes.append(rows[tile.place][here])

    def fit(self) -> Fit:
        """The temperature of these pixels; ``UserError`` without any."""
        if not self._scores:
            raise UserError("no labelled pixel to fit a temperature on")
        return fit_temperature(torch.cat(self._scores), np.concatenate(self._classes))


@dataclass(frozen=True)
class Fit:
    """A temperature with the mean negative log-likelihood of its pixels at 1 (``nll_before``) and at it."""

    temperature: float
    nll_before: float
    nll_after: float
    pixels: int

    def to_dict(self) -> Mapping[str, Any]:
        """Plain containers."""
        return {
            "temperature": self.temperature,
            "nll_before": self.nll_before,
            "nll_after": self.nll_after,
            "pixels": self.pixels,
        }


def fit_temperature(scores: Tensor, classes: npt.NDArray[np.int64]) -> Fit:
    """The T in 0.001 .. 1000 that minimises the NLL of softmax(scores / T); ``scores`` (n,C), ``classes`` (n,).

    An end of that range is returned where the likelihood has no minimum inside, as when every pixel is right.
    """
    # float64 once, and the largest score of a pixel at 0: exp() can then neither overflow nor lose the winner
    z = scores.double() - scores.double().amax(1, keepdim=True)
    own = z.gather(1, torch.from_numpy(classes).unsqueeze(1)).squeeze(1)
    mean_own = float(own.mean())

    def slope(temperature: float) -> float:
        return float(((z / temperature).softmax(1) * z).sum(1).mean()) - mean_own

    def nll(temperature: float) -> float:
        return float(torch.logsumexp(z / temperature, 1).mean()) - mean_own / temperature

    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # the slope in 1/T falls as T grows
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
        if high - low < 1e-12:
            break
    temperature = math.exp((low + high) / 2)
    return Fit(temperature, nll(1.0), nll(temperature), len(classes))
