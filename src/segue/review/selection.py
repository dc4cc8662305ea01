"""What rounds of buying add up to, as text for a terminal and as one page in the style of the report."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from segue.acquire.analysis import QUANTILES, Against, Analysis, Bought, quantiles
from segue.report import charts
from segue.report.verdict import percent, points
from segue.review.page import count, environment, short

COLUMNS = 80
"""Width where there is no terminal to ask."""
BINS = 24


@dataclass(frozen=True)
class Other:
    """Another choice that this one is held against, under a name."""

    name: str
    found: Against

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {"name": self.name, **asdict(self.found)}


def text(found: Analysis, other: Other | None = None) -> None:
    """Print rounds, classes, and what a reader must know."""
    console = Console(width=None if sys.stdout.isatty() else COLUMNS, highlight=False)
    console.print(_rounds(found))
    console.print(_classes(found))
    for line in [*notes(found, other), *found.forecast_lines()]:
        console.print(line, markup=False, style="bold red" if line.startswith("OVERLAP") else None)
    if found.weights is not None:
        console.print("Class weights that this choice induced, for a stage's method on all labels:")
        # One line whatever the width: it is there to be copied.
        console.print(weights_line(found.weights), markup=False, soft_wrap=True)


def notes(found: Analysis, other: Other | None = None) -> list[str]:
    """Sizes, overlap between rounds, overlap with another choice: one sentence each."""
    least, *between, most = (count(q) for q in quantiles(found.total.area_px))
    named = ", ".join(f"{percent(q)} {size}" for q, size in zip(QUANTILES[1:-1], between, strict=True))
    out = [f"Areas of regions in px: least {least}, {named}, most {most}."] if found.total.regions else []
    if found.overlap_px:
        pairs = ", ".join(f"{a} and {b}: {count(px)} px" for (a, b), px in found.overlap_px.items())
        out.append(f"OVERLAP: pixels were bought twice, in rounds {pairs}; these rounds do not belong together.")
    elif len(found.rounds) > 1:
        out.append(f"{count(found.several)} images were chosen from by several rounds; no pixel was bought twice.")
    if other:
        same = "" if other.found.regions is None else f", {100 * other.found.regions:.1f} % of all regions"
        out.append(
            f"Against {other.name}: {count(other.found.both_px)} px in both, {100 * other.found.pixels:.1f} % of all "
            f"bought pixels{same}; {count(other.found.images)} images in both."
        )
    return out


def weights_line(weights: Sequence[float]) -> str:
    """Class weights as a recipe takes them."""
    return f"criterion: {{class_weights: [{', '.join(f'{w:.4g}' for w in weights)}]}}"


def _rounds(found: Analysis) -> Table:
    table = Table(title=f"What {found.group} bought", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    names = ("round", "regions", "images", "px", "ignored", "of pool", "clicks", "minutes", "mIoU")
    for name in names:
        table.add_column(name, justify="left" if name == "round" else "right", no_wrap=True)
    rows = [(str(n), b, found.miou.get(n, math.nan)) for n, b in found.rounds.items()]
    for name, bought, miou in [*rows, ("all", found.total, math.nan)]:
        table.add_row(name, *_cells(bought, found.pool_px), "" if math.isnan(miou) else points(miou / 100))
    return table


def _cells(bought: Bought, pool_px: int) -> list[str]:
    share = f"{100 * bought.labelled_px / pool_px:.2f} %"
    return [
        count(bought.regions),
        count(bought.images),
        short(bought.labelled_px),
        short(bought.ignored_px),
        share,
        count(bought.clicks),
        count(bought.minutes),
    ]


def _classes(found: Analysis) -> Table:
    table = Table(title="By class", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    truth = ("of its pool", "weight") if found.truth_px is not None else ()
    for name in ("class", "predicted px", "answered px", "of answers", *truth):
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=name != "class", overflow="fold")
    for row in class_rows(found):
        table.add_row(
            row["name"].replace("[", r"\["),
            short(row["predicted"]),
            short(row["answered"]),
            row["of_answers"],
            *((row["of_pool"], row["weight"]) if truth else ()),
        )
    return table


def class_rows(found: Analysis) -> list[dict[str, Any]]:
    """One row a class: pixels, shares as text, and by round what the bars show."""
    total, answered = found.total, max(int(found.total.answered_px.sum()), 1)
    weights = found.weights
    bars = "answered_px" if total.answered_px.any() else "predicted_px"
    longest = max(int(getattr(total, bars).max()), 1)
    rows = []
    for index, name in enumerate(found.labels.classes):
        truth = None if found.truth_px is None else int(found.truth_px[index])
        rows.append(
            {
                "name": name,
                "color": found.labels.colors[index],
                "predicted": int(total.predicted_px[index]),
                "answered": int(total.answered_px[index]),
                "of_answers": f"{100 * total.answered_px[index] / answered:.1f} %",
                "of_pool": f"{100 * total.answered_px[index] / truth:.2f} %" if truth else "–",
                "weight": "–" if weights is None or not truth else f"{weights[index]:.3g}",
                "bars": [(n, 100 * int(getattr(b, bars)[index]) / longest) for n, b in found.rounds.items()],
            }
        )
    return rows


def render(found: Analysis, other: Other | None, run: str) -> str:
    """The page as HTML."""
    total = found.total
    return (
        environment()
        .get_template("selection.html")
        .render(
            found=found,
            run=run,
            bars="Answered" if total.answered_px.any() else "Predicted",
            rows=[(n, _cells(b, found.pool_px), found.miou.get(n)) for n, b in found.rounds.items()],
            total=_cells(total, found.pool_px),
            classes=class_rows(found),
            notes=notes(found, other),
            forecasts=found.forecast_lines(),
            weights=None if found.weights is None else weights_line(found.weights),
            shades={n: _shade(k, len(found.rounds)) for k, n in enumerate(found.rounds)},
            areas=histogram(total.area_px.tolist()),
            costs=_costs(found),
            scores=_scores(found),
        )
    )


def histogram(values: Sequence[float], width: int = 540, height: int = 220) -> Markup:
    """Counts of positive values in equal steps of their logarithm, as SVG; empty without values."""
    logs = np.log10(np.maximum(values, 1))
    if not len(logs):
        return Markup("")
    counts, edges = np.histogram(logs, BINS, (logs.min(), max(logs.max(), logs.min() + 0.1)))
    left, bottom, top = 40, 24, 10
    step, high = (width - left - 8) / BINS, height - bottom - top
    parts = []
    for tick in charts.nice_ticks(0, int(counts.max()), 3):
        if (y := top + high * (1 - tick / counts.max())) >= 0:
            parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, width - 8, y, y))
            parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(left - 5, y + 3.5, count(tick)))
    for k, number in enumerate(counts.tolist()):
        size = high * number / counts.max()
        markup = (
            '<rect class="c-adapted" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
            "<title>{} to {} px: {}</title></rect>"
        )
        x, low_px, high_px = left + k * step, 10 ** edges[k], 10 ** edges[k + 1]
        bar = (x + 0.5, top + high - size, step - 1, size, count(low_px), count(high_px), number)
        parts.append(Markup(markup).format(*bar))
    for power in range(math.ceil(edges[0]), math.floor(edges[-1]) + 1):
        x = left + (power - edges[0]) / (edges[-1] - edges[0]) * (width - left - 8)
        parts.append(Markup('<text class="mid" x="{:.1f}" y="{}">{}</text>').format(x, height - 8, count(10**power)))
    head = Markup('<svg viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="areas of regions">')
    return head.format(width, height, width) + Markup("").join(parts) + Markup("</svg>")


def _shade(place: int, number: int) -> str:
    """Earlier rounds are paler: opacity, for CSS."""
    return f"{0.3 + 0.7 * (place + 1) / number:.2f}"


def _costs(found: Analysis) -> Markup:
    """Clicks over the share of the pool, region by region in the order of buying."""
    spent = 100 * np.cumsum([0, *(px for b in found.rounds.values() for px in b.region_px)]) / found.pool_px
    clicks = np.cumsum([0, *(n for b in found.rounds.values() for n in b.region_clicks)])
    # Chosen, not averaged as the chart would: both ends stay.
    kept = np.unique(np.linspace(0, len(spent) - 1, charts.MAX_POINTS).round().astype(int))
    points_of = list(zip(spent[kept].round(2).tolist(), clicks[kept].tolist(), strict=True))
    return charts.line_chart([charts.Series("clicks", points_of, "c-adapted")], 540, 220, y_zero=True)


def _scores(found: Analysis) -> Markup:
    """mIoU over the share of the pool, and the fitted curve to the next round; empty with fewer than two scores."""
    shares = found.shares
    seen = [(round(100 * shares[n], 2), found.miou[n]) for n in shares if n in found.miou]
    if len(seen) < 2:
        return Markup("")
    series = [charts.Series("measured", seen, "c-adapted")]
    if wanted := found.forecasts():
        _, share, forecast = wanted[0]
        budgets = np.linspace(seen[0][0], round(100 * share, 2), 80)
        fitted = [(float(b), forecast.curve(b / 100)) for b in budgets]
        series.insert(0, charts.Series("fitted", fitted, "c-source"))
    return charts.line_chart(series, 540, 220, legend=70)
