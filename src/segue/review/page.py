"""The review page of one round, as HTML: pictures and data lie in it as inert blocks that its script reads."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from segue.acquire.state import VOID, Round
from segue.report import page as report
from segue.review.gather import NO_LABEL, Album

MARKS = "segue-marks-1"
"""``format`` of the file that the page's marks are downloaded as."""
NEUTRAL = (128, 128, 128)


@cache
def environment() -> Environment:
    """The templates of this folder and of the report, whose style they share."""
    loader = ChoiceLoader([PackageLoader("segue", "review"), PackageLoader("segue", "report")])
    environment = report.environment().overlay(loader=loader)
    # An overlay shares the dictionary of filters.
    environment.filters = report.environment().filters | {"count": count, "short": short}
    return environment


def count(value: float) -> str:
    """A whole number with thousands apart: ``1,190``."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Pixels in little room: ``950``, ``12.3k``, ``5.95M``."""
    if value < 10_000:
        return f"{value:.0f}"
    size, unit = (1e3, "k") if value < 999_500 else (1e6, "M") if value < 999_500_000 else (1e9, "G")
    return f"{value / size:.3g}{unit}"


def render(one: Round, album: Album, run: str) -> str:
    """The page; ``run`` names the run for a person, and tells its marks from those of others that a browser keeps."""
    info = one.info
    names = {**dict(enumerate(one.labels.classes)), VOID: "void", NO_LABEL: "none"}
    colors = {**dict(enumerate(one.labels.colors)), VOID: NEUTRAL, NO_LABEL: NEUTRAL}
    chosen = hashlib.sha256("".join(row.model_dump_json() for row in one.rows).encode()).hexdigest()[:16]
    data = album.data() | {
        "marks": {"format": MARKS, "group": info.group},
        "round": info.round,
        # Another choice under the same name must not be shown marks of this one.
        "key": f"{MARKS} {run} {info.group} {info.round} {chosen}",
        "classes": {str(n): {"name": report.clip(name, 40), "color": colors[n]} for n, name in names.items()},
    }
    context: dict[str, Any] = {"run": run, "info": info, "album": album, "data": data, "how": how(one)}
    return environment().get_template("review.html").render(context)


def how(one: Round) -> str:
    """One sentence: by what the regions were chosen, what they cost, who answers."""
    info = one.info
    by = "people" if info.annotator == "people" else "the data set's own labels"
    return (
        f"Chosen by {info.acquisition.get('name', 'an acquisition without a name')} with the predictions of "
        f"{info.model}: {count(info.labelled_px)} px, {100 * info.labelled_px / info.pool_px:.2g} % of the pool; "
        f"{count(info.clicks)} clicks, about {count(info.minutes)} min. Answers come from {by}."
    )
