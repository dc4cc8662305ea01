"""What the report shows of class-incremental steps: the table of tasks and unions, sums by chain, and mIoU by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from markupsafe import Markup

from segue.report import charts
from segue.report.annotation import COLORS
from segue.report.read import Run, Stage, number
from segue.report.tables import MAX_ROWS, count
from segue.scoring.ledger import Chain, Ledger, Scored, ledger, title

MAX_COLUMNS = 48
MAX_STEP = 1000
TREATMENTS = {
    "ignore": "pixels of classes that a step does not teach are ignored",
    "background": "pixels of classes that a step does not teach are background",
}


def ledger_of(run: Run) -> Ledger:
    """The ledger of a run's stages, scored on its target; empty when no stage has a step."""
    background = run.labels.background if run.labels else None
    return ledger([_scored(run, stage) for stage in _stages(run)], background)


def extension(run: Run) -> dict[str, Any] | None:
    """Columns, rows, sums and chart for the template; None when no stage has a step."""
    stages = {stage.name: stage for stage in _stages(run)}
    if not stages:
        return None
    found = ledger_of(run)
    columns = found.columns[:MAX_COLUMNS]
    told = {str(_given(stage).get("treatment")): None for stage in stages.values()}
    return {
        "columns": [title(name) for name in columns],
        "rows": [_row(stages[one.name], one, columns) for one in found.stages],
        "chains": [{"name": c.name} | {k: 100 * v for k, v in c.summary().items()} for c in _long(found)],
        "chart": _curve(found),
        "tasks": ", ".join(dict.fromkeys(str(_given(stage).get("task") or "") for stage in stages.values())),
        "treatment": "; ".join(TREATMENTS.get(name, name) for name in told),
    }


def _stages(run: Run) -> list[Stage]:
    return [stage for stage in run.stages if _step(stage) is not None][:MAX_ROWS]


def _given(stage: Stage) -> Mapping[str, Any]:
    given = stage.info.get("extend")
    return given if isinstance(given, dict) else {}


def _step(stage: Stage) -> int | Literal["all"] | None:
    step = _given(stage).get("step")
    return step if step == "all" or (isinstance(step, int) and 0 < step <= MAX_STEP) else None


def _scored(run: Run, stage: Stage) -> Scored:
    evaluations = stage.info.get("evaluations")
    scores = evaluations.get(run.target) if isinstance(evaluations, dict) else None
    tasks = scores.get("tasks") if isinstance(scores, dict) else None
    rows = {str(k): v for k, v in tasks.items() if isinstance(v, dict)} if isinstance(tasks, dict) else {}
    references = stage.info.get("references")
    taught_by = references.values() if isinstance(references, dict) else ()
    step = _step(stage)
    return Scored(
        name=stage.name,
        step=step if isinstance(step, int) else None,
        method=stage.method,
        before=tuple(str(source) for source in (stage.info.get("start"), *taught_by) if source),
        miou={name: number(row.get("miou")) for name, row in rows.items()},
        iou={name: _numbers(row.get("iou")) for name, row in rows.items()},
    )


def _numbers(value: Any) -> dict[str, float]:
    return {str(k): number(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _row(stage: Stage, one: Scored, columns: tuple[str, ...]) -> dict[str, Any]:
    given = _given(stage)
    taught = given.get("taught")
    return {
        "name": one.name,
        "step": "all" if one.step is None else str(one.step),
        "method": one.method,
        "taught": ", ".join(map(str, taught)) if isinstance(taught, list) else "",
        "images": count(given.get("images")),
        "stored": 1e-6 * number(given.get("stored_bytes")),
        "old_data": f"{count(given.get('old_images'))} images" if given.get("old_data") is True else "no",
        "scores": [100 * one.miou.get(name, math.nan) for name in columns],
    }


def _long(found: Ledger) -> list[Chain]:
    return [chain for chain in found.chains if len(chain.stages) > 1]


def _curve(found: Ledger) -> Markup:
    chains = _long(found)
    series = [
        charts.Series(
            chain.name[:22],
            [(float(step), 100 * value) for step, value in zip(chain.steps, chain.seen, strict=True)],
            color,
        )
        for chain, color in zip(chains, COLORS * len(chains), strict=False)
    ]
    return charts.line_chart(series, 540, 220, legend=130)
