"""A gap as plain facts (what the JSON holds), as lines of text and as a page that needs nothing else."""

from __future__ import annotations

from typing import Any

from segue.gap.between import Gap
from segue.gap.classes import ClassGap
from segue.gap.distances import Distance
from segue.gap.networks import Size
from segue.report import charts
from segue.report.page import clip, environment

KINDS = {
    "emd": "earth mover's distance in bins, mean over all neurons",
    "nfd": "Frechet distance of normal distributions, mean over all neurons",
    "fd": "Frechet distance of layers' normal distributions, mean over layers",
}
BAR = 24
MAX_ROWS = 400
Facts = dict[str, Any]


def facts(gap: Gap, a: str, b: str, size: Size | None, classes: ClassGap | None = None) -> Facts:
    """``distance``, ``floor``, ``layers`` and ``classes`` (each with both), and what was compared, as plain values."""
    found: Facts = {
        "distance": gap.distance.number,
        "floor": gap.floor and gap.floor.number,
        "kind": gap.kind,
        "bins": gap.bins,
        "share": gap.share,
        "network": gap.a.network,
        "a": {"name": a, "images": gap.a.images},
        "b": {"name": b, "images": gap.b.images},
        "size": list(size) if size else None,
        "layers": {
            name: {"distance": value, "floor": gap.floor and gap.floor.layers[name]}
            for name, value in gap.distance.layers.items()
        },
    }
    if classes is not None:
        found["classes"] = {
            name: {
                "distance": _number(distance),
                "floor": _number(classes.floors[name]),
                "positions": list(classes.positions[name]),
            }
            for name, distance in classes.distances.items()
        }
    return found


def lines(found: Facts) -> list[str]:
    """One number with its floor, then the layers and the classes as bars."""
    sides = ", ".join(f"{key.upper()} {found[key]['name']} ({found[key]['images']} images)" for key in ("a", "b"))
    out = [headline(found), f"{KINDS[found['kind']]}; {found['network']}; {sides}"]
    out += _table("layer", found["layers"])
    if "classes" in found:
        both, one = _in_both(found["classes"])
        out += _table("class", both) if both else []
        out += [f"predicted in one of the two only: {', '.join(map(clip, one))}"] if one else []
    return out


def headline(found: Facts) -> str:
    """The number first."""
    text = f"{found['distance']:.4g}"
    if found["bins"]:
        text += f" of {found['bins']} bins ({100 * found['share']:.2g} % of a neuron's range)"
    if found["floor"] is None:
        return f"{text}; no floor: A is stored or one image"
    return f"{text}; floor {found['floor']:.4g}, between two halves of A{_times(found)}"


def page(found: Facts) -> str:
    """HTML without any reference to elsewhere."""
    layers = list(found["layers"].items())
    gap = [(i + 1.0, row["distance"]) for i, (_, row) in enumerate(layers)]
    floor = [(i + 1.0, row["floor"]) for i, (_, row) in enumerate(layers) if row["floor"] is not None]
    series = [charts.Series("A to B", gap, "c-adapted"), charts.Series("inside A", floor, "c-source")]
    tables = [("Layers", "Layer", _bars(found["layers"]))]
    if "classes" in found:
        tables.append(("Classes", "Class", _bars(_in_both(found["classes"])[0])))
    return (
        environment()
        .get_template("gap.html")
        .render(
            found=found,
            kind=KINDS[found["kind"]],
            headline=headline(found),
            chart=charts.line_chart(series, 1100, 240, y_zero=True, legend=70) if len(layers) > 1 else "",
            tables=tables,
        )
    )


def _table(title: str, rows: dict[str, Facts]) -> list[str]:
    width = max(len(title), *(len(clip(name)) for name in rows))
    largest = max((row["distance"] or 0.0 for row in rows.values()), default=0.0)
    out = [f"{title:{width}} {'gap':>9} {'floor':>9}"]
    for name, row in rows.items():
        bar = "#" * round(BAR * (row["distance"] or 0.0) / largest) if largest else ""
        out.append(f"{clip(name):{width}} {_text(row['distance']):>9} {_text(row['floor']):>9} {bar}".rstrip())
    return out


def _in_both(classes: dict[str, Facts]) -> tuple[dict[str, Facts], list[str]]:
    both = {name: row for name, row in classes.items() if row["distance"] is not None}
    return both, [name for name, row in classes.items() if name not in both and any(row["positions"])]


def _bars(rows: dict[str, Facts]) -> list[tuple[str, str, str, list[tuple[str, float]]]]:
    largest = max((row["distance"] or 0.0 for row in rows.values()), default=0.0) or 1.0
    return [
        (
            name,
            _text(row["distance"]),
            _text(row["floor"]),
            [
                (color, min(100.0, 100 * (row[key] or 0.0) / largest))
                for color, key in (("c-adapted", "distance"), ("c-source", "floor"))
            ],
        )
        for name, row in list(rows.items())[:MAX_ROWS]
    ]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _number(distance: Distance | None) -> float | None:
    return None if distance is None else distance.number


def _times(found: Facts) -> str:
    return f" ({found['distance'] / found['floor']:.3g} times)" if found["floor"] else ""
