"""Projection and painting: things become a map of surface ids.

A pinhole camera without tilt (a shifted sensor puts the horizon where it belongs), so verticals stay vertical and the
vanishing point of the road is the principal point.  Things are ordered so that whatever may hide another is painted
later, then every polygon is filled without antialiasing; the map is exact, so labels and colours share their edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import KERB, Cast, Point, Thing

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

NEAR = 0.3
"""Nearest depth (metres) any vertex may have."""

SHIFT = 4
"""Fractional bits of polygon coordinates handed to OpenCV."""


@dataclass(frozen=True)
class View:
    """A pinhole camera: image size, focal length and vanishing point in pixels, height above the road in metres."""

    width: int
    height: int
    focal: float
    u0: float
    v0: float
    camera_m: float

    def project(self, points: F64) -> F64:
        """Pixel coordinates (N, 2) of world points (N, 3); pixel i spans i..i+1."""
        scale = self.focal / np.maximum(points[:, 2], NEAR)
        out = np.empty((len(points), 2))
        out[:, 0] = self.u0 + points[:, 0] * scale
        out[:, 1] = self.v0 - (points[:, 1] - self.camera_m) * scale
        return out


def order(things: Sequence[Thing]) -> list[int]:
    """Indices of `things` in painting order: by layer, and within a layer hidden things before hiding ones."""
    layers = np.array([t.layer for t in things])
    result: list[int] = []
    for layer in np.unique(layers):
        members = np.flatnonzero(layers == layer).tolist()
        box = np.array([(things[i].x0, things[i].x1, things[i].z0, things[i].z1) for i in members])
        result.extend(members[k] for k in _back_to_front(box))
    return result


def _back_to_front(box: F64) -> list[int]:
    """Order of footprints (x0, x1, z0, z1): a box fully behind, or further out on the same side, comes first."""
    x0, x1, z0, z1 = box.T
    behind = z0[:, None] >= z1[None, :] - 1e-6
    level = ~behind & ~behind.T
    right = (x0[:, None] >= x1[None, :] - 1e-6) & (x0[:, None] > 0)
    left = (x1[:, None] <= x0[None, :] + 1e-6) & (x1[:, None] < 0)
    first = behind | (level & (right | left))
    np.fill_diagonal(first, False)
    waiting = first.sum(axis=0)
    rank = z0.copy()
    result: list[int] = []
    for _ in range(len(box)):
        free = np.where(waiting == 0, rank, -np.inf)
        k = int(free.argmax())
        if free[k] == -np.inf:  # a rare cycle: take the farthest that is left
            k = int(rank.argmax())
        result.append(k)
        waiting -= first[k]
        waiting[k], rank[k] = 1 << 20, -np.inf
    return result


def _own_tint(rgb: F64, owner: I32) -> F64:
    """Give each object a barely different tint: two black tyres or trunks in a row keep an edge between them."""
    a, b = (2 * ((owner * k) % 1.0) - 1 for k in (0.6180339887, 0.7548776662))
    mixed: F64 = rgb * (1 + 0.05 * a)[:, None] + (0.014 * b)[:, None]
    return np.where((owner > 0)[:, None], mixed, rgb)


@dataclass
class Painting:
    """What painting leaves: the surface-id map, one row of numbers per surface, and the box of each surface."""

    surface: I32
    rows: F64
    owner: I32
    label: U8
    lows: F64
    highs: F64


def paint(things: Sequence[Thing], view: View) -> Painting:
    """Fill all surfaces of `things` (already in painting order) into a map of surface ids."""
    points: list[tuple[float, float, float]] = []
    rows: list[tuple[float, ...]] = []
    counts: list[int] = []
    owner: list[int] = []
    label: list[int] = []
    for thing in things:
        for s in thing.surfaces:
            points.extend(s.points)
            counts.append(len(s.points))
            owner.append(thing.ident)
            label.append(s.label)
            rows.append(s.rgb + s[3:])
    world = np.array(points)
    pixels = view.project(world)
    ends = np.cumsum(counts)
    starts: npt.NDArray[np.intp] = (ends - np.array(counts)).astype(np.intp)
    lows, highs = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    near, far = np.minimum.reduceat(world[:, 2], starts), np.maximum.reduceat(world[:, 2], starts)
    seen = (highs > 0).all(axis=1) & (lows[:, 0] < view.width) & (lows[:, 1] < view.height)
    # Pixel centres lie at half coordinates; OpenCV's integer coordinates are centres.
    fixed = np.rint((pixels - 0.5) * (1 << SHIFT)).astype(np.int32)
    surface = np.zeros((view.height, view.width), np.int32)
    fill = cv2.fillPoly
    for k in np.flatnonzero(seen).tolist():
        fill(surface, [fixed[starts[k]:ends[k]]], k, 8, SHIFT)
    owners = np.array(owner, np.int32)
    table = np.column_stack([np.array(rows), near, far])
    table[:, :3] = _own_tint(table[:, :3], owners)
    return Painting(surface, table, owners, np.array(label, np.uint8), lows, highs)


SHADOW_FAR = 110.0
"""Shadows of things farther than this (metres) are a pixel high and left out."""


def shadow_maps(things: Sequence[Thing], view: View, slope: tuple[float, float]) -> tuple[U8, U8]:
    """Maps (255 = shadow) of cast shadows and of contact shadows on the ground.

    `slope` is how far (x, z metres) a shadow moves for each metre of height.
    """
    points: list[Point] = []
    pieces: list[tuple[int, int]] = []
    for thing in things:
        if thing.z0 > SHADOW_FAR:
            continue
        floor = min(thing.base, KERB)  # a shadow lies on the ground its thing stands on, or the thing seems to float
        for c in thing.casts:
            for kind, corners in _crown_shadow(c, slope, floor) if c.soft else [(HULL, _box_shadow(c, slope, floor))]:
                points += corners
                pieces.append((kind, len(corners)))
        if thing.contact is not None:
            x0, x1, z0, z1 = thing.contact
            points += [(x0, floor, z0), (x1, floor, z0), (x1, floor, z1), (x0, floor, z1)]
            pieces.append((CONTACT, 4))
    cast = np.zeros((view.height, view.width), np.uint8)
    contact = np.zeros_like(cast)
    if not pieces:
        return cast, contact
    pixels = np.rint(view.project(np.array(points)) - 0.5).astype(np.int32)
    at = 0
    for kind, count in pieces:
        shape = pixels[at:at + count]
        at += count
        if kind == RAGGED:
            cv2.fillPoly(cast, [shape], 255)
        else:
            cv2.fillConvexPoly(contact if kind == CONTACT else cast, cv2.convexHull(shape), 255)
    return cast, contact


HULL, RAGGED, CONTACT = range(3)
RING = [(math.cos(k * math.pi / 9) * (0.85 + 0.25 * (k % 3)), math.sin(k * math.pi / 9) * (0.85 + 0.25 * ((k + 1) % 3)))
        for k in range(18)]


def _box_shadow(c: Cast, slope: tuple[float, float], floor: float) -> list[Point]:
    """The corners of a box, slid down the sun rays onto the ground; their hull is its shadow."""
    sx, sz = slope
    return [(x + y * sx, floor, z + y * sz) for y in (c.bottom, c.top) for x in (c.x0, c.x1) for z in (c.z0, c.z1)]


def _crown_shadow(c: Cast, slope: tuple[float, float], floor: float) -> list[tuple[int, list[Point]]]:
    """Shadow of a tree: the crown's ragged disc, moved by its height, and the trunk's strip."""
    x, z, y, radius = (c.x0 + c.x1) / 2, (c.z0 + c.z1) / 2, (c.bottom + c.top) / 2, (c.x1 - c.x0) / 2
    tx, tz = x + y * slope[0], z + y * slope[1]
    ring = [(tx + a * radius, floor, tz + b * radius * 1.2) for a, b in RING]
    stem = [(x - 0.12, floor, z), (x + 0.12, floor, z), (tx + 0.12, floor, tz), (tx - 0.12, floor, tz)]
    return [(RAGGED, ring), (HULL, stem)]
