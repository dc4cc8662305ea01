"""Results of a table as Markdown: a block of rows for each label, one row a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Protocol

Row = tuple[str, str, int, Mapping[str, Any]]
"""Label, stage, seed, stored cell (empty when missing)."""


class Shape(Protocol):
    """What is needed of a table."""

    @property
    def title(self) -> str: ...
    @property
    def against(self) -> str | None: ...
    @property
    def wins_from_points(self) -> float: ...
    @property
    def apart(self) -> tuple[str, ...]: ...


def markdown(table: Shape, rows: Sequence[Row]) -> str:
    """The whole table; scores in percent, several seeds as mean ± standard deviation (n - 1)."""
    parts = [f"# {table.title}"]
    for label in dict.fromkeys(r[0] for r in rows):
        parts.append(_block(table, label, [r for r in rows if r[0] == label]))
    return "\n\n".join([*parts, *_notes(table, rows)]) + "\n"


def _block(table: Shape, label: str, rows: Sequence[Row]) -> str:
    finished = [r[3] for r in rows if r[3].get("status") == "finished" and r[3].get("evaluations")]
    if not finished:
        return f"## {label}\n\nNothing is finished yet."
    sets = list(finished[0]["evaluations"])
    classes = list(finished[0]["evaluations"][sets[0]]["iou"])
    head = ["stage", f"mIoU {sets[0]}", "accuracy"]
    head += [f"gain over {table.against}"] if table.against else []
    head += [f"mIoU without {', '.join(table.apart)}"] if table.apart else []
    head += [*classes, *(f"mIoU {name}" for name in sets[1:]), "CPU-s"]
    lines = [_line(head), _line(["---"] * len(head))]
    for stage in dict.fromkeys(r[1] for r in rows):
        cells = [r[3] for r in rows if r[1] == stage]
        lines.append(_line(_stage(table, stage, cells, sets, classes, len(head))))
    return f"## {label}\n\n" + "\n".join(lines)


def _stage(
    table: Shape,
    stage: str,
    cells: Sequence[Mapping[str, Any]],
    sets: Sequence[str],
    classes: Sequence[str],
    width: int,
) -> list[str]:
    done = [c for c in cells if c.get("status") == "finished"]
    if not done:
        status = next((c["status"] for c in cells if c), "missing")
        return [stage, status, *[""] * (width - 2)]
    first = [c["evaluations"][sets[0]] for c in done]
    row = [stage, *(_mean([e[key] for e in first]) for key in ("miou", "accuracy"))]
    row += ["; ".join(_gain(c, table.wins_from_points) for c in done)] if table.against else []
    row += [_mean([_without(e["iou"], table.apart) for e in first])] if table.apart else []
    row += [_mean([e["iou"].get(name) for e in first]) for name in classes]
    row += [_mean([c["evaluations"][name]["miou"] for c in done]) for name in sets[1:]]
    return [*row, f"{sum(c['cpu_s'] for c in done):.0f}"]


def _without(iou: Mapping[str, float | None], apart: Sequence[str]) -> float | None:
    known = [v for name, v in iou.items() if name not in apart and v is not None]
    return fmean(known) if known else None


def _mean(values: Sequence[float | None]) -> str:
    known = [100 * v for v in values if v is not None]
    if not known:
        return "absent"
    return f"{fmean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def _gain(cell: Mapping[str, Any], wins_from_points: float) -> str:
    gain = cell.get("gain")
    if not gain:
        return ""
    text = f"{100 * gain['value']:+.1f} [{100 * gain['low']:.1f}, {100 * gain['high']:.1f}]"
    return f"**{text}**" if gain["low"] > 0 and 100 * gain["value"] >= wins_from_points else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(table: Shape, rows: Sequence[Row]) -> list[str]:
    done = [r[3] for r in rows if r[3].get("status") == "finished"]
    out = []
    if table.against:
        bar = f" and is at least {table.wins_from_points:g} points" if table.wins_from_points else ""
        out.append(
            "Gains with the 90 % interval of the paired bootstrap over images, seed by seed; bold: the gain is above "
            f"zero with its whole interval{bar}."
        )
    if done:
        used = {key: sorted({str(c[key]) for c in done}) for key in ("checkpoint", "iterations")}
        trained = [c["training"] for c in done if c["training"]]
        devices = sorted({f"{t['device']}, {t['threads']} threads" for t in trained})
        seeds = ", ".join(map(str, sorted({r[2] for r in rows})))
        shown = f"Checkpoint: {', '.join(used['checkpoint'])}; iterations: {', '.join(used['iterations'])}"
        out.append("; ".join([shown, f"seeds: {seeds}", *devices]) + ".")
    failed = [f"- {label}, {stage}, seed {seed}: {c['message']}" for label, stage, seed, c in rows if "message" in c]
    return [*out, *(["Failed:\n" + "\n".join(failed)] if failed else [])]
