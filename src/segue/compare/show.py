"""A comparison as text for a terminal and as CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
import sys

from rich.console import Console
from rich.table import Table

from segue.compare.table import Comparison, Line, Spread
from segue.report.tables import ROLE_NAMES
from segue.report.verdict import percent, points

LOG_COLUMNS = 160
"""Width where there is no terminal to ask, so that a log keeps whole rows."""
CLASS_COLUMNS = 8
TIMES = {"100 it": "wall_s_per_100", "epoch": "wall_s_per_epoch", "scoring": "wall_s_scoring"}
"""Columns of wall-clock seconds."""


def text(found: Comparison) -> None:
    """Print the rows, the classes, and what a reader must know."""
    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS, highlight=False)
    console.print(_summary(found))
    for start in range(0, len(found.lines), CLASS_COLUMNS):
        console.print(_classes(found, found.lines[start : start + CLASS_COLUMNS]))
    for line in found.differ:
        console.print(f"NOT COMPARABLE: {line}", style="bold red", markup=False)
    for line in [*how(found), *found.notes]:
        console.print(line, markup=False)


def how(found: Comparison) -> list[str]:
    """What the numbers are, for the foot of a table."""
    scored = [line for line in found.lines if line.evaluations]
    used = {key: list(dict.fromkeys(line.conditions[key] for line in scored)) for key in ("protocol", "view", "images")}
    chosen = list(dict.fromkeys(line.conditions["checkpoint"] for line in scored))
    out = [
        f"Scores in percent on {found.data}, {' | '.join(used['images'])} images, protocol "
        f"{' | '.join(used['protocol'])}, view {' | '.join(used['view'])}, checkpoint {' | '.join(chosen)}; "
        "absent: neither labelled nor predicted, in no mean."
    ]
    if any(line.miou.count > 1 for line in scored):
        out.append("± is the standard deviation over seeds (n - 1), in brackets the lowest and the highest seed.")
    gains = [line.gain for line in scored if line.gain and line.gain.interval]
    if gains and gains[0].interval:
        out.append(
            f"Gain: {percent(gains[0].interval.level)} interval of the paired bootstrap over images; it covers the "
            "choice of images, not the luck of training."
        )
    return out


def seconds(value: float) -> str:
    """``12.3 s``, or a dash when it was not stored."""
    return "–" if math.isnan(value) else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def score(spread: Spread) -> str:
    """``46.8`` or, over seeds, ``46.8 ± 0.4 [46.3, 47.1]``, in percent."""
    if spread.count < 2:
        return points(spread.mean)
    return f"{points(spread.mean)} ± {points(spread.sd)} [{points(spread.low)}, {points(spread.high)}]"


def gain(line: Line) -> str:
    """``+5.3 [4.5, 6.0] over 1``, or the reason why there is no interval."""
    found = line.gain
    if found is None:
        return ""
    value = points(found.value, sign=True)
    if found.interval is None:
        return f"{value} over {found.against} ({found.reason})"
    low, high = points(found.interval.low), points(found.interval.high)
    return f"{value} [{low}, {high}] over {found.against}{'' if found.clear else ', unclear'}"


def class_score(line: Line, name: str) -> str:
    """IoU in percent, ``absent``, or nothing where the run does not know the class."""
    if name not in line.iou:
        return ""
    spread = line.iou[name]
    return points(spread.mean) if spread.count else "absent"


def _summary(found: Comparison) -> Table:
    table = Table(title=f"mIoU on {found.data}", title_justify="left")
    for name in ("#", "run", "stage", "method", "mIoU", "accuracy", "gain", "seeds", *TIMES):
        right = name in ("#", "accuracy", "seeds", *TIMES)
        # Names give way before numbers where the terminal is narrow.
        wraps = name in ("run", "stage", "method", "gain")
        table.add_column(name, justify="right" if right else "left", no_wrap=not wraps, overflow="fold")
    for x in found.lines:
        stage = f"{x.entry.stage} ({ROLE_NAMES[x.entry.role]})" if x.entry.role else x.entry.stage
        time = [seconds(x.time[key]) for key in TIMES.values()]
        row = (x.entry.run, stage, x.method, score(x.miou), points(x.accuracy.mean), gain(x))
        table.add_row(str(x.number), *map(_plain, row), str(len(x.evaluations)), *time)
    return table


def _classes(found: Comparison, lines: list[Line]) -> Table:
    table = Table(title="IoU by class (columns: rows above)", title_justify="left")
    table.add_column("class")
    for line in lines:
        table.add_column(str(line.number), justify="right")
    for name in found.classes:
        table.add_row(_plain(name), *(class_score(line, name) for line in lines))
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # rich reads brackets as markup


def to_csv(found: Comparison) -> str:
    """One line a row, scores as fractions 0..1; a class the run does not know is empty, an absent one ``absent``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_head(found.lines[0]), *(f"iou {c}" for c in found.classes)])
    for line in found.lines:
        writer.writerow([*_head(line).values(), *(_class_cell(line, c) for c in found.classes)])
    return out.getvalue()


def _head(line: Line) -> dict[str, str]:
    gain_of = line.gain
    spread = gain_of.interval if gain_of else None
    seeds = "; ".join(f"{seed}: {_cell(e.miou)}" for seed, e in line.evaluations.items())
    return {
        "row": str(line.number),
        "run": line.entry.run,
        "stage": line.entry.stage,
        "role": line.entry.role,
        "method": line.method,
        "folder": str(line.entry.folder),
        "data": line.data,
        **{k: v for k, v in line.conditions.items() if k != "classes"},
        "seeds": str(len(line.evaluations)),
        "miou": _cell(line.miou.mean),
        "miou_sd": _cell(line.miou.sd),
        "miou_min": _cell(line.miou.low),
        "miou_max": _cell(line.miou.high),
        "miou_by_seed": seeds,
        "accuracy": _cell(line.accuracy.mean),
        "against": str(gain_of.against) if gain_of else "",
        "gain": _cell(gain_of.value) if gain_of else "",
        "gain_low": _cell(spread.low) if spread else "",
        "gain_high": _cell(spread.high) if spread else "",
        "gain_level": _cell(spread.level) if spread else "",
        "no_interval_because": gain_of.reason if gain_of else "",
        **{name: _cell(value) for name, value in line.time.items()},
        "device": line.device,
    }


def _class_cell(line: Line, name: str) -> str:
    if name not in line.iou:
        return ""
    return _cell(line.iou[name].mean) if line.iou[name].count else "absent"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
