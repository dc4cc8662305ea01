"""Charts as inline SVG. Colours are CSS classes of the page, so that light and dark need one drawing.

Every text goes through ``Markup.format``, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

MAX_POINTS = 240
NUMBERED_UP_TO = 24  # classes whose confusion cells carry numbers
DRAWN_UP_TO = 64  # classes whose confusion matrix is drawn at all

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line: points (x, y) in drawing order, its name, and the CSS class of its colour."""

    name: str
    points: list[tuple[float, float]]
    color: str


@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    left: int
    right: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    top: int = 10
    bottom: int = 24

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)


def thin(points: Iterable[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most ``limit`` points: finite ones, averaged over equal bins of neighbours (a mean curve, not a sample)."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= limit:
        return finite
    return [(float(b[:, 0].mean()), float(b[:, 1].mean())) for b in np.array_split(np.array(finite), limit)]


def line_chart(
    series: Sequence[Series], width: int = 260, height: int = 130, y_zero: bool = False, legend: int = 0
) -> Markup:
    """Lines over iterations; ``legend`` pixels at the right name each line at its end. Empty without points."""
    drawn = [Series(s.name, thin(s.points), s.color) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return Markup("")
    xs, ys = zip(*(p for s in drawn for p in s.points), strict=True)
    ticks = nice_ticks(min(0.0, *ys) if y_zero else min(ys), max(ys))
    low, high = min(xs), max(xs)
    frame = _Frame(width, height, 40, 8 + legend, (low, high if high > low else low + 1), (ticks[0], ticks[-1]))
    parts = [_y_axis(frame, ticks), _x_axis(frame)]
    parts += [_line(frame, s) for s in drawn]
    if legend:
        parts += _end_labels(frame, drawn)
    return _svg(width, height, parts, ", ".join(s.name for s in drawn))


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that cover low..high, at least two."""
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-30):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def scale(values: Sequence[tuple[str, float, str]], interval: tuple[float, float] | None, width: int = 1120) -> Markup:
    """Named values (name, percent, CSS class) as dots on one axis; ``interval`` is drawn around the second value."""
    finite = [v for v in values if math.isfinite(v[1])]
    if len(finite) < 2:
        return Markup("")
    numbers = [v for _, v, _ in finite] + [v for v in interval or () if math.isfinite(v)]
    ticks = nice_ticks(min(numbers), max(numbers), 6)
    frame = _Frame(width, 46, 14, 14, (0, 1), (0, 1), bottom=18)
    span = ticks[-1] - ticks[0]

    def at(value: float) -> float:
        return frame.left + (value - ticks[0]) / span * (width - frame.left - frame.right)

    parts = [_shape('<line class="track" x1="{}" x2="{}" y1="16" y2="16"/>', at(ticks[0]), at(ticks[-1]))]
    for tick in ticks:
        parts.append(_shape('<line class="grid" x1="{0}" x2="{0}" y1="12" y2="20"/>', at(tick)))
        parts.append(Markup('<text x="{}" y="38" class="mid">{}</text>').format(_r(at(tick)), _short(tick)))
    if interval and all(map(math.isfinite, interval)):
        low, high = (at(v) for v in interval)
        markup = '<rect class="{}" opacity=".28" x="{}" y="9" width="{}" height="14" rx="7"/>'
        parts.append(Markup(markup).format(finite[1][2], _r(low), _r(max(high - low, 1))))
    for name, value, color in finite:
        markup = '<circle class="{}" cx="{}" cy="16" r="7"><title>{} {:.1f}</title></circle>'
        parts.append(Markup(markup).format(color, _r(at(value)), name, value))
    return _svg(width, 46, parts, "scores on one scale: " + ", ".join(f"{n} {v:.1f}" for n, v, _ in finite))


def intervals(rows: Sequence[tuple[str, float, float, float, str]], width: int = 1120) -> Markup:
    """One line a row (name, value, low, high, CSS class) on a common axis with a mark at 0; all in points.

    Low and high may be NaN: then there is only a dot. Empty without rows.
    """
    drawn = [r for r in rows if math.isfinite(r[1])]
    if not drawn:
        return Markup("")
    numbers = [v for _, *values, _ in drawn for v in values if math.isfinite(v)]
    ticks = nice_ticks(min(0.0, *numbers), max(0.0, *numbers), 6)
    left = 14 + round(6.4 * max(len(name) for name, *_ in drawn))
    frame = _Frame(width, 26 * len(drawn) + 34, left, 20, (ticks[0], ticks[-1]), (0, 1))
    bottom = frame.height - frame.bottom
    parts = [_shape('<line class="grid" x1="{0}" x2="{0}" y1="4" y2="{1}"/>', frame.x(t), bottom) for t in ticks]
    parts.append(_shape('<line class="track" x1="{0}" x2="{0}" y1="4" y2="{1}"/>', frame.x(0.0), bottom))
    for tick in ticks:
        text = Markup('<text x="{}" y="{}" class="mid">{}</text>')
        parts.append(text.format(_r(frame.x(tick)), frame.height - 8, _short(tick)))
    for index, (name, value, low, high, color) in enumerate(drawn):
        y = 4.0 + 26 * index + 13
        parts.append(_row_label(left, y, name))
        if math.isfinite(low) and math.isfinite(high):
            markup = '<rect class="{}" opacity=".28" x="{}" y="{}" width="{}" height="12" rx="6"/>'
            parts.append(_shape(markup, color, frame.x(low), y - 6, max(frame.x(high) - frame.x(low), 1.0)))
        markup = '<circle class="{}" cx="{}" cy="{}" r="6"><title>{} {}</title></circle>'
        parts.append(_shape(markup, color, frame.x(value), y, name, f"{value:+.1f}"))
    return _svg(width, frame.height, parts, "gains with their intervals")


def heat_map(matrix: F64, names: Sequence[str]) -> Markup:
    """Row-normalised confusion matrix (C, C or C+1 counts): rows ground truth, columns prediction."""
    count = len(matrix)
    if count > DRAWN_UP_TO:
        return Markup("")
    numbered = count <= NUMBERED_UP_TO
    cell = max(10, min(40, 720 // count)) if numbered else max(8, 640 // count)
    left = 14 + round(6.4 * max(len(n) for n in names))
    size = left + cell * count
    shares = row_shares(matrix)
    parts = []
    for row in range(count):
        parts.append(_row_label(left, left + cell * row + cell / 2, names[row]))
        parts.append(_column_label(left + cell * row + cell / 2, left, names[row]))
        for column in range(count):
            parts.append(_cell(left, cell, row, column, shares[row, column], names, numbered))
    return _svg(size + 2, size + 2, parts, "confusion matrix, rows are ground truth")


def row_shares(matrix: F64) -> F64:
    """Each row divided by its sum; NaN rows where there is no ground truth."""
    sums = matrix.sum(1, keepdims=True)
    out: F64 = np.divide(matrix, sums, out=np.full_like(matrix, np.nan), where=sums > 0)
    return out


def _cell(left: int, cell: int, row: int, column: int, share: float, names: Sequence[str], numbered: bool) -> Markup:
    if math.isnan(share):
        share_text, css = "no ground truth", "void"
    else:
        share_text, css = f"{100 * share:.1f} %", "hit" if row == column else "heat"
    x, y = left + cell * column, left + cell * row
    opacity = 0.0 if math.isnan(share) else round(float(share) ** 0.7, 3)  # small shares stay visible
    if css != "void" and share < 0.0005:
        return Markup("")
    rect = Markup(
        '<rect class="{}" fill-opacity="{}" x="{}" y="{}" width="{}" height="{}">'
        "<title>{} predicted as {}: {}</title></rect>"
    ).format(css, opacity if css != "void" else 1, x, y, cell - 1, cell - 1, names[row], names[column], share_text)
    if not numbered or css == "void" or share < 0.005:
        return rect
    ink = "on" if opacity > 0.6 else "num"
    text = Markup('<text class="mid {}" x="{}" y="{}">{}</text>')
    return rect + text.format(ink, x + (cell - 1) / 2, y + cell / 2 + 3.5, round(100 * share))


def _row_label(left: int, y: float, name: str) -> Markup:
    return Markup('<text class="end" x="{}" y="{}">{}</text>').format(left - 6, _r(y + 3.5), name)


def _column_label(x: float, bottom: int, name: str) -> Markup:
    markup = '<text transform="translate({} {}) rotate(-90)">{}</text>'
    return Markup(markup).format(_r(x + 3.5), bottom - 6, name)


def _y_axis(frame: _Frame, ticks: Sequence[float]) -> Markup:
    out = Markup("")
    for tick in ticks[:: max(1, len(ticks) // 4)]:
        y, right = frame.y(tick), frame.width - frame.right
        out += _shape('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', frame.left, right, y, y)
        markup = '<text class="end" x="{}" y="{}">{}</text>'
        out += Markup(markup).format(frame.left - 5, _r(y + 3.5), _short(tick))
    return out


def _x_axis(frame: _Frame) -> Markup:
    low, high = frame.x_range
    y, right = frame.height - 8, frame.width - frame.right
    first = Markup('<text x="{}" y="{}">{}</text>').format(frame.left, y, _short(low))
    return first + Markup('<text class="end" x="{}" y="{}">{}</text>').format(right, y, _short(high))


def _line(frame: _Frame, series: Series) -> Markup:
    points = [(frame.x(x), frame.y(y)) for x, y in series.points]
    if len(points) == 1:
        return _shape('<circle class="{}" cx="{}" cy="{}" r="3"/>', series.color, *points[0])
    path = " ".join(f"{_r(x)},{_r(y)}" for x, y in points)
    return Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>').format(
        series.color, path, series.name
    )


def _end_labels(frame: _Frame, series: Sequence[Series]) -> list[Markup]:
    """Names at the ends of the lines, pushed apart where they would overlap."""
    out, last = [], -math.inf
    for one in sorted(series, key=lambda s: frame.y(s.points[-1][1])):
        last = max(frame.y(one.points[-1][1]) + 4, last + 14)
        x = frame.width - frame.right + 6
        out.append(Markup('<text class="{}" x="{}" y="{}">{}</text>').format(one.color, x, _r(last), one.name))
    return out


def _shape(markup: str, *values: object) -> Markup:
    return Markup(markup).format(*(_r(v) if isinstance(v, float) else v for v in values))


def _svg(width: int, height: int, parts: Sequence[Markup], label: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">')
    return head.format(width, height, width, label) + Markup("").join(parts) + Markup("</svg>")


def _r(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _short(value: float) -> str:
    """A tick: ``12k``, ``0.05``, ``1e-06``."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
