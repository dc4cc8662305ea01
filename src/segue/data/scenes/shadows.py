"""Shadows on the ground: cast ones from boxes and tree crowns, and the dark contact under whatever stands there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import KERB, Thing
from segue.data.scenes.raster import View

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

SHADOW_FAR = 110.0
"""Shadows of things farther than this (metres) are a pixel high and left out."""

RING = np.array(
    [
        (math.cos(k * math.pi / 9) * (0.85 + 0.25 * (k % 3)), math.sin(k * math.pi / 9) * (0.85 + 0.25 * ((k + 1) % 3)))
        for k in range(18)
    ]
)
STEM_M = np.array((-0.12, 0.12, 0.12, -0.12))
BOX_X, BOX_Z, BOX_Y = (0, 0, 1, 1) * 2, (2, 3) * 4, (4,) * 4 + (5,) * 4
"""Which of x0, x1, z0, z1, bottom, top the eight corners of a box have."""


def shadow_maps(things: Sequence[Thing], view: View, slope: tuple[float, float]) -> tuple[U8, U8]:
    """Maps (255 = shadow) of cast shadows and of contact shadows on the ground.

    `slope` is how far (x, z metres) a shadow moves for each metre of height.
    """
    boxes: list[float] = []
    crowns: list[float] = []
    contacts: list[float] = []
    for thing in things:
        if thing.z0 > SHADOW_FAR:
            continue
        floor = min(thing.base, KERB)  # a shadow lies on the ground its thing stands on, or the thing seems to float
        for c in thing.casts:
            numbers = crowns if c.soft else boxes
            numbers += c
            numbers.append(floor)
        if thing.contact is not None:
            contacts += thing.contact
            contacts.append(floor)
    cast = np.zeros((view.height, view.width), np.uint8)
    contact = np.zeros_like(cast)
    ragged, stems = _crown_shadows(_rows(crowns, 8), slope)
    for polygon in _visible(ragged, view):
        cv2.fillPoly(cast, [polygon], 255)
    for shapes, target in (
        (stems, cast),
        (_box_shadows(_rows(boxes, 8), slope), cast),
        (_rectangles(_rows(contacts, 5)), contact),
    ):
        for polygon in _visible(shapes, view):
            cv2.fillConvexPoly(target, cv2.convexHull(polygon), 255)
    return cast, contact


def _rows(numbers: list[float], width: int) -> F64:
    return np.fromiter(numbers, float, len(numbers)).reshape(-1, width)


def _visible(polygons: F64, view: View) -> list[I32]:
    """Pixel polygons of world `polygons` (N, corners, 3), without those that lie outside of the picture."""
    pixels = np.rint(view.project(polygons) - 0.5).astype(np.int32)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    seen = (high >= 0).all(axis=1) & (low[:, 0] < view.width) & (low[:, 1] < view.height)
    return list(pixels[seen])


def _box_shadows(boxes: F64, slope: tuple[float, float]) -> F64:
    """The corners of boxes, slid down the sun rays onto the ground; their hull is a box's shadow."""
    out = np.empty((len(boxes), 8, 3))
    height = boxes[:, BOX_Y]
    out[..., 0] = boxes[:, BOX_X] + height * slope[0]
    out[..., 1] = boxes[:, 7, None]
    out[..., 2] = boxes[:, BOX_Z] + height * slope[1]
    return out


def _crown_shadows(casts: F64, slope: tuple[float, float]) -> tuple[F64, F64]:
    """Shadows of trees: the crown's ragged disc, moved by its height, and the trunk's strip."""
    x0, x1, z0, z1, bottom, top, _, floor = casts.T[:, :, None]
    x, z, y, radius = (x0 + x1) / 2, (z0 + z1) / 2, (bottom + top) / 2, (x1 - x0) / 2
    tx, tz = x + y * slope[0], z + y * slope[1]
    ring, stem = np.empty((len(casts), len(RING), 3)), np.empty((len(casts), 4, 3))
    ring[..., 0], ring[..., 1], ring[..., 2] = tx + RING[:, 0] * radius, floor, tz + RING[:, 1] * radius * 1.2
    stem[..., 0] = np.concatenate([x, x, tx, tx], axis=1) + STEM_M
    stem[..., 1], stem[..., 2] = floor, np.concatenate([z, z, tz, tz], axis=1)
    return ring, stem


def _rectangles(contacts: F64) -> F64:
    """Corners of rectangles x0, x1, z0, z1 on the ground."""
    out = np.empty((len(contacts), 4, 3))
    out[..., 0], out[..., 1], out[..., 2] = contacts[:, (0, 1, 1, 0)], contacts[:, 4, None], contacts[:, (2, 2, 3, 3)]
    return out
