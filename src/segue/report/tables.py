"""What the tables of the page hold, as plain rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from segue.alarms import curves, looks_of
from segue.report.charts import row_shares
from segue.report.read import ROLES, Evaluation, Run, Stage, number
from segue.report.verdict import median_seed

ROLE_NAMES = {"source_only": "Source-only", "adapted": "Adapted", "target_supervised": "Target-supervised"}
ROLE_COLORS = {"source_only": "c-source", "adapted": "c-adapted", "target_supervised": "c-super"}
OTHER_COLORS = ("c-4", "c-5", "c-6")
MAX_COMPARED = 6  # stages side by side; a run of more shows them in its table
MAX_ROWS = 100
RECENT = 0.2  # share of the last records that pseudo-label health averages
STARVED = 0.1  # a class below this share of its source prior is named
MIN_PRIOR = 0.001


@dataclass(frozen=True)
class Compared:
    """A stage that charts show: its title and the CSS class of its colour."""

    stage: Stage
    title: str
    color: str


def compared(run: Run) -> list[Compared]:
    """What charts and pictures compare: the role stages, then the newest others in run order; at most six."""
    roles = run.roles
    out = [Compared(roles[r], ROLE_NAMES[r], ROLE_COLORS[r]) for r in ROLES if r in roles]
    taken = {c.stage.name for c in out}
    others = [s for s in run.stages if s.name not in taken][::-1]
    others.sort(key=lambda s: run.target not in s.evaluations)  # scored ones first: Run.main is always among them
    kept = {s.name for s in others[: MAX_COMPARED - len(out)]}
    for stage in (s for s in run.stages if s.name in kept and s.name not in taken):
        color = OTHER_COLORS[(len(out) - len(taken)) % len(OTHER_COLORS)] if out else "c-adapted"
        out.append(Compared(stage, stage.name, color))
    return out


def class_names(run: Run, evaluations: Sequence[Evaluation]) -> list[str]:
    """Classes in the order of the label space, else of the scores."""
    if run.labels is not None:
        return list(run.labels.classes)
    return list(dict.fromkeys(name for e in evaluations for name in e.iou))


def class_rows(run: Run, shown: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row a class: name, colour, whether it has no ground truth, and each stage's IoU on the target in percent."""
    scored = [(c, c.stage.evaluations[run.target]) for c in shown if run.target in c.stage.evaluations]
    rows = []
    matrices = [e.confusion for _, e in scored if e.confusion is not None]
    unlabelled = set(np.flatnonzero(matrices[0].sum(1) == 0).tolist()) if matrices else set()
    for index, name in enumerate(class_names(run, [e for _, e in scored])):
        if not any(name in e.iou for _, e in scored):
            continue
        bars = [{"value": _percent(e.iou.get(name, math.nan)), "color": c.color, "title": c.title} for c, e in scored]
        color = run.labels.colors[index] if run.labels is not None else None
        rows.append({"name": name, "rgb": color, "bars": bars, "unlabelled": index in unlabelled})
    return rows


def mistakes(evaluation: Evaluation, names: Sequence[str], limit: int = 10) -> list[dict[str, Any]]:
    """The most frequent confusions by share of their class's ground truth: truth, predicted, share in percent."""
    if evaluation.confusion is None or len(names) != len(evaluation.confusion):
        return []
    shares = np.nan_to_num(row_shares(evaluation.confusion))[:, : len(names)].copy()
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:limit]
    found = [(*divmod(int(i), len(names)), 100 * shares.flat[i]) for i in order if shares.flat[i] > 0]
    return [{"truth": names[row], "predicted": names[column], "share": share} for row, column, share in found]


def stage_rows(run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the validation sets, and one row a stage with its scores on each (percent or None)."""
    sets = list(dict.fromkeys(name for stage in run.stages for name in stage.evaluations))[:12]
    roles = {stage.name: ROLE_NAMES[role] for role, stage in run.roles.items()}
    rows = []
    for stage in run.stages[:MAX_ROWS]:
        info = stage.info
        rows.append(
            {
                "name": stage.name,
                "role": roles.get(stage.name, ""),
                "method": stage.method,
                "labelled": _labelled(info.get("pseudo_labels")),
                "iterations": count(info.get("iterations")),
                "start": _start(info),
                "status": str(info.get("status") or "unknown"),
                "checkpoint": str(info.get("checkpoint") or "last"),
                "parameters": millions(info.get("parameters")),
                "cpu": duration(info.get("cpu_s")),
                "scores": [_percent(stage.evaluations[s].miou) if s in stage.evaluations else None for s in sets],
            }
        )
    return sets, rows


def _start(info: Mapping[str, Any]) -> str:
    references = info.get("references")
    named = references.values() if isinstance(references, dict) else ()
    return str(info.get("start") or " + ".join(map(str, named)) or "model's own")


def _labelled(made: Any) -> list[str]:
    """What a stage's pseudo-labels hold, a line for each data set."""
    streams = made.values() if isinstance(made, dict) else ()
    rows = [pair for given in streams if isinstance(given, dict) for pair in given.items()]
    return [
        f"{name}: {100 * number(row.get('share_kept')):.0f} % of the pixels pseudo-labelled"
        for name, row in rows
        if isinstance(row, dict)
    ]


def seed_rows(run: Run) -> dict[str, Any] | None:
    """Scores of every seed and role with the median seed named, and their means; None for a single seed."""
    if not run.seeds:
        return None
    first = next(iter(run.seeds.values()))
    roles = [r for r in ROLES if any(r in seed.roles for seed in run.seeds.values())]
    titles = [ROLE_NAMES[r] for r in roles] or ([first.main.name] if first.main else [])
    median = median_seed(run)
    rows: list[dict[str, Any]] = []
    for name, seed in list(run.seeds.items())[:MAX_ROWS]:
        stages = [seed.roles.get(r) for r in roles] or [seed.main]
        scores = [seed.score(s) if s else math.nan for s in stages]
        gain = math.nan
        if {"source_only", "adapted"} <= set(roles):
            gain = scores[roles.index("adapted")] - scores[roles.index("source_only")]
        rows.append(
            {"name": name, "scores": scores, "gain": gain, "median": name == median, "status": seed.info.get("status")}
        )
    columns = list(zip(*([*r["scores"], r["gain"]] for r in rows), strict=True))
    means = [fmean(f) if (f := [v for v in c if not math.isnan(v)]) else math.nan for c in columns]
    return {"titles": titles, "rows": rows, "mean": means[:-1], "mean_gain": means[-1], "median": median}


def pseudo_health(run: Run, stage: Stage) -> dict[str, Any] | None:
    """Share of pixels kept and the classes of the pseudo-labels against the source prior; None when not logged.

    The histogram is the mean of the last fifth of the records. A class is starved when it gets less than a tenth of
    its share in the source labels.
    """
    logged = [r for r in stage.rows if "log/share_kept" in r]
    kept = [(number(r["iteration"]), 100 * number(r["log/share_kept"])) for r in logged]
    histograms = [h for r in stage.rows if (h := _histogram(r.get("log/pseudo_histogram"))) is not None]
    if not kept and not histograms:
        return None
    size = len(histograms[-1]) if histograms else 0
    same = [h for h in histograms if len(h) == size]
    recent = np.mean(same[-max(1, math.ceil(RECENT * len(same))) :], axis=0) if same else np.zeros(0)
    names = list(run.labels.classes) if run.labels is not None else [str(k) for k in range(size)]
    rows = []
    for index, (name, share) in enumerate(zip(names, recent.tolist(), strict=False)):
        prior = stage.prior.get(name, math.nan)
        rgb = run.labels.colors[index] if run.labels is not None else None
        starved = prior >= MIN_PRIOR and share < STARVED * prior
        rows.append({"name": name, "share": 100 * share, "prior": _percent(prior), "starved": starved, "rgb": rgb})
    top = max((max(r["share"], r["prior"] or 0.0) for r in rows), default=0.0)
    starved_names = [r["name"] for r in rows if r["starved"]]
    return {"stage": stage.name, "kept": kept, "rows": rows, "top": top or 1.0, "starved": starved_names}


def watched(stage: Stage) -> dict[str, Any] | None:
    """Alarms of a stage, and what they were raised from by stream; None when nothing was watched."""
    found = [row["alarm"] for row in stage.rows if isinstance(row.get("alarm"), dict)]
    alarms = [str(alarm.get("text", "")) for alarm in found][:MAX_ROWS]
    lines = curves(looks_of(stage.rows))
    return {"stage": stage.name, "alarms": alarms, "curves": lines} if alarms or lines else None


def environment(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs for the table of the environment, those that are known."""
    pairs = [(key, info.get(key)) for key in ("command", "created", "finished", "status", "seed")]
    pairs.append(("CPU time", duration(info.get("cpu_s"))))
    for group in ("machine", "versions"):
        block = info.get(group)
        pairs += list(block.items()) if isinstance(block, dict) else [(group, block)]
    return [(str(k), str(v)) for k, v in pairs if v not in (None, "", "–")][:MAX_ROWS]


def duration(seconds: Any) -> str:
    """CPU seconds for people: ``42 s``, ``12 min``, ``3.1 h``; a dash when unknown."""
    value = number(seconds)
    if math.isnan(value):
        return "–"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _histogram(value: Any) -> list[float] | None:
    if not isinstance(value, list) or not value:
        return None
    shares = [number(v) for v in value]
    return None if any(map(math.isnan, shares)) else shares


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


def count(value: Any) -> str:
    """A whole number with spaces between thousands; a dash when unknown."""
    n = number(value)
    return "–" if math.isnan(n) else f"{n:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def millions(value: Any) -> str:
    """Parameters for people: ``1.20 M``, ``3.1 k``; a dash when unknown."""
    n = number(value)
    return "–" if math.isnan(n) else f"{n / 1e3:.1f} k" if n < 1e5 else f"{n / 1e6:.2f} M"
