"""Alarms while a model trains on images without labels: vanishing classes, collapse, negative transfer.

Judged are looks (:mod:`segue.watch`) at a fixed set of images whose parts take turns. A *reading* is the newest look at
each part, so two readings are of the same images and differ by the model alone; as its looks are one round of training
apart, one odd step of the optimiser moves it little. Three rules, each raised once (a class: once each):

``class_vanishing``
    A class that had at least ``MIN_SHARE`` of the pixels has less than ``VANISHED`` of that. It must have had them for
    ``HELD`` rounds, or at a trained start, and then only while the mutual information (below) has not risen since.
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
MIN_SHARE = 0.002
"""A class below this share of the pixels is too small to be missed."""
VANISHED = 0.1
HELD = 2
"""Rounds of looks; norm statistics that settle show classes for less."""
COLLAPSED = 0.6
DROP = 0.05
STANDARD_ERRORS = 4.0
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
    """Share of the pixels of all classes that vanish; effective number of classes; mutual information in nats."""
    before: float

    def text(self, classes: Sequence[str]) -> str:
        """One sentence with iteration, names and numbers."""
        names = ", ".join(classes[c] for c in self.classes)
        now, before = self.now, self.before
        what = {
            "class_vanishing": f"vanishing from the predictions: {names}, {now:.2%} of the pixels, once {before:.2%}",
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
        lines["effective classes"][look.iteration] = effective_classes(_share(reading))
    return {stream: {name: list(line.items()) for name, line in lines.items()} for stream, lines in out.items()}


def mutual_information(mass: F64, entropy: F64) -> float:
    """H(mean p) - mean H(p) in nats, from the parts' mean probabilities (P,C) and mean entropies (P,)."""
    return _entropy(mass.mean(0)) - float(entropy.mean())


def effective_classes(share: F64) -> float:
    """e to the entropy of the class shares (C,): 1 when all is one class."""
    return math.exp(_entropy(share))


def _entropy(p: F64) -> float:
    q = p[p > 0]
    return float(-(q * np.log(q)).sum())


@dataclass
class _Watched:
    """What is remembered of a stream: looks at the start, the newest ones, and what was held since."""

    before: dict[int, Look] = field(default_factory=dict)
    newest: dict[int, Look] = field(default_factory=dict)
    shares: list[F64] = field(default_factory=list)
    """Class shares (C,) of the readings of the last ``HELD`` rounds."""
    held: F64 | None = None
    """Largest share of every class that readings kept for as long (C,)."""
    effective: float = 0.0
    """Largest effective number of classes."""

    def again(self) -> list[int]:
        """Parts that have been looked at since the start."""
        return [k for k in sorted(self.before) if self.newest[k].iteration > 0]

    def remember(self, share: F64) -> None:
        """Take the reading of a whole round."""
        self.shares = [*self.shares[1 - HELD * len(self.before) :], share]
        if len(self.shares) == HELD * len(self.before):
            lowest = np.min(self.shares, axis=0)
            self.held = lowest if self.held is None else np.maximum(self.held, lowest)
        self.effective = max(self.effective, effective_classes(share))


class Judge:
    """Takes looks in their order and returns the alarms that each raises: the same looks, the same alarms.

    ``trained``: the start is a trained model. ``total_iterations``: how long the stage trains.
    """

    def __init__(self, trained: bool, total_iterations: int) -> None:
        self.trained = trained
        self.settled = 0 if trained else SETTLED * total_iterations
        self.watched: dict[str, _Watched] = {}
        self.raised: set[tuple[str, str, int]] = set()

    def add(self, look: Look) -> list[Alarm]:
        """Alarms of the newest look."""
        watched = self.watched.setdefault(look.stream, _Watched())
        watched.newest[look.part] = look
        if look.iteration == 0:
            watched.before[look.part] = look
        parts = watched.again()
        if len(parts) < MIN_PARTS or look.iteration < self.settled:
            return []
        now, before = ([looks[k] for k in parts] for looks in (watched.newest, watched.before))
        start, change, error = _change(now, before)
        # A model that has become better informed has left mistakes of its start behind, and may be right in that.
        at_start = _share(before) if self.trained and change <= 0 else np.zeros(len(look.share))
        found = self._vanished(look, watched, _share(now), at_start)
        if len(parts) == len(watched.before):
            found += self._collapsed(look, watched, _share(now), _share(before))
            watched.remember(_share(now))
        if self.trained and change <= -max(DROP * start, STANDARD_ERRORS * error):
            found.append(Alarm("negative_transfer", look.stream, look.iteration, (), start + change, start))
        return [alarm for alarm in found if alarm.kind == "class_vanishing" or self._first(alarm.stream, alarm.kind)]

    def _first(self, stream: str, kind: str, number: int = -1) -> bool:
        known = (stream, kind, number) in self.raised
        self.raised.add((stream, kind, number))
        return not known

    def _vanished(self, look: Look, watched: _Watched, share: F64, at_start: F64) -> list[Alarm]:
        level = at_start if watched.held is None else np.maximum(at_start, watched.held)
        gone = np.flatnonzero((level >= MIN_SHARE) & (share < VANISHED * level)).tolist()
        fresh = [c for c in gone if self._first(look.stream, "class_vanishing", c)]
        now, before = float(share[fresh].sum()), float(level[fresh].sum())
        return [Alarm("class_vanishing", look.stream, look.iteration, tuple(fresh), now, before)] if fresh else []

    def _collapsed(self, look: Look, watched: _Watched, share: F64, start: F64) -> list[Alarm]:
        now, most = effective_classes(share), max(watched.effective, effective_classes(start) if self.trained else 0.0)
        if now >= COLLAPSED * most:
            return []
        largest = np.argsort(-share, kind="stable")[: max(1, round(now))].tolist()
        return [Alarm("collapse", look.stream, look.iteration, tuple(largest), now, most)]


def _share(looks: Sequence[Look]) -> F64:
    mean: F64 = np.mean([k.share for k in looks], axis=0)
    return mean


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
