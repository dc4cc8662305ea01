"""Building blocks of a scene: things made of coloured planar surfaces, in metres.

World axes: x right, y up, z forward; the camera stands at (0, camera height, 0) and looks along +z, which is also the
direction of the road.  A surface is a polygon lying in one of three plane families (ground, parallel to the road,
facing the camera), which is what makes depth and texture coordinates a closed formula per pixel.  A :class:`Thing` is
one object (or one piece of backdrop) made of surfaces painted in the order they were added.

No knobs here: what is drawn is decided in ``world``, how it looks in ``domains`` and ``shade``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
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

(
    ROADC,
    SIDEWALK,
    BUILDING,
    WALL,
    FENCE,
    POLE,
    LIGHT,
    SIGN,
    VEGETATION,
    TERRAIN,
    SKYC,
    PERSON,
    RIDER,
    CAR,
    TRUCK,
    BUS,
    TRAIN,
    MOTORCYCLE,
    BICYCLE,
) = range(19)
VOID = 255

LOBED = 60.0
"""Trees farther than this (metres) are a trunk and one lobe, nearer ones have four lobes."""

KERB = 0.12
"""Height of the sidewalk above the road, metres."""


RED, GREEN, BLUE, AXIS, AT, TEX, AMP, LIT, GLOW, LOW, HIGH, LABEL, CORNERS = range(13)
"""What is kept of each surface, in this order: sRGB colour in 0..1, plane, texture, light, class, number of corners."""

WIDTH = 13
SURFACE = struct.Struct(f"{WIDTH}d")
pack_surface, pack_corner, pack_rectangle = SURFACE.pack, struct.Struct("3d").pack, struct.Struct("12d").pack
pack_disc = struct.Struct("9d").pack
"""Of a disc: x, y, z of its plate, how x and z grow along the plate, centre and half axes on the plate."""


class Cast(NamedTuple):
    """A box that throws a shadow on the ground; all in metres. `soft` marks round things (crowns)."""

    x0: float
    x1: float
    z0: float
    z1: float
    bottom: float
    top: float
    soft: bool


class Panes(NamedTuple):
    """Windows of the facade that is number `surface` of its thing: periods in metres, filled shares of a period."""

    surface: int
    period_s: float
    period_t: float
    fill_s: float
    fill_t: float


@dataclass(slots=True)
class Thing:
    """One object: its class, its footprint (metres) for the painting order, its surfaces in painting order.

    Surfaces are kept as packed doubles (`numbers`: `WIDTH` of them for each surface, `corners`: x, y, z of each
    corner): there are hundreds in a scene, and numpy reads bytes much faster than lists of floats.  A surface without
    corners is the next of `discs`.  A tree has `tree` instead, the numbers its surfaces are made from.  See ``mesh``.
    """

    label: int
    layer: int
    x0: float
    x1: float
    z0: float
    z1: float
    base: float = 0.0
    height: float = 0.0
    numbers: bytearray = field(default_factory=bytearray)
    corners: bytearray = field(default_factory=bytearray)
    discs: bytearray = field(default_factory=bytearray)
    panes: list[Panes] = field(default_factory=list)
    casts: list[Cast] = field(default_factory=list)
    contact: tuple[float, float, float, float] | None = None
    tree: bytes | None = None
    ident: int = 0

    @property
    def count(self) -> int:
        """How many surfaces it has."""
        if self.tree is None:
            return len(self.numbers) // SURFACE.size
        return 5 if self.z0 < LOBED else 2

    @property
    def faces_camera(self) -> bool:
        """Whether all of its surfaces stand upright across the road."""
        return all(row[AXIS] == FRONT for row in SURFACE.iter_unpack(self.numbers))

    def add(
        self,
        points: list[Point],
        rgb: Rgb,
        axis: int,
        at: float,
        *,
        label: int | None = None,
        tex: int = PLAIN,
        amp: float = 0.0,
        lit: float = 0.6,
        glow: float = 0.0,
        low: float = 0.0,
        high: float = 0.0,
    ) -> None:
        """Append one polygon in the plane family `axis` at coordinate `at`."""
        name = self.label if label is None else label
        for point in points:
            self.corners += pack_corner(*point)
        self.numbers += pack_surface(*rgb, axis, at, tex, amp, lit, glow, low, high, name, len(points))


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

    __slots__ = ("along", "at", "axis", "sign", "thing", "x", "y", "z")

    def __init__(self, thing: Thing, x: float, y: float, z: float, *, along: bool = False, flip: bool = False) -> None:
        self.thing, self.x, self.y, self.z, self.along = thing, x, y, z, along
        self.axis, self.at = (SIDE, x) if along else (FRONT, z)
        self.sign = -1.0 if flip else 1.0

    def poly(self, pairs: Sequence[Pair], rgb: Rgb, *, lit: float = 0.6, glow: float = 0.0) -> None:
        """A polygon given by local corner pairs (metres)."""
        thing, x, y, z, s = self.thing, self.x, self.y, self.z, self.sign
        corners = thing.corners
        if self.along:
            for a, b in pairs:
                corners += pack_corner(x, y + b, z + s * a)
        else:
            for a, b in pairs:
                corners += pack_corner(x + s * a, y + b, z)
        thing.numbers += pack_surface(
            *rgb, self.axis, self.at, PLAIN, 0.0, lit, glow, 0.0, 0.0, thing.label, len(pairs)
        )

    def rect(
        self, a0: float, b0: float, a1: float, b1: float, rgb: Rgb, *, lit: float = 0.6, glow: float = 0.0
    ) -> None:
        """An upright rectangle between two local corners (metres)."""
        thing, s = self.thing, self.sign
        low, high = self.y + b0, self.y + b1
        if self.along:
            x, p, q = self.x, self.z + s * a0, self.z + s * a1
            thing.corners += pack_rectangle(x, low, p, x, low, q, x, high, q, x, high, p)
        else:
            z, p, q = self.z, self.x + s * a0, self.x + s * a1
            thing.corners += pack_rectangle(p, low, z, q, low, z, q, high, z, p, high, z)
        thing.numbers += pack_surface(*rgb, self.axis, self.at, PLAIN, 0.0, lit, glow, 0.0, 0.0, thing.label, 4)

    def disc(self, a: float, b: float, ra: float, rb: float, rgb: Rgb, *, lit: float = 0.6, glow: float = 0.0) -> None:
        """An ellipse with centre (a, b) and half axes `ra`, `rb` (metres)."""
        thing, s = self.thing, self.sign
        thing.discs += pack_disc(self.x, self.y, self.z, *((0.0, s) if self.along else (s, 0.0)), a, b, ra, rb)
        thing.numbers += pack_surface(*rgb, self.axis, self.at, PLAIN, 0.0, lit, glow, 0.0, 0.0, thing.label, 0)

    def bar(self, a0: float, b0: float, a1: float, b1: float, width: float, rgb: Rgb) -> None:
        """A straight bar of `width` metres between two local points."""
        da, db = a1 - a0, b1 - b0
        k = 0.5 * width / max(math.hypot(da, db), 1e-6)
        na, nb = -db * k, da * k
        self.poly(((a0 + na, b0 + nb), (a1 + na, b1 + nb), (a1 - na, b1 - nb), (a0 - na, b0 - nb)), rgb)


CIRCLE: tuple[Pair, ...] = tuple((math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12))
