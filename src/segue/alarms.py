"""Alarms while a model trains on images without labels: vanishing classes, collapse, negative transfer.

Judged are looks (:mod:`segue.watch`) at a fixed set of images whose parts take turns. A *reading* is the newest look at
each part, so two readings are of the same images and differ by the model alone; as its looks are one round of training
apart, one odd step of the optimiser moves it little. Three rules, each raised once (a class: once each):

``class_vanishing``
    A class that had at least ``MIN_SHARE`` of the pixels, at the start or in any reading since, has less than
    ``VANISHED`` of that.
``collapse``
    The effective number of predicted classes, e to the entropy of their shares, is below ``COLLAPSED`` of its largest.
``negative_transfer``
    The mutual information of image position and class, I = H(mean p) - mean H(p) (Bridle et al., NIPS 1991; Musgrave et
    al., "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain Adaptation", 2022), is lower
    than at the start: by ``DROP`` of it, and by ``STANDARD_ERRORS`` jackknife standard errors of the paired difference
    over the parts. The model must have started from a trained one.

All constants were chosen on generated scenes (``benchmarks/alarms.py``); rates and what no such number can see:
``docs/alarms.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Kind = Literal["class_vanishing", "collapse", "negative_transfer"]

MIN_IMAGES = 32
"""Images that are watched at least."""
MIN_PARTS = 4
"""Parts of them at least; no judgement before so many were looked at again."""
MIN_SHARE = 0.005
"""A class below this share of the pixels is too small to be missed."""
VANISHED = 0.1
COLLAPSED = 0.6
DROP = 0.05
STANDARD_ERRORS = 3.0
SETTLED = 0.25
"""Share of the training before which an untrained start is not judged: it predicts anything."""
PREFIX = "watch/"


@dataclass(frozen=True)
class Look:
    """Means over the pictures of one part of the watched images; ``iteration`` 0 is before training."""

    stream: str
    iteration: int
    part: int
    mass: tuple[float, ...]
    """Mean probability of every class."""
    share: tuple[float, ...]
    """Share of the pixels for which every class is the most probable one."""
    entropy: float
    """Mean entropy in nats."""
    confidence: float
    """Mean of the largest probability."""
    agreement: float
    """Share of the pixels whose most probable class is that of the start."""

    def row(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        values = {name: getattr(self, name) for name in NUMBERS}
        return {"iteration": self.iteration} | {
            f"{PREFIX}{self.stream}/{k}": list(v) if isinstance(v, tuple) else v for k, v in values.items()
        }


NUMBERS = tuple(f.name for f in fields(Look) if f.name not in ("stream", "iteration"))


def looks_of(rows: Iterable[Mapping[str, Any]]) -> list[Look]:
    """The looks in lines of metrics.jsonl; other lines are left out, and looks that are damaged."""
    found = [look for row in rows for look in _looks(row)]
    sizes: dict[str, int] = {}
    return [k for k in found if sizes.setdefault(k.stream, len(k.mass)) == len(k.mass) == len(k.share) > 0]


def _looks(row: Mapping[str, Any]) -> list[Look]:
    keys = [key.split("/") for key in row if key.startswith(PREFIX)]
    out = []
    for stream in dict.fromkeys(key[1] for key in keys if len(key) == 3):
        values = {name: row.get(f"{PREFIX}{stream}/{name}") for name in NUMBERS}
        lists = {name: v for name, v in values.items() if isinstance(v, list)}
        numbers = [*(v for name, v in values.items() if name not in lists), *(n for v in lists.values() for n in v)]
        if lists.keys() == {"mass", "share"} and all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
            out.append(Look(stream, int(row["iteration"]), **values | {k: tuple(v) for k, v in lists.items()}))
    return out


@dataclass(frozen=True)
class Alarm:
    """What is wrong, since when, and the number that says so, with what it was before."""

    kind: Kind
    stream: str
    iteration: int
    classes: tuple[int, ...]
    """Of ``class_vanishing`` those that vanish, of ``collapse`` those that take over."""
    now: float
    before: float

    def text(self, classes: Sequence[str]) -> str:
        """One sentence with iteration, names and numbers."""
        names = ", ".join(classes[c] for c in self.classes)
        now, before = self.now, self.before
        what = {
            "class_vanishing": f"{names} is vanishing: {now:.2%} of the pixels, once {before:.2%}",
            "collapse": f"predictions collapse towards {names}: {now:.1f} effective classes, once {before:.1f}",
            "negative_transfer": "the model is probably becoming worse than it was at the start: "
            f"mutual information {now:.3f}, then {before:.3f}",
        }
        return f"iteration {self.iteration}, images of {self.stream!r}: {what[self.kind]}"

    def row(self, classes: Sequence[str]) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        return {
            "iteration": self.iteration,
            "alarm": {
                "kind": self.kind,
                "stream": self.stream,
                "classes": [classes[c] for c in self.classes],
                "now": self.now,
                "before": self.before,
                "text": self.text(classes),
            },
        }


def curves(looks: Iterable[Look]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Stream -> what the rules are about -> (iteration, value) of every reading of a whole set."""
    newest: dict[str, dict[int, Look]] = {}
    out: dict[str, dict[str, dict[int, float]]] = {}
    for look in looks:
        newest.setdefault(look.stream, {})[look.part] = look
        reading = list(newest[look.stream].values())
        lines = out.setdefault(look.stream, {"mutual information": {}, "effective classes": {}})
        lines["mutual information"][look.iteration] = _information(reading)
        lines["effective classes"][look.iteration] = effective_classes(np.array([k.share for k in reading]))
    return {stream: {name: list(line.items()) for name, line in lines.items()} for stream, lines in out.items()}


def mutual_information(mass: F64, entropy: F64) -> float:
    """H(mean p) - mean H(p) in nats, from the parts' mean probabilities (P,C) and mean entropies (P,)."""
    return _entropy(mass.mean(0)) - float(entropy.mean())


def effective_classes(share: F64) -> float:
    """e to the entropy of the mean class shares of the parts (P,C): 1 when all is one class."""
    return math.exp(_entropy(share.mean(0)))


def _entropy(p: F64) -> float:
    q = p[p > 0]
    return float(-(q * np.log(q)).sum())


@dataclass
class _Reading:
    """The newest look at each part; ``before`` is the look at the start."""

    before: dict[int, Look] = field(default_factory=dict)
    newest: dict[int, Look] = field(default_factory=dict)

    def again(self) -> list[int]:
        """Parts that have been looked at since the start."""
        return [k for k in sorted(self.before) if self.newest[k].iteration > 0]


@dataclass
class _Peaks:
    """Largest values so far: of every class's share by part (P,C), and of the effective number of classes."""

    share: F64
    effective: float


class Judge:
    """Takes looks in their order and returns the alarms that each raises: the same looks, the same alarms.

    ``trained``: the start is a trained model. ``total_iterations``: how long the stage trains.
    """

    def __init__(self, trained: bool, total_iterations: int) -> None:
        self.trained = trained
        self.settled = 0 if trained else SETTLED * total_iterations
        self.readings: dict[str, _Reading] = {}
        self.peaks: dict[str, _Peaks] = {}
        self.raised: set[tuple[str, str, int]] = set()

    def add(self, look: Look) -> list[Alarm]:
        """Alarms of the newest look."""
        reading = self.readings.setdefault(look.stream, _Reading())
        reading.newest[look.part] = look
        if look.iteration == 0:
            reading.before[look.part] = look
        parts = reading.again()
        if len(parts) < MIN_PARTS or look.iteration < self.settled:
            return []
        found = [*self._classes(look, reading, parts), *self._transfer(look, reading, parts)]
        return [alarm for alarm in found if self._new(alarm)]

    def _new(self, alarm: Alarm) -> bool:
        which = alarm.classes[0] if alarm.kind == "class_vanishing" else -1
        key = (alarm.stream, alarm.kind, which)
        known = key in self.raised
        self.raised.add(key)
        return not known

    def _classes(self, look: Look, reading: _Reading, parts: list[int]) -> list[Alarm]:
        now = _table(reading.newest, parts)
        whole = len(parts) == len(reading.before)
        if look.stream not in self.peaks:
            if not (self.trained or whole):
                return []
            first = _table(reading.before if self.trained else reading.newest, sorted(reading.before))
            self.peaks[look.stream] = _Peaks(first, effective_classes(first))
        peaks = self.peaks[look.stream]
        before = peaks.share[[sorted(reading.before).index(k) for k in parts]]
        share, peak = now.mean(0), before.mean(0)
        gone = np.flatnonzero((peak >= MIN_SHARE) & (share < VANISHED * peak))
        out = [Alarm("class_vanishing", look.stream, look.iteration, (int(c),), share[c], peak[c]) for c in gone]
        if not whole:
            return out
        effective = effective_classes(now)
        if effective < COLLAPSED * peaks.effective:
            largest = tuple(int(c) for c in np.argsort(-share, kind="stable")[: max(1, round(effective))])
            out.append(Alarm("collapse", look.stream, look.iteration, largest, effective, peaks.effective))
        peaks.share = np.where(share > peak, now, peaks.share)
        peaks.effective = max(peaks.effective, effective)
        return out

    def _transfer(self, look: Look, reading: _Reading, parts: list[int]) -> list[Alarm]:
        if not self.trained:
            return []
        now, before = ([looks[k] for k in parts] for looks in (reading.newest, reading.before))
        start, change, error = _change(now, before)
        if change > -max(DROP * start, STANDARD_ERRORS * error):
            return []
        return [Alarm("negative_transfer", look.stream, look.iteration, (), start + change, start)]


def _table(looks: Mapping[int, Look], parts: Sequence[int]) -> F64:
    return np.array([looks[k].share for k in parts])


def _information(looks: Sequence[Look]) -> float:
    return mutual_information(np.array([k.mass for k in looks]), np.array([k.entropy for k in looks]))


def _change(now: Sequence[Look], before: Sequence[Look]) -> tuple[float, float, float]:
    """Mutual information before, how much it has changed, and the jackknife standard error of that over the parts."""
    first, second = (
        (np.array([k.mass for k in looks]), np.array([k.entropy for k in looks])) for looks in (before, now)
    )
    start, change = mutual_information(*first), mutual_information(*second) - mutual_information(*first)
    count = len(now)
    left = []
    for mass, entropy in (first, second):
        others = (mass.sum(0) - mass) / (count - 1), (entropy.sum() - entropy) / (count - 1)
        left.append(np.array([_entropy(p) for p in others[0]]) - others[1])
    return start, change, math.sqrt((count - 1) * float(np.var(left[1] - left[0])))
