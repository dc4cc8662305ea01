"""Building blocks of a scene: things made of coloured planar surfaces, in metres.

World axes: x right, y up, z forward; the camera stands at (0, camera height, 0) and looks along +z, which is also the
direction of the road.  A :class:`Surface` is a polygon lying in one of three plane families (ground, parallel to the
road, facing the camera), which is what makes depth and texture coordinates a closed formula per pixel.  A
:class:`Thing` is one object (or one piece of backdrop) made of surfaces painted in the order they were added.

No knobs here: what is drawn is decided in ``world``, how it looks in ``domains`` and ``shade``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

Rgb = tuple[float, float, float]
Point = tuple[float, float, float]
Pair = tuple[float, float]

GROUND, SIDE, FRONT, SKY = 0, 1, 2, 3
"""Plane families: y = const, x = const, z = const, and infinitely far."""

PLAIN, ASPHALT, WINDOWS, LEAVES, CLOUDS, PLASTER, PAVING, BRICK, GRASS, BARS = range(10)
"""Texture kinds, see ``shade``."""

BACKDROP, FLOOR, SKYLINE, ROW, YARD, BARRIER, STREET = range(7)
"""Painting layers from back to front; inside a layer things are ordered by depth."""

(ROADC, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKYC, PERSON, RIDER, CAR, TRUCK, BUS,
 TRAIN, MOTORCYCLE, BICYCLE) = range(19)
VOID = 255

KERB = 0.12
"""Height of the sidewalk above the road, metres."""


class Surface(NamedTuple):
    """One polygon with everything the shader needs; lengths in metres, colours are sRGB in 0..1."""

    points: list[Point]
    label: int
    rgb: Rgb
    axis: int
    at: float
    tex: int = PLAIN
    amp: float = 0.0
    freq: float = 1.0
    lit: float = 0.6
    glow: float = 0.0
    low: float = 0.0
    high: float = 0.0
    period_s: float = 3.0
    period_t: float = 3.0
    fill_s: float = 0.5
    fill_t: float = 0.5


class Cast(NamedTuple):
    """A box that throws a shadow on the ground; all in metres. `soft` marks round things (crowns)."""

    x0: float
    x1: float
    z0: float
    z1: float
    bottom: float
    top: float
    soft: bool


@dataclass
class Thing:
    """One object: its class, its footprint (metres) for the painting order, its surfaces in painting order."""

    label: int
    layer: int
    x0: float
    x1: float
    z0: float
    z1: float
    base: float = 0.0
    height: float = 0.0
    surfaces: list[Surface] = field(default_factory=list)
    casts: list[Cast] = field(default_factory=list)
    contact: tuple[float, float, float, float] | None = None
    ident: int = 0

    def add(self, points: list[Point], rgb: Rgb, axis: int, at: float, *, label: int | None = None, tex: int = PLAIN,
            amp: float = 0.0, freq: float = 1.0, lit: float = 0.6, glow: float = 0.0, low: float = 0.0,
            high: float = 0.0) -> None:
        """Append one polygon in the plane family `axis` at coordinate `at`."""
        name = self.label if label is None else label
        self.surfaces.append(Surface(points, name, rgb, axis, at, tex, amp, freq, lit, glow, low, high))


def shade(rgb: Rgb, factor: float) -> Rgb:
    """`rgb` made brighter or darker by `factor`."""
    return (rgb[0] * factor, rgb[1] * factor, rgb[2] * factor)


def mix(a: Rgb, b: Rgb, t: float) -> Rgb:
    """Blend of two colours; `t` = 0 gives `a`."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def pick(colours: tuple[Rgb, ...], u: float, spread: float = 0.0, v: float = 0.5) -> Rgb:
    """One of `colours` chosen by `u` in 0..1, its brightness varied by +-`spread` with `v` in 0..1."""
    return shade(colours[min(int(u * len(colours)), len(colours) - 1)], 1.0 + spread * (2.0 * v - 1.0))


class Plate:
    """Draws flat shapes in an upright plane: the camera-facing one, or the one along the road.

    Local coordinates are (a, b) metres: `a` to the right (or forward, for the plane along the road), `b` up.
    """

    def __init__(self, thing: Thing, x: float, y: float, z: float, *, along: bool = False, flip: bool = False) -> None:
        self.thing, self.x, self.y, self.z, self.along = thing, x, y, z, along
        self.sign = -1.0 if flip else 1.0

    def poly(self, pairs: list[Pair] | tuple[Pair, ...], rgb: Rgb, *, label: int | None = None, lit: float = 0.6,
             glow: float = 0.0, tex: int = PLAIN, amp: float = 0.0, freq: float = 1.0, low: float = 0.0,
             high: float = 0.0) -> None:
        """A polygon given by local corner pairs (metres)."""
        x, y, z, s = self.x, self.y, self.z, self.sign
        points = [(x, y + b, z + s * a) for a, b in pairs] if self.along else [(x + s * a, y + b, z) for a, b in pairs]
        self.thing.add(points, rgb, SIDE if self.along else FRONT, x if self.along else z, label=label, lit=lit,
                       glow=glow, tex=tex, amp=amp, freq=freq, low=low, high=high)

    def rect(self, a0: float, b0: float, a1: float, b1: float, rgb: Rgb, *, label: int | None = None,
             lit: float = 0.6, glow: float = 0.0) -> None:
        """An upright rectangle between two local corners (metres)."""
        self.poly(((a0, b0), (a1, b0), (a1, b1), (a0, b1)), rgb, label=label, lit=lit, glow=glow)

    def disc(self, a: float, b: float, ra: float, rb: float, rgb: Rgb, *, label: int | None = None, lit: float = 0.6,
             glow: float = 0.0) -> None:
        """An ellipse with centre (a, b) and half axes `ra`, `rb` (metres)."""
        self.poly([(a + ra * c, b + rb * s) for c, s in CIRCLE], rgb, label=label, lit=lit, glow=glow)

    def bar(self, a0: float, b0: float, a1: float, b1: float, width: float, rgb: Rgb, *,
            label: int | None = None) -> None:
        """A straight bar of `width` metres between two local points."""
        da, db = a1 - a0, b1 - b0
        k = 0.5 * width / max(math.hypot(da, db), 1e-6)
        na, nb = -db * k, da * k
        self.poly(((a0 + na, b0 + nb), (a1 + na, b1 + nb), (a1 - na, b1 - nb), (a0 - na, b0 - nb)), rgb, label=label)


CIRCLE: tuple[Pair, ...] = tuple((math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12))
