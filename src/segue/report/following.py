"""What the report shows of a followed stream: source and target after every bucket, sums, and streams side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from segue.report import charts
from segue.report.annotation import COLORS
from segue.report.read import Run, Stage, number
from segue.report.tables import MAX_ROWS, count, millions
from segue.report.verdict import gain_of, points
from segue.scoring.stream_ledger import Stream, StreamLedger, Visited, stream_ledger

MAX_COLUMNS = 12
MAX_BUCKET = 1000


def stream_ledger_of(run: Run) -> StreamLedger:
    """The ledger of a run's followed streams; empty when no stage followed one."""
    return stream_ledger([_visited(stage) for stage in run.stages], run.target)


def following(run: Run) -> dict[str, Any] | None:
    """Columns, rows, sums, charts and the comparison for the template; None when no stage followed a stream."""
    found = stream_ledger_of(run)
    if not found.streams:
        return None
    stages = {stage.name: stage for stage in run.stages}
    columns, streams = found.columns[:MAX_COLUMNS], found.streams[:MAX_ROWS]
    rows = [_row(stages[one.name], stream, one, columns) for stream in found.told for one in stream.rows]
    return {
        "columns": columns,
        "source": streams[0].source or "the source",
        "target": streams[0].target or "the target",
        "rows": rows[:MAX_ROWS],
        "sums": [_sums(stages, stream) for stream in streams],
        "compared": [(row.name, [100 * score for score in row.scores]) for row in found.compared[:MAX_ROWS]],
        "charts": _charts(_drawn(run, [stream for stream in found.told if len(stream.rows) > 1])),
    }


def _given(stage: Stage) -> Mapping[str, Any]:
    given = stage.info.get("follow")
    return given if isinstance(given, dict) else {}


def _visited(stage: Stage) -> Visited:
    given = _given(stage)
    bucket = given.get("bucket")
    return Visited(
        name=stage.name,
        miou={data: scores.miou for data, scores in stage.evaluations.items()},
        accuracy={data: scores.mean_accuracy for data, scores in stage.evaluations.items()},
        group=str(given.get("group") or stage.name),
        bucket=bucket if isinstance(bucket, int) and 0 < bucket <= MAX_BUCKET else 0,
        began=str(given.get("from") or ""),
        source=str(given.get("source") or ""),
    )


def _row(stage: Stage, stream: Stream, one: Visited, columns: tuple[str, ...]) -> dict[str, Any]:
    given = {} if one is stream.start else _given(stage)
    layers, trained = given.get("layers"), given.get("trained")
    low, high = number(given.get("low")), number(given.get("high"))
    return {
        "name": one.name,
        "bucket": 0 if one is stream.start else one.bucket,
        "images": count(given.get("images")),
        "range": "" if math.isnan(low + high) else f"{low:.3g} to {high:.3g}",
        "by": str(given.get("by") or ""),
        "order": str(given.get("order") or ""),
        "trained": millions(trained[0]) if isinstance(trained, list) and trained else "–",
        "layers": ", ".join(map(str, layers)) if isinstance(layers, list) else "",
        "scores": [
            (100 * one.miou.get(data, math.nan), points(stream.change(one, data), sign=True)) for data in columns
        ],
    }


def _sums(stages: Mapping[str, Stage], stream: Stream) -> dict[str, Any]:
    sums = stream.summary()
    changed = [
        (points(sums[key], sign=True), _interval(stages, stream, data))
        for key, data in (("target", stream.target), ("source", stream.source))
    ]
    told = {str(_given(stages[one.name]).get("source_data") or "unknown") for one in stream.buckets.values()}
    scores = [100 * sums[key] for key in ("forgetting", "worst", "mean", "average")]
    return {"name": stream.name, "changed": changed, "scores": scores, "source_data": "; ".join(sorted(told))}


def _interval(stages: Mapping[str, Stage], stream: Stream, data: str) -> str:
    found = gain_of(data, stages[stream.start.name], stages[stream.last.name]) if stream.start else None
    if found is None or math.isnan(found.low):
        return ""
    return f"{points(found.low, sign=True)} to {points(found.high, sign=True)}"


def _drawn(run: Run, streams: list[Stream]) -> list[Stream]:
    """As many streams as there are colours, that of the run's adapted stage always among them."""
    main = run.main.name if run.main else ""
    chosen = sorted(streams, key=lambda stream: all(one.name != main for one in stream.rows))[: len(COLORS)]
    return [stream for stream in streams if stream in chosen]


def _charts(streams: list[Stream]) -> list[tuple[str, Markup]]:
    """Both data sets of the only stream in one chart; of several, a chart for each data set with a line a stream."""
    if len(streams) == 1:
        (stream,) = streams
        lines = (("source", stream.on_source, "c-source"), ("target", stream.on_target, "c-adapted"))
        return [("mIoU on source and target", _chart([_series(*line) for line in lines]))]
    of_source = [_series(s.name, s.on_source, color) for s, color in zip(streams, COLORS, strict=False)]
    of_target = [_series(s.name, s.on_target, color) for s, color in zip(streams, COLORS, strict=False)]
    drawn = [("mIoU on the source", _chart(of_source)), ("mIoU on the target", _chart(of_target))]
    return [(title, chart) for title, chart in drawn if chart]


def _series(name: str, curve: list[float], color: str) -> charts.Series:
    return charts.Series(name[:22], [(float(k), 100 * value) for k, value in enumerate(curve)], color)


def _chart(series: list[charts.Series]) -> Markup:
    return charts.line_chart(series, 540, 220, legend=130)
