"""The ledger of a followed stream: what a model gains on the target and loses on the source, bucket by bucket.

Bucket 0 is the model that a stream began with. Of both data sets: the mIoU after every bucket and its change against
bucket 0. Forgetting is the best source score before the last bucket minus that after it (Chaudhry et al., ECCV 2018,
with the source as the one earlier task). ``average`` is the mean of source and target after the last bucket: where it
is below that of bucket 0, the stream cost more than it brought.
Scores are shares 0..1; what misses a score is NaN, never computed from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

NAN = math.nan


@dataclass(frozen=True)
class Visited:
    """A stage with its scores by evaluation set: ``miou``, and ``accuracy``, the mean over the classes.

    Of a stage that followed a stream also ``group`` (name of the stream), ``bucket`` (from 1), ``began`` (name of the
    stage that the stream began with) and ``source`` (which evaluation set is the source's).
    """

    name: str
    miou: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    bucket: int = 0
    began: str = ""
    source: str = ""


@dataclass(frozen=True)
class Stream:
    """Stages that followed one stream, by bucket; ``start`` None: it began with a model that the run did not score."""

    name: str
    source: str
    target: str
    start: Visited | None
    buckets: Mapping[int, Visited]

    @property
    def rows(self) -> list[Visited]:
        """The model that it began with, then every bucket in ascending order."""
        return [*([self.start] if self.start else []), *(self.buckets[number] for number in sorted(self.buckets))]

    @property
    def last(self) -> Visited:
        """After the last bucket."""
        return self.buckets[max(self.buckets)]

    @cached_property
    def on_source(self) -> list[float]:
        """mIoU on the source after bucket 0, 1, … (NaN where a bucket has no score)."""
        return self._curve(self.source)

    @cached_property
    def on_target(self) -> list[float]:
        """mIoU on the target after bucket 0, 1, … (NaN where a bucket has no score)."""
        return self._curve(self.target)

    def change(self, stage: Visited, data: str) -> float:
        """mIoU of a stage minus that of bucket 0; NaN for bucket 0 itself."""
        return (
            NAN if self.start is None or stage is self.start else _get(stage.miou, data) - _get(self.start.miou, data)
        )

    def summary(self) -> dict[str, float]:
        """After the last bucket: change on ``target`` and ``source``, ``forgetting``, ``average`` of both data sets.

        Over all buckets: ``mean`` on the target, ``worst`` drop on the source below bucket 0.
        """
        source, target = self.on_source, self.on_target
        return {
            "target": target[-1] - target[0],
            "source": source[-1] - source[0],
            "forgetting": _strict_max(source[:-1]) - source[-1],
            "mean": fmean(target[1:]),
            "average": (source[-1] + target[-1]) / 2,
            "worst": _strict_max([source[0] - score for score in source[1:]]),
        }

    def _curve(self, data: str) -> list[float]:
        stages = [self.start, *(self.buckets.get(number + 1) for number in range(max(self.buckets)))]
        return [NAN if stage is None else _get(stage.miou, data) for stage in stages]


@dataclass(frozen=True)
class Compared:
    """A row of the table that compares streams by their ends.

    ``scores``: mean accuracy and mIoU on the source, the same on the target, mean of both mIoU.
    """

    name: str
    scores: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class StreamLedger:
    """The streams of a run, and the names of all evaluation sets: sources, targets, others."""

    streams: tuple[Stream, ...]
    columns: tuple[str, ...]

    @property
    def told(self) -> list[Stream]:
        """Streams that are told bucket by bucket: those of several buckets, or the only one."""
        return [stream for stream in self.streams if len(self.streams) == 1 or len(stream.buckets) > 1]

    @property
    def compared(self) -> list[Compared]:
        """The models that the streams began with, then every stream's end; empty unless there are several streams."""
        if len(self.streams) < 2:
            return []
        starts = {s.start.name: _compared(s.start.name, s.start, s) for s in self.streams if s.start}
        return [*starts.values(), *(_compared(stream.name, stream.last, stream) for stream in self.streams)]


def stream_ledger(stages: Sequence[Visited], target: str | None) -> StreamLedger:
    """Streams of a run's stages, in the order in which they ran; of several stages of one bucket the last counts.

    ``target``: evaluation set of the run's target; a stream whose source it is takes the first other one.
    """
    known = {stage.name: stage for stage in stages}
    groups: dict[str, dict[int, Visited]] = {}
    for stage in stages:
        if stage.bucket > 0:
            groups.setdefault(stage.group, {})[stage.bucket] = stage
    scored = [data for stage in stages for data in stage.miou]
    streams = []
    for name, buckets in groups.items():
        first = buckets[min(buckets)]
        others = [data for data in (target, *scored) if data and data != first.source]
        streams.append(Stream(name, first.source, next(iter(others), ""), known.get(first.began), buckets))
    named = [stream.source for stream in streams] + [stream.target for stream in streams]
    return StreamLedger(tuple(streams), tuple(dict.fromkeys(data for data in (*named, *scored) if data)))


def lines(found: StreamLedger) -> list[str]:
    """The tables for a terminal, in percent: every bucket of a stream and its sums; then the streams' ends."""
    out = []
    for stream in found.told:
        head = [stream.name, "bucket", *found.columns]
        out += _table([head, *(_cells(stream, stage, found.columns) for stage in stream.rows)])
    if found.compared:
        first = found.streams[0]
        head = ["", f"{first.source} mAcc", "mIoU", f"{first.target} mAcc", "mIoU", "mean mIoU"]
        out += _table([head, *([row.name, *map(_percent, row.scores)] for row in found.compared)])
    for stream in found.streams:
        sums = [f"{key} {_sum(key, value)}" for key, value in stream.summary().items() if not math.isnan(value)]
        out.append(f"{stream.name}: {', '.join(sums) or 'no scores'}")
    return out


def _compared(name: str, stage: Visited, stream: Stream) -> Compared:
    source, target = _get(stage.miou, stream.source), _get(stage.miou, stream.target)
    accuracy = [_get(stage.accuracy, data) for data in (stream.source, stream.target)]
    return Compared(name, (accuracy[0], source, accuracy[1], target, (source + target) / 2))


def _cells(stream: Stream, stage: Visited, columns: Sequence[str]) -> list[str]:
    cells = [stage.name, "0" if stage is stream.start else str(stage.bucket)]
    for data in columns:
        change = stream.change(stage, data)
        cells.append(_percent(_get(stage.miou, data)) + ("" if math.isnan(change) else f" ({100 * change:+.1f})"))
    return cells


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return ["  ".join(row) for row in padded]


def _get(scores: Mapping[str, float], name: str) -> float:
    return scores.get(name, NAN)


def _strict_max(values: Sequence[float]) -> float:
    return NAN if any(map(math.isnan, values)) else max(values)


def _sum(key: str, value: float) -> str:
    return f"{100 * value:+.1f}" if key in ("target", "source") else _percent(value)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
