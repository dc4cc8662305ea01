"""A comparison as one self-contained page, in the style of the report."""

from __future__ import annotations

import math
from typing import Any

from segue.compare import show
from segue.compare.table import Comparison, Line
from segue.report import charts
from segue.report.page import clip, environment
from segue.report.tables import ROLE_NAMES
from segue.report.verdict import percent, points

COLORS = ("c-source", "c-adapted", "c-super", "c-4", "c-5", "c-6")
MAX_BARS = len(COLORS)  # rows side by side in the bars of a class; more are told in numbers alone
MAX_LINES = 200


def render(found: Comparison) -> str:
    """The page as HTML."""
    lines = found.lines[:MAX_LINES]
    headline, evidence = _headline(found)
    return (
        environment()
        .get_template("compare.html")
        .render(
            data=found.data,
            headline=headline,
            evidence=evidence,
            differ=found.differ,
            notes=found.notes,
            how=show.how(found),
            rows=[_row(line) for line in lines],
            gains=_gains(lines),
            legend=[(line.number, line.name, _color(line)) for line in lines] if len(lines) <= MAX_BARS else [],
            classes=[_class(name, lines) for name in found.classes],
            numbers=[line.number for line in lines],
        )
    )


def _headline(found: Comparison) -> tuple[str, str]:
    scored = [line for line in found.lines if line.miou.count]
    if found.differ:
        return "These rows are not directly comparable.", "What differs is listed below; read each number with it."
    if not scored:
        return "No score to compare.", "No stage has been scored on labelled pixels."
    free = [line for line in scored if line.entry.role != "target_supervised"]  # which is a bound, not a rival
    best = max(free or scored, key=lambda line: line.miou.mean)
    name = f"{best.name} reaches {points(best.miou.mean)} mIoU on {found.data}"
    return f"{name}, the highest of {len(free or scored)}." if len(free) > 1 else f"{name}.", _evidence(best)


def _evidence(line: Line) -> str:
    given = line.gain
    if given is None:
        return f"Row {line.number}."
    over = f"Row {line.number}: {points(given.value, sign=True)} points over row {given.against}"
    if given.interval is None:
        return f"{over}, without an interval: {given.reason}."
    low, high = points(given.interval.low), points(given.interval.high)
    text = f"{over} ({percent(given.interval.level)} interval {low} to {high}, paired bootstrap over images)."
    return text if given.clear else f"{text} The interval includes zero: no clear difference."


def _color(line: Line) -> str:
    return COLORS[(line.number - 1) % len(COLORS)]


def _row(line: Line) -> dict[str, Any]:
    return {
        "number": line.number,
        "color": _color(line),
        "run": line.entry.run,
        "stage": line.entry.stage,
        "role": ROLE_NAMES.get(line.entry.role, ""),
        "method": line.method,
        "miou": show.score(line.miou),
        "accuracy": points(line.accuracy.mean),
        "gain": show.gain(line),
        "seeds": len(line.evaluations),
        "times": [show.seconds(line.time[key]) for key in show.TIMES.values()],
        "conditions": ", ".join(line.conditions[k] for k in ("protocol", "view", "checkpoint")),
        "images": line.conditions["images"],
    }


def _gains(lines: list[Line]) -> Any:
    rows = []
    for line in lines:
        if line.gain is not None:
            low, high = (line.gain.interval.low, line.gain.interval.high) if line.gain.interval else (math.nan,) * 2
            name = clip(f"{line.number} · {line.entry.stage} over {line.gain.against}", 44)
            rows.append((name, 100 * line.gain.value, 100 * low, 100 * high, _color(line)))
    return charts.intervals(rows)


def _class(name: str, lines: list[Line]) -> dict[str, Any]:
    """One row of the class table; the best of several is named when it is one."""
    values = [line.iou[name].mean if name in line.iou else math.nan for line in lines]
    known = [v for v in values if not math.isnan(v)]
    top = max(known) if len(known) > 1 and known.count(max(known)) == 1 else None
    cells = [(show.class_score(line, name), v == top) for line, v in zip(lines, values, strict=True)]
    bars = [(_color(line), 0.0 if math.isnan(v) else 100 * v) for line, v in zip(lines, values, strict=True)]
    return {"name": name, "cells": cells, "bars": bars if known and len(lines) <= MAX_BARS else []}
