"""Rows, spreads, flags and paired intervals.

The spread over seeds is the sample standard deviation (n - 1) with the lowest and the highest seed. The interval of a
gain resamples images only: with several seeds on a side, each resample takes the mean of its seeds' mIoU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from segue.compare.entries import Entry, collect
from segue.errors import UserError
from segue.labels import nearest
from segue.report.read import NAN, Evaluation, Stage, number
from segue.scoring.bootstrap import Interval, PerImage, paired_interval, read_per_image
from segue.scoring.matrix import F64
from segue.scoring.names import per_image_file

CONDITIONS = {
    "protocol": "scoring protocols",
    "view": "scoring views",
    "checkpoint": "choices of the checkpoint",
    "images": "numbers of images",
    "classes": "classes",
}
"""What must be equal for two numbers to be comparable, and how a difference is told."""


@dataclass(frozen=True)
class Spread:
    """A number over seeds: NaN ``mean`` without any value, NaN ``sd`` for fewer than two."""

    mean: float
    sd: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Spread of what is not NaN."""
        kept = [v for v in values if not math.isnan(v)]
        if not kept:
            return Spread(NAN, NAN, NAN, NAN, 0)
        return Spread(fmean(kept), stdev(kept) if len(kept) > 1 else NAN, min(kept), max(kept), len(kept))


@dataclass(frozen=True)
class Gain:
    """mIoU of a row minus that of the row it is held against; ``reason`` when there is no interval."""

    against: int
    value: float
    interval: Interval | None
    reason: str = ""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


@dataclass(frozen=True)
class Line:
    """One stage of one run on one validation set; scores are fractions, ``iou`` holds the run's own classes."""

    number: int
    entry: Entry
    data: str
    evaluations: dict[str, Evaluation]
    miou: Spread
    accuracy: Spread
    iou: dict[str, Spread]
    conditions: dict[str, str]
    """By name of ``CONDITIONS``; what differs between seeds is joined by " / "."""
    time: dict[str, float]
    """``cpu_s_per_100``, ``wall_s_per_100``, ``wall_s_per_epoch``: of iterations alone; ``wall_s_scoring``: of scoring
    ``data`` once. Means over seeds."""
    device: str
    gain: Gain | None = None

    @property
    def name(self) -> str:
        """Run and stage."""
        return f"{self.entry.run} · {self.entry.stage}"

    @property
    def method(self) -> str:
        """Name of the method."""
        return next((s.method for s in self.entry.members.values()), "")


@dataclass(frozen=True)
class Comparison:
    """All rows on one validation set, and what a reader must know about them."""

    data: str
    classes: list[str]
    lines: list[Line]
    differ: list[str] = field(default_factory=list)
    """Conditions that differ: such rows are not comparable."""
    notes: list[str] = field(default_factory=list)


def compare(given: Sequence[str | Path], data: str | None = None, baseline: str | Path | None = None) -> Comparison:
    """Compare runs on ``data`` (default: the first run's own target).

    Each row is held against the stage of the same name in ``baseline`` (run or stage folder, default: the first run),
    or against the baseline's first stage. ``UserError`` for unknown paths and for a data set that no run was scored on.
    """
    found = collect([*given, *([baseline] if baseline is not None else [])])
    name = data or next((e.target for e in found.entries if e.target), None)
    known = list(dict.fromkeys(d for e in found.entries for s in e.members.values() for d in s.evaluations))
    if not known:
        raise UserError("no stage of these runs has been scored; compare needs evaluate.data in the recipe")
    if name is None or name not in known:
        raise UserError(f"no run was scored on {name!r}{nearest(str(name), known)}")
    lines = [_line(i, entry, name) for i, entry in enumerate(found.entries, 1)]
    base = collect([baseline]).entries if baseline is not None else found.entries[:1]
    rivals = [x for x in lines if any(x.entry.folder == e.folder for e in base)]
    if baseline is not None:
        rivals = [x for x in rivals if x.entry.stage in [e.stage for e in base]]
    held = [_held(line, rivals) for line in lines]
    classes = list(dict.fromkeys(c for line in lines for c in line.iou))
    notes = [*found.problems, *(text for line in lines for text in _notes(line))]
    if len({x.device for x in lines if x.device}) > 1:
        notes.append("times were taken on different devices or numbers of threads")
    return Comparison(name, classes, held, _differences(lines), list(dict.fromkeys(notes)))


def _line(index: int, entry: Entry, data: str) -> Line:
    scored = {seed: s.evaluations[data] for seed, s in entry.members.items() if data in s.evaluations}
    values = list(scored.values())
    names = list(dict.fromkeys(c for e in values for c in e.iou))
    stages = list(entry.members.values())
    return Line(
        number=index,
        entry=entry,
        data=data,
        evaluations=scored,
        miou=Spread.of(e.miou for e in values),
        accuracy=Spread.of(e.accuracy for e in values),
        iou={c: Spread.of(e.iou.get(c, NAN) for e in values) for c in names},
        conditions={
            "protocol": _either(e.protocol for e in values),
            "view": _either(e.view for e in values),
            "checkpoint": _either(str(s.info.get("checkpoint") or "last") for s in stages),
            "images": _either(str(e.num_images) for e in values),
            "classes": _either(", ".join(e.iou) for e in values),
        },
        time=_time(stages) | {"wall_s_scoring": Spread.of(_scoring_s(s, data) for s in stages).mean},
        device=_either(_device(s) for s in stages if _device(s)),
    )


def _either(values: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def _training(stage: Stage) -> Mapping[str, object]:
    found = stage.info.get("training")
    return found if isinstance(found, dict) else {}


def _device(stage: Stage) -> str:
    given = _training(stage)
    return f"{given['device']}, {given.get('threads')} threads" if "device" in given else ""


def _scoring_s(stage: Stage, data: str) -> float:
    costs = stage.info.get("scoring")
    cost = costs.get(data) if isinstance(costs, dict) else None
    return number(cost.get("wall_s")) if isinstance(cost, dict) else NAN


def _time(stages: Sequence[Stage]) -> dict[str, float]:
    rows = []
    for given in map(_training, stages):
        cpu, wall, count, epoch = (
            number(given.get(k)) for k in ("cpu_s", "wall_s", "iterations", "iterations_per_epoch")
        )
        if count > 0:
            rows.append((100 * cpu / count, 100 * wall / count, epoch * wall / count))
    columns = zip(*rows, strict=True) if rows else ((NAN,), (NAN,), (NAN,))
    names = ("cpu_s_per_100", "wall_s_per_100", "wall_s_per_epoch")
    return {name: Spread.of(column).mean for name, column in zip(names, columns, strict=True)}


def _held(line: Line, rivals: Sequence[Line]) -> Line:
    same_run = [x for x in rivals if x.entry.folder == line.entry.folder]
    same_name = [x for x in rivals if x.entry.stage == line.entry.stage and not same_run]
    against = (same_name or rivals)[:1]
    if not against or against[0].number == line.number:
        return line
    return replace(line, gain=gain(line, against[0]))


def gain(line: Line, against: Line, resamples: int = 1000) -> Gain:
    """mIoU of ``line`` minus ``against`` with its paired bootstrap, or the reason why there is none."""
    value = line.miou.mean - against.miou.mean
    for condition in ("protocol", "view"):
        if line.conditions[condition] != against.conditions[condition]:
            return Gain(against.number, value, None, f"{condition}s differ")
    try:
        a, b = _per_image(against), _per_image(line)
        if not np.array_equal(a.truth, b.truth):
            return Gain(against.number, value, None, "scored on other images or other labels")
        return Gain(against.number, value, paired_interval(a, b, resamples))
    except UserError:
        return Gain(against.number, value, None, "no per-image scores stored")
    except ValueError:
        return Gain(against.number, value, None, "scored on other images or classes")


@dataclass(frozen=True)
class _SeedMean(PerImage):
    """Per-image counts of several seeds; ``miou`` is the mean of theirs, so the bootstrap needs no other code."""

    seeds: tuple[PerImage, ...]

    def miou(self, weights: F64) -> F64:
        out: F64 = np.mean([s.miou(weights) for s in self.seeds], axis=0)
        return out


def _per_image(line: Line) -> PerImage:
    stages = [line.entry.members[seed] for seed in line.evaluations]
    seeds = tuple(read_per_image(s.folder / per_image_file(line.data)) for s in stages)
    if not seeds:
        raise UserError(f"{line.name} has no score on {line.data}")
    first = seeds[0]
    if any((s.ids, s.rows, s.classes) != (first.ids, first.rows, first.classes) for s in seeds):
        raise ValueError("the seeds were scored on different images")
    return _SeedMean(first.ids, first.classes, first.right, first.truth, first.predicted, first.rows, seeds)


def _differences(lines: Sequence[Line]) -> list[str]:
    out = []
    for condition, plural in CONDITIONS.items():
        groups: dict[str, list[str]] = {}
        for line in (x for x in lines if x.evaluations):
            groups.setdefault(line.conditions[condition], []).append(str(line.number))
        if len(groups) > 1 or any(" / " in text for text in groups):
            texts = [f"{text} (row {', '.join(rows)})" for text, rows in groups.items()]
            out.append(f"{plural} differ: {'; '.join(texts)}")
    return out


def _notes(line: Line) -> list[str]:
    out = []
    for seed, stage in line.entry.members.items():
        status = str(stage.info.get("status") or "unknown")
        which = f"{line.name} (seed {seed})" if len(line.entry.members) > 1 else line.name
        if status != "finished":
            out.append(f"{which} is not finished (status {status})")
        elif line.data not in stage.evaluations:
            known = ", ".join(stage.evaluations) or "nothing"
            out.append(f"{which} was not scored on {line.data} (but on: {known})")
    count = len(line.evaluations)
    partly = [c for c, spread in line.iou.items() if 0 < spread.count < count]
    if partly:
        out.append(f"{line.name}: {', '.join(partly)} absent in some seeds; the mean is over the others")
    return out
