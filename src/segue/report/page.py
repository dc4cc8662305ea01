"""The page: what the template is given, and the size limit.

The page is drawn at falling picture sizes until it fits; without pictures its text is bounded (capped rows, classes,
charts, config), so that it always does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segue.report import charts, tables
from segue.report.annotation import annotation
from segue.report.extension import extension
from segue.report.following import following
from segue.report.pictures import Album, Column, Row
from segue.report.read import ROLES, Run, Stage, number
from segue.report.tables import ROLE_COLORS, ROLE_NAMES, Compared
from segue.report.verdict import Verdict, judge, median_seed, percent, points, unfinished

LIMIT_BYTES = 5_000_000
PICTURES = ((560, 6), (400, 5), (280, 3), (200, 2), (0, 0))  # width in px, rows of examples and of worst images
MAX_CONFIG = 100_000
MAX_TEXT = 120
MAX_TERMS = 12
MAX_CHIPS = 40


@dataclass(frozen=True)
class Number:
    """One of the large numbers at the top."""

    title: str
    value: str
    note: str
    color: str


def render(run: Run) -> str:
    """The whole page as HTML, at most ``LIMIT_BYTES`` long in UTF-8."""
    median = median_seed(run)
    shown = run if median is None else run.seeds[median]
    context = _context(run, shown, judge(shown, run))
    html = ""
    for width_px, rows in PICTURES:
        html = environment().get_template("report.html").render(context | _pictures(shown, width_px, rows))
        if len(html.encode()) <= LIMIT_BYTES:
            break
    return html


@cache
def environment() -> Environment:
    """The templates of this folder, with the filters that they use."""
    loader = PackageLoader("segue", "report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"points": points, "percent": percent, "clip": clip, "one": _one, "rgb": _rgb}
    environment.lstrip_blocks = True
    return environment


def clip(text: object, limit: int = MAX_TEXT) -> str:
    """Text of at most ``limit`` characters, cut with an ellipsis; lone surrogates, which are no UTF-8, are replaced."""
    clean = str(text).encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _context(run: Run, shown: Run, verdict: Verdict) -> dict[str, Any]:
    compared = tables.compared(shown)
    sets, stages = tables.stage_rows(shown)
    health = [h for s in shown.stages[: tables.MAX_COMPARED] if (h := tables.pseudo_health(shown, s))]
    return {
        "head": {key: _known(run.info.get(key)) for key in ("name", "recipe", "created", "seed")},
        "run": shown,
        "state": unfinished(run).rstrip(":"),
        "seed": median_seed(run),
        "verdict": verdict,
        "numbers": _numbers(shown),
        "scale": _scale(shown, verdict),
        "compared": [c for c in compared if shown.target in c.stage.evaluations],
        "classes": tables.class_rows(shown, compared),
        "sets": sets,
        "stages": stages,
        "seeds": tables.seed_rows(run),
        "confusion": _confusion(shown),
        "curves": _score_curve(shown, compared),
        "losses": [(c.stage.name, *loss) for c in compared for loss in _losses(c.stage)],
        "annotation": annotation(shown),
        "extension": extension(shown),
        "following": following(shown),
        "health": [h | {"chart": _kept(h)} for h in health],
        "watched": [
            w | {"charts": _watched(w)} for s in shown.stages[: tables.MAX_COMPARED] if (w := tables.watched(s))
        ],
        "environment": tables.environment({**run.info, "cpu_s": run.info.get("cpu_s", run.result.get("cpu_s"))}),
        "config": run.config[:MAX_CONFIG] + ("\n…" if len(run.config) > MAX_CONFIG else ""),
        "notes": _notes(run),
        "problems": list(dict.fromkeys(run.problems))[: tables.MAX_ROWS],
        "evaluation": shown.main.evaluations.get(shown.target or "") if shown.main else None,
    }


def _numbers(run: Run) -> list[Number]:
    """The role stages on the target; without roles the main stage on each validation set, at most three."""
    roles = [(role, run.roles[role]) for role in ROLES if role in run.roles]
    base = run.score(run.roles["source_only"]) if "source_only" in run.roles else math.nan
    out = []
    for role, stage in roles:
        change = run.score(stage) - base if role != "source_only" else math.nan
        note = "mIoU" if math.isnan(change) else f"mIoU, {points(change, sign=True)} points"
        out.append(Number(ROLE_NAMES[role], points(run.score(stage)), note, ROLE_COLORS[role]))
    if roles or run.main is None:
        return out
    scored = list(run.main.evaluations.items())[:3]
    return [Number(name, points(e.miou), f"mIoU of {run.main.name}", "c-adapted") for name, e in scored]


def _scale(run: Run, verdict: Verdict) -> Markup:
    named = [(ROLE_NAMES[r], 100 * run.score(run.roles[r]), ROLE_COLORS[r]) for r in ROLES if r in run.roles]
    if verdict.gain is None or [n for n, *_ in named[:2]] != [ROLE_NAMES[r] for r in ROLES[:2]]:
        return charts.scale(named, None)
    base = named[0][1]
    return charts.scale(named, (base + 100 * verdict.gain.low, base + 100 * verdict.gain.high))


def _pictures(run: Run, width_px: int, limit: int) -> dict[str, Any]:
    """The hero row, further examples, the worst images, and the colours that occur in the hero row."""
    album = Album(run, width_px)
    compared = tables.compared(run)
    columns = [Column(c.stage, clip(c.title, 40), c.color) for c in compared]
    roles = run.roles
    own = next((c for c in columns if run.main and c.stage.name == run.main.name), None)
    hero_stages = [roles[r].name for r in ("source_only", "adapted") if r in roles]
    hero_columns = [c for c in columns if c.stage.name in hero_stages] or ([own] if own else [])
    files = album.ids()
    hero = next((row for f in files if (row := album.row(f, hero_columns))), None)
    others = [row for f in files[1 : limit + 1] if (row := album.row(f, columns))]
    return {
        "hero": hero,
        "examples": others,
        "worst": album.worst(own, limit) if own else [],
        "worst_list": _worst_list(run),
        "chips": _chips(run, hero),
    }


def _worst_list(run: Run) -> list[tuple[str, float]]:
    evaluation = run.main.evaluations.get(run.target or "") if run.main else None
    return evaluation.worst[:12] if evaluation else []


def _chips(run: Run, hero: Row | None) -> list[tuple[str, tuple[int, int, int]]]:
    if hero is None or run.labels is None:
        return []
    present = sorted({c for p in hero.pictures for c in p.classes})
    labels = run.labels
    chips = [(labels.classes[c], labels.colors[c]) for c in present if c < len(labels)]
    return [*chips[:MAX_CHIPS], *([("not labelled", (0, 0, 0))] if max(present, default=0) >= len(labels) else [])]


def _confusion(run: Run) -> dict[str, Any] | None:
    evaluation = run.main.evaluations.get(run.target or "") if run.main else None
    if run.main is None or evaluation is None or evaluation.confusion is None:
        return None
    names = tables.class_names(run, [evaluation])
    if len(names) != len(evaluation.confusion):
        return None
    chart = charts.heat_map(evaluation.confusion, [clip(n, 24) for n in names])
    return {"stage": run.main.name, "chart": chart, "mistakes": tables.mistakes(evaluation, names)}


def _score_curve(run: Run, compared: Sequence[Compared]) -> list[tuple[str, Markup]]:
    """One chart for each validation set: mIoU in percent while training, a line a stage."""
    rows = [row for c in compared for row in c.stage.rows]
    keys = list(dict.fromkeys(k for row in rows for k in row if k.startswith("miou/")))[:MAX_TERMS]
    out = []
    for key in keys:
        series = []
        for c in compared:
            found = [(number(r["iteration"]), 100 * number(r[key])) for r in c.stage.rows if key in r]
            series.append(charts.Series(clip(c.title, 22), found, c.color))
        if any(len(charts.thin(s.points)) > 1 for s in series):
            out.append((key.removeprefix("miou/"), charts.line_chart(series, 540, 220, legend=130)))
    return out


def _losses(stage: Stage) -> list[tuple[str, Markup]]:
    keys = list(dict.fromkeys(k for r in stage.rows for k in r if k.startswith("loss/")))[:MAX_TERMS]
    out = []
    for key in keys:
        found = [(number(r["iteration"]), number(r[key])) for r in stage.rows if key in r]
        name = clip(key.removeprefix("loss/"), 30)
        if len(found) > 1:
            out.append((name, charts.line_chart([charts.Series(name, found, "c-ink")])))
    return out


def _watched(found: dict[str, Any]) -> list[tuple[str, Markup]]:
    lines = [(f"{clip(s, 30)}: {n}", points) for s, by_name in found["curves"].items() for n, points in by_name.items()]
    return [(n, charts.line_chart([charts.Series(n, p, "c-adapted")], 380, 170)) for n, p in lines[:MAX_TERMS]]


def _kept(health: dict[str, Any]) -> Markup:
    return charts.line_chart([charts.Series("share kept", health["kept"], "c-adapted")], 380, 170, y_zero=True)


def _notes(run: Run) -> list[str]:
    notes = run.info.get("notes")
    licences = run.info.get("licences")
    out = [str(n) for n in notes] if isinstance(notes, list) else []
    if isinstance(licences, dict):
        out += [f"{name}: {text}" for name, text in licences.items()]
    return out[: tables.MAX_ROWS]


def _known(value: object) -> str:
    return "" if value is None else str(value)


def _one(value: float | None) -> str:
    """Percent with one decimal, a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def _rgb(color: Sequence[int] | None) -> str:
    """A CSS colour from three numbers, which are all that can get into it."""
    return "transparent" if color is None else "rgb({},{},{})".format(*(int(c) % 256 for c in color[:3]))
