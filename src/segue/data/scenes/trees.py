"""Trees in one go: half of all surfaces of a scene are crowns, so their polygons are made as arrays.

A tree is a trunk and a crown of one lobe (far away) or four; a lobe is a ring bent by the tree's own numbers.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import (
    AMP,
    AT,
    AXIS,
    CIRCLE,
    CORNERS,
    FRONT,
    HIGH,
    LABEL,
    LEAVES,
    LIT,
    LOBED,
    LOW,
    RED,
    TEX,
    VEGETATION,
    WIDTH,
)

F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

NUMBERS = 21
"""Numbers of a tree: x, base, z, height, crown radius, stem, leaf contrast, leaf and trunk colour, eight for shape."""
X, BASE, Z, HEIGHT, RADIUS, STEM, LEAF = range(7)
pack_tree = struct.Struct(f"{NUMBERS}d").pack
FINE_WITHIN = 45.0
"""The two large lobes of trees nearer than this (metres) have 24 corners, all others 12."""

SHAPES = np.array([(0.0, 0.0, 1.0, 0.98), (-0.42, -0.4, 0.62, 0.5), (0.3, 0.3, 0.55, 0.5), (-0.25, 0.35, 0.4, 0.36)])
"""Centre and half axes of the lobes, in crown radii."""
TONES, LITS = np.array((1.0, 0.82, 1.15, 1.1)), np.array((0.6, 0.45, 0.8, 0.7))


class Ring(NamedTuple):
    """A circle in corners, and how much each corner moves with which of the eight numbers (one row per lobe)."""

    cos: F64
    sin: F64
    least: F64
    bend: F64
    wave: Index


def _ring(pairs: list[tuple[float, float]]) -> Ring:
    k = np.arange(len(pairs))
    odd = k % 2 == 1
    rows = []
    for lobe in range(len(SHAPES)):
        skip = lobe % 3
        n = 8 - skip
        rows.append(NUMBERS - n + np.where(odd, k % n, (k * 3 + 1) % n))
    cos, sin = np.array(pairs).T
    return Ring(cos, sin, np.where(odd, 0.74, 0.90), np.where(odd, 0.30, 0.22), np.array(rows))


def _fine() -> list[tuple[float, float]]:
    """The circle of twelve corners with one more in between, turned by 15 degrees."""
    turned = [(c * 0.9659258 - s * 0.2588190, s * 0.9659258 + c * 0.2588190) for c, s in CIRCLE]
    return [p for pair in zip(CIRCLE, turned, strict=True) for p in pair]


COARSE, FINE = _ring(list(CIRCLE)), _ring(_fine())


def discs(numbers: F64) -> F64:
    """World corners (N, 12, 3) of discs (see ``build.pack_disc``)."""
    x, y, z, grow_x, grow_z, a, b, ra, rb = numbers.T[:, :, None]
    along = a + ra * COARSE.cos
    out = np.empty((*along.shape, 3))
    out[..., 0], out[..., 1], out[..., 2] = x + grow_x * along, y + (b + rb * COARSE.sin), z + grow_z * along
    return out


def plant(trees: F64, first: Index, table: F64) -> list[tuple[Index, F64]]:
    """Fill the rows of all trees' surfaces into `table`; return their corners by polygons of equal size.

    `trees` has a row of `NUMBERS` per tree, `first` says which row of `table` is its trunk (the lobes follow).  Each
    entry returned is (rows of `table`, world corners (polygons, corners, 3)).
    """
    z = trees[:, Z]
    lobed = np.ones((len(trees), len(SHAPES)), bool)
    lobed[:, 1:] = (z < LOBED)[:, None]
    fine = np.zeros_like(lobed)
    fine[:, :2] = (z < FINE_WITHIN)[:, None]
    _look(trees, first, lobed, table)
    trunk = np.empty((len(trees), 4, 3))
    trunk[..., 0] = trees[:, X, None] + np.array((-0.16, 0.16, 0.11, -0.11))
    trunk[..., 1] = trees[:, BASE, None]
    trunk[:, 2:, 1] += (trees[:, STEM] + 0.5)[:, None]
    trunk[..., 2] = z[:, None]
    blocks = [(first, trunk)]
    for ring, wanted in ((FINE, lobed & fine), (COARSE, lobed & ~fine)):
        tree, lobe = np.nonzero(wanted)
        if len(tree):
            corners = _lobes(trees[tree], lobe, ring)
            table[first[tree] + 1 + lobe, CORNERS] = corners.shape[1]
            blocks.append((first[tree] + 1 + lobe, corners))
    return blocks


def _look(trees: F64, first: Index, lobed: npt.NDArray[np.bool_], table: F64) -> None:
    """Colours and light of trunks and lobes."""
    tree, lobe = np.nonzero(lobed)
    own = trees[tree]
    rows = np.zeros((len(tree), WIDTH))
    rows[:, RED : RED + 3] = own[:, LEAF + 1 : LEAF + 4] * TONES[lobe, None]
    rows[:, TEX], rows[:, AMP], rows[:, LIT] = LEAVES, own[:, LEAF], LITS[lobe]
    rows[:, LOW], rows[:, HIGH] = own[:, BASE] + own[:, STEM], own[:, BASE] + own[:, HEIGHT]
    rows[:, AXIS], rows[:, AT], rows[:, LABEL] = FRONT, own[:, Z], VEGETATION
    table[first[tree] + 1 + lobe] = rows
    trunks = np.zeros((len(trees), WIDTH))
    trunks[:, RED : RED + 3], trunks[:, LIT], trunks[:, CORNERS] = trees[:, LEAF + 4 : LEAF + 7], 0.6, 4
    trunks[:, AXIS], trunks[:, AT], trunks[:, LABEL] = FRONT, trees[:, Z], VEGETATION
    table[first] = trunks


def _lobes(own: F64, lobe: Index, ring: Ring) -> F64:
    """World corners of crown lobes; `own` and `lobe` have a row per polygon."""
    waves = own[np.arange(len(own))[:, None], ring.wave[lobe]]
    r = ring.least + ring.bend * waves
    radius = own[:, RADIUS]
    a, b, ra, rb = (SHAPES[lobe] * radius[:, None]).T
    b = (own[:, HEIGHT] - radius) + b
    out = np.empty((*r.shape, 3))
    out[..., 0] = own[:, X, None] + (a[:, None] + ra[:, None] * r * ring.cos)
    out[..., 1] = own[:, BASE, None] + (b[:, None] + rb[:, None] * r * ring.sin)
    out[..., 2] = own[:, Z, None]
    return out
