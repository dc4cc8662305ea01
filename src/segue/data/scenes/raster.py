"""Projection and painting: things become a map of surface ids.

A pinhole camera without tilt (a shifted sensor puts the horizon where it belongs), so verticals stay vertical and the
vanishing point of the road is the principal point.  Things are ordered so that whatever may hide another is painted
later, then every polygon is filled without antialiasing; the map is exact, so labels and colours share their edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import Thing

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
        return np.stack([self.u0 + points[:, 0] * scale, self.v0 - (points[:, 1] - self.camera_m) * scale], axis=1)


def order(things: Sequence[Thing]) -> list[int]:
    """Indices of `things` in painting order: by layer, and within a layer hidden things before hiding ones."""
    layers = np.array([t.layer for t in things])
    result: list[int] = []
    for layer in np.unique(layers):
        members = np.flatnonzero(layers == layer)
        box = np.array([(things[i].x0, things[i].x1, things[i].z0, things[i].z1) for i in members])
        result.extend(int(members[k]) for k in _back_to_front(box))
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
    starts = ends - counts
    lows, highs = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    near, far = np.minimum.reduceat(world[:, 2], starts), np.maximum.reduceat(world[:, 2], starts)
    seen = (highs > 0).all(axis=1) & (lows[:, 0] < view.width) & (lows[:, 1] < view.height)
    # Pixel centres lie at half coordinates; OpenCV's integer coordinates are centres.
    fixed = np.rint((pixels - 0.5) * (1 << SHIFT)).astype(np.int32)
    surface = np.zeros((view.height, view.width), np.int32)
    fill = cv2.fillPoly
    for k in np.flatnonzero(seen).tolist():
        fill(surface, [fixed[starts[k]:ends[k]]], k, 8, SHIFT)
    table = np.column_stack([np.array(rows), near, far])
    return Painting(surface, table, np.array(owner, np.int32), np.array(label, np.uint8), lows, highs)


def _hull(view: View, corners: F64) -> I32:
    pixels = np.rint(view.project(corners) - 0.5).astype(np.int32)
    return np.asarray(cv2.convexHull(pixels.reshape(-1, 1, 2)), np.int32)


def shadow_maps(things: Sequence[Thing], view: View, slope: tuple[float, float]) -> tuple[U8, U8]:
    """Maps (255 = shadow) of cast shadows and of contact shadows on the ground.

    `slope` is how far (x, z metres) a shadow moves for each metre of height.
    """
    cast = np.zeros((view.height, view.width), np.uint8)
    contact = np.zeros_like(cast)
    sx, sz = slope
    for thing in things:
        for c in thing.casts:
            low, high = c.bottom, c.top
            if c.soft:
                _crown_shadow(cast, view, ((c.x0 + c.x1) / 2, (c.z0 + c.z1) / 2), (low, high), (c.x1 - c.x0) / 2, slope)
                continue
            corners = np.array([(x + y * sx, 0.0, max(z + y * sz, NEAR))
                                for x in (c.x0, c.x1) for z in (c.z0, c.z1) for y in (low, high)])
            cv2.fillConvexPoly(cast, _hull(view, corners), 255)
        if thing.contact is not None:
            x0, x1, z0, z1 = thing.contact
            quad = np.array([(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)])
            cv2.fillConvexPoly(contact, np.rint(view.project(quad) - 0.5).astype(np.int32), 255)
    return cast, contact


RING = np.array([(np.cos(a) * (0.85 + 0.25 * (k % 3)), np.sin(a) * (0.85 + 0.25 * ((k + 1) % 3)))
                 for k, a in enumerate(np.linspace(0, 2 * np.pi, 18, endpoint=False))])


def _crown_shadow(cast: U8, view: View, centre: tuple[float, float], span: tuple[float, float], radius: float,
                  slope: tuple[float, float]) -> None:
    """Shadow of a tree: the crown's ragged disc, moved by its height, and the trunk's strip."""
    (x, z), y = centre, (span[0] + span[1]) / 2
    ring = np.zeros((len(RING), 3))
    ring[:, 0] = x + y * slope[0] + RING[:, 0] * radius
    ring[:, 2] = np.maximum(z + y * slope[1] + RING[:, 1] * radius * 1.2, NEAR)
    cv2.fillPoly(cast, [np.rint(view.project(ring) - 0.5).astype(np.int32)], 255)
    stem = np.array([(x - 0.12, 0, z), (x + 0.12, 0, z), (x + y * slope[0] + 0.12, 0, z + y * slope[1]),
                     (x + y * slope[0] - 0.12, 0, z + y * slope[1])])
    stem[:, 2] = np.maximum(stem[:, 2], NEAR)
    cv2.fillConvexPoly(cast, np.rint(view.project(stem) - 0.5).astype(np.int32), 255)
