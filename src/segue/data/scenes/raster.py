"""Projection and painting: things become a map of surface ids.

A pinhole camera without tilt (a shifted sensor puts the horizon where it belongs), so verticals stay vertical and the
vanishing point of the road is the principal point.  Things are ordered so that whatever may hide another is painted
later, then every polygon is filled without antialiasing; the map is exact, so labels and colours share their edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import LABEL, Thing
from segue.data.scenes.mesh import gather

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Index = npt.NDArray[np.intp]
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
        """Pixel coordinates (..., 2) of world points (..., 3); pixel i spans i..i+1."""
        scale = self.focal / np.maximum(points[..., 2], NEAR)
        out = np.empty((*points.shape[:-1], 2))
        out[..., 0] = self.u0 + points[..., 0] * scale
        out[..., 1] = self.v0 - (points[..., 1] - self.camera_m) * scale
        return out


def order(things: Sequence[Thing]) -> list[int]:
    """Indices of `things` in painting order: by layer, and within a layer hidden things before hiding ones.

    A thing fully behind another, or further out on the same side, comes first; among those nothing has to precede,
    the farthest.
    """
    layer, x0, x1, z0, z1 = np.array([(t.layer, t.x0, t.x1, t.z0, t.z1) for t in things]).T
    rank = np.lexsort((-z0, layer))
    layer, x0, x1, z0, z1 = layer[rank], x0[rank], x1[rank], z0[rank], z1[rank]
    # Entry i, j: whether j has to come before i.
    behind = z0 >= z1[:, None] - 1e-6
    wanted = ((x0 >= x1[:, None] - 1e-6) & (x0 > 0)) | ((x1 <= x0[:, None] + 1e-6) & (x1 < 0))
    wanted &= z0[:, None] < z1 - 1e-6
    wanted |= behind
    wanted &= layer[:, None] == layer
    wanted |= layer[:, None] > layer
    np.fill_diagonal(wanted, False)
    ranked = rank.tolist()
    return [ranked[k] for k in _release(wanted)]


def _release(wanted: npt.NDArray[np.bool_]) -> list[int]:
    """Positions 0..n-1, the lowest first, but each after those that must precede it (`wanted[i, j]`: j before i)."""
    size = len(wanted)
    bits = np.packbits(wanted, axis=1, bitorder="little")
    text, width = bits.tobytes(), bits.shape[1]
    before = [int.from_bytes(text[k : k + width], "little") for k in range(0, size * width, width)]
    left, result, freed, at = (1 << size) - 1, list[int](), list[int](), 0
    waiting: dict[int, list[int]] = {}  # by one of those that each of them waits for
    while left:
        while not freed and at < size and (blockers := before[at] & left):
            waiting.setdefault(blockers.bit_length() - 1, []).append(at)
            at += 1
        if freed:
            k = heappop(freed)
        elif at < size:
            k = at
            at += 1
        else:  # a rare cycle: take the farthest that is left
            k = (left & -left).bit_length() - 1
        left ^= 1 << k
        result.append(k)
        for other in waiting.pop(k, ()):
            blockers = before[other] & left
            if blockers:
                waiting.setdefault(blockers.bit_length() - 1, []).append(other)
            elif left >> other & 1:
                heappush(freed, other)
    return result


def _own_tint(rgb: F64, owner: I32) -> F64:
    """Give each object a barely different tint: two black tyres or trunks in a row keep an edge between them."""
    a, b = (2 * ((owner * k) % 1.0) - 1 for k in (0.6180339887, 0.7548776662))
    mixed: F64 = rgb * (1 + 0.05 * a)[:, None] + (0.014 * b)[:, None]
    return np.where((owner > 0)[:, None], mixed, rgb)


@dataclass(eq=False)
class Painting:
    """What painting leaves: the surface-id map, and of each surface its numbers (see ``build``), nearest and farthest
    depth, windows, object, class and box in pixels; `first` is the first surface of each thing (and their number)."""

    surface: I32
    rows: F64
    near: F32
    far: F32
    panes: F32
    owner: I32
    label: U8
    lows: F64
    highs: F64
    first: Index


def paint(things: Sequence[Thing], view: View) -> Painting:
    """Fill all surfaces of `things` (already in painting order) into a map of surface ids."""
    mesh = gather(things)
    pixels = view.project(mesh.corners)
    total = len(mesh.rows)
    ends = np.cumsum(mesh.counts)
    starts = ends - mesh.counts
    back = np.empty(total, np.intp)
    back[mesh.surface] = np.arange(total)
    lows = np.minimum.reduceat(pixels, starts)[back]
    highs = np.maximum.reduceat(pixels, starts)[back]
    depth = mesh.corners[:, 2].astype(np.float32)
    near, far = np.minimum.reduceat(depth, starts)[back], np.maximum.reduceat(depth, starts)[back]
    seen = np.flatnonzero((highs > 0).all(axis=1) & (lows[:, 0] < view.width) & (lows[:, 1] < view.height))
    # Pixel centres lie at half coordinates; OpenCV's integer coordinates are centres.
    fixed = np.rint((pixels - 0.5) * (1 << SHIFT)).astype(np.int32)
    surface = np.zeros((view.height, view.width), np.int32)
    fill = cv2.fillPoly
    polygons = zip(seen.tolist(), starts[back[seen]].tolist(), ends[back[seen]].tolist(), strict=True)
    for k, start, end in polygons:
        fill(surface, [fixed[start:end]], k, 8, SHIFT)
    owners = np.repeat(np.array([t.ident for t in things], np.int32), np.diff(mesh.first))
    mesh.rows[:, :3] = _own_tint(mesh.rows[:, :3], owners)
    label = mesh.rows[:, LABEL].astype(np.uint8)
    return Painting(surface, mesh.rows, near, far, mesh.panes, owners, label, lows, highs, mesh.first)
