"""The ledger of class-incremental training: what a chain of steps learnt, kept and forgot, from its stages' scores.

R[i][j] is the mIoU of task j (the classes that step j brought) after step i, the network choosing among these classes
alone; a union ("1+2") is scored among its classes. ``all`` after step i is the union of tasks 1..i. From the last step:
``old`` and ``new`` are the means over the classes of task 1 and of the later tasks inside that union (Cermelli et al.,
CVPR 2020, there "1-15" and "16-20"), ``harmonic`` the harmonic mean of both, ``average`` the mean of ``all`` over the
steps (Douillard et al., CVPR 2021). Forgetting is the mean over earlier tasks of the best R before the last step minus
the last (Chaudhry et al., ECCV 2018), backward transfer that of the last minus the one just after the task was learnt
(Lopez-Paz and Ranzato, NeurIPS 2017); both see only confusion inside a task, ``old`` also that with later classes.
Scores are shares 0..1; a mean over a missing score is NaN, never a mean of the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

NAN = math.nan
SPELT_OUT = 4
"""Unions of at most this many tasks are written out in titles."""


@dataclass(frozen=True)
class Scored:
    """A stage scored task by task.

    ``step`` None: all classes at once (joint). ``before``: stages that it started from or was taught by, the most
    direct first. ``miou``: task name -> score. ``iou``: task name -> class -> score, among the task's classes.
    """

    name: str
    step: int | None
    method: str = ""
    before: tuple[str, ...] = ()
    miou: Mapping[str, float] = field(default_factory=dict)
    iou: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """Stages that follow on one another, one a step, in ascending order; ``background`` counts neither old nor new."""

    stages: tuple[Scored, ...]
    joint: Scored | None = None
    background: str | None = None

    @property
    def name(self) -> str:
        """That of its last stage without the number of the step (``cil_3`` is ``cil``)."""
        last = self.stages[-1]
        return re.sub(rf"(?<=.)[_-]{last.step}$", "", last.name)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of its stages."""
        return tuple(stage.step or 0 for stage in self.stages)

    @cached_property
    def matrix(self) -> list[list[float]]:
        """R: a row for each stage, a column for each task up to the last step."""
        return [[_get(stage.miou, str(j + 1)) for j in range(self.steps[-1])] for stage in self.stages]

    @property
    def seen(self) -> list[float]:
        """mIoU of all classes so far, after each step."""
        return [_get(stage.miou, union(step)) for stage, step in zip(self.stages, self.steps, strict=True)]

    def summary(self) -> dict[str, float]:
        """``old``, ``new``, ``all``, ``harmonic``, ``average``, ``forgetting``, ``backward``, ``gap`` to joint."""
        last, whole = self.stages[-1], union(self.steps[-1])
        known = {name: value for name, value in last.iou.get(whole, {}).items() if name != self.background}
        first = set(last.iou.get("1", {}))
        old = _mean(value for name, value in known.items() if name in first)
        new = _mean(value for name, value in known.items() if name not in first) if first else NAN
        return {
            "old": old,
            "new": new,
            "all": self.seen[-1],
            "harmonic": 2 * old * new / (old + new) if old + new > 0 else NAN,
            "average": _strict_mean(self.seen),
            "forgetting": _strict_mean([_best(rows) - final for rows, final in self._earlier()]),
            "backward": _strict_mean([final - rows[0] for rows, final in self._earlier(own=True)]),
            "gap": _get(self.joint.miou, whole) - self.seen[-1] if self.joint else NAN,
        }

    def _earlier(self, own: bool = False) -> Iterator[tuple[list[float], float]]:
        # of each earlier task its scores from its own step (``own``: which must be there) to the last but one; its last
        for task in range(1, self.steps[-1]):
            rows = [row[task - 1] for step, row in zip(self.steps[:-1], self.matrix, strict=False) if step >= task]
            if rows and (task in self.steps or not own):
                yield rows, self.matrix[-1][task - 1]


@dataclass(frozen=True)
class Ledger:
    """Every scored stage of a run, the chains that they form, and the task names of its columns."""

    stages: tuple[Scored, ...]
    chains: tuple[Chain, ...]
    columns: tuple[str, ...]


def ledger(stages: Sequence[Scored], background: str | None = None) -> Ledger:
    """Chains and columns of the stages of a run, given in the order in which they ran.

    A chain ends at a stage that none goes on from; chains may share their first stages. Of several stages of one step
    in a chain the last counts. The last joint stage is the one that gaps are measured to.
    """
    joint = next((stage for stage in reversed(stages) if stage.step is None), None)
    before = {stage.name: found for k, stage in enumerate(stages) if (found := _before(stage, stages[:k]))}
    inner = {found.name for found in before.values()}
    chains = []
    for stage in stages:
        if stage.step is None or stage.name in inner:
            continue
        rows: dict[int, Scored] = {}
        here: Scored | None = stage
        while here is not None:
            rows.setdefault(here.step or 0, here)
            here = before.get(here.name)
        chains.append(Chain(tuple(rows[step] for step in sorted(rows)), joint, background))
    names = dict.fromkeys(name for stage in stages for name in stage.miou)
    return Ledger(tuple(stages), tuple(chains), columns(names))


def columns(names: Iterable[str]) -> tuple[str, ...]:
    """Task names in the order of the published tables: 1, 2, 1+2, 3, 1+2+3; what is no task of a number comes last."""
    return tuple(sorted(names, key=_order))


def title(name: str) -> str:
    """``1+2`` as ``Task 1∪2``, long unions as ``Task 1∪…∪6``."""
    parts = name.split("+")
    return f"Task {'∪'.join(parts if len(parts) <= SPELT_OUT else (parts[0], '…', parts[-1]))}"


def union(step: int) -> str:
    """Name of the union of all tasks up to a step."""
    return "+".join(map(str, range(1, step + 1)))


def lines(found: Ledger) -> list[str]:
    """The table for a terminal, in percent: a row for each stage, then a row of sums for each chain of two steps."""
    width = max((len(stage.name) for stage in found.stages), default=0) + 2
    titles = [title(name) for name in found.columns]
    out = [" " * width + "  ".join(titles)]
    for stage in found.stages:
        cells = (_cell(_get(stage.miou, n)).rjust(len(t)) for n, t in zip(found.columns, titles, strict=True))
        out.append(stage.name.ljust(width) + "  ".join(cells))
    for chain in found.chains:
        if len(chain.stages) > 1:
            told = [f"{key} {_cell(value)}" for key, value in chain.summary().items() if not math.isnan(value)]
            out.append(f"{chain.name}: {', '.join(told) or 'no scores'}")
    return out


def _before(stage: Scored, earlier: Sequence[Scored]) -> Scored | None:
    known = {one.name: one for one in earlier if one.step is not None}
    found = next((known[name] for name in stage.before if name in known), None)
    fits = found is not None and stage.step is not None and (found.step or 0) <= stage.step
    return found if fits else None


def _order(name: str) -> tuple[float, int, str]:
    parts = name.split("+")
    digits = all(part.isdecimal() for part in parts)
    return (max(map(int, parts)), len(parts), name) if digits else (math.inf, len(parts), name)


def _get(scores: Mapping[str, float], name: str) -> float:
    return scores.get(name, NAN)


def _mean(values: Iterable[float]) -> float:
    """Mean of the classes that occur, as mIoU is."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else NAN


def _strict_mean(values: Sequence[float]) -> float:
    return fmean(values) if values else NAN


def _best(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=NAN)


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
