"""What the report shows of annotation: rounds as rows, and mIoU over the share of the pool that was bought."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from segue.report import charts
from segue.report.read import Run, Stage, number
from segue.report.tables import MAX_ROWS

COLORS = ("c-adapted", "c-super", "c-source", "c-4", "c-5", "c-6")


def annotation(run: Run) -> dict[str, Any] | None:
    """Rows, chart and forecasts for the template; None when nothing was bought."""
    bought = [stage for stage in run.stages if isinstance(stage.info.get("annotate"), dict)][:MAX_ROWS]
    if not bought:
        return None
    groups: dict[str, list[Stage]] = {}
    for stage in bought:
        groups.setdefault(str(stage.info["annotate"].get("group")), []).append(stage)
    told = {name: str(stages[-1].info["annotate"].get("forecast") or "") for name, stages in groups.items()}
    return {
        "rows": [_row(run, stage) for stage in bought],
        "chart": _curve(run, groups),
        "forecasts": {name: text for name, text in told.items() if text},
    }


def _row(run: Run, stage: Stage) -> dict[str, Any]:
    given = stage.info["annotate"]
    whole = {key: int(v) if math.isfinite(v := number(given.get(key))) else 0 for key in ("round", "regions", "clicks")}
    return {
        "group": str(given.get("group")),
        **whole,
        "share": _share(stage),
        "minutes": number(given.get("minutes")),
        "miou": 100 * run.score(stage),
    }


def _share(stage: Stage) -> float:
    """Percent of the pool's pixels that has been bought."""
    given = stage.info["annotate"]
    pool_px = number(given.get("pool_px"))
    return round(100 * number(given.get("labelled_px")) / pool_px, 2) if pool_px > 0 else math.nan


def _curve(run: Run, groups: dict[str, list[Stage]]) -> Markup:
    by_name = {stage.name: stage for stage in run.stages}
    series = []
    for (name, stages), color in zip(groups.items(), COLORS * len(groups), strict=False):
        before = by_name.get(str(stages[0].info.get("start")))
        points = [(0.0, 100 * run.score(before))] if before else []
        points += [(_share(stage), 100 * run.score(stage)) for stage in stages]
        series.append(charts.Series(name[:22], points, color))
    return charts.line_chart(series, 540, 220, legend=130)
