"""Lookup tables of shading: noise tiles, the response of an ideal camera, extinction, and colour conversion."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import Rgb

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
TILE = 256


@cache
def tiles() -> F32:
    """Two periodic noise tiles (2, 256, 256), mean 0, within -1..1: fractal clouds and fine speckle."""
    rng = np.random.default_rng(np.random.SeedSequence([0x711E]))
    total = np.zeros((TILE, TILE))
    for n, weight in ((4, 1.0), (8, 0.7), (16, 0.5), (32, 0.35), (64, 0.25)):
        total += weight * _smooth(rng.uniform(-1, 1, (n, n)))
    fine = _smooth(rng.uniform(-1, 1, (128, 128))) + 0.8 * rng.uniform(-1, 1, (TILE, TILE))
    return np.stack([np.clip(t / (2.5 * t.std()), -1, 1) for t in (total, fine)]).astype(np.float32)


def _smooth(grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Periodic bilinear enlargement of a square grid to a tile."""
    n = len(grid)
    at = np.arange(TILE) * n / TILE
    i, f = at.astype(int), at % 1
    f = f * f * (3 - 2 * f)
    rows = grid[i] * (1 - f)[:, None] + grid[(i + 1) % n] * f[:, None]
    out: npt.NDArray[np.float64] = rows[:, i] * (1 - f) + rows[:, (i + 1) % n] * f
    return out


@cache
def _flat_tiles() -> tuple[F32, F32]:
    cloud, speckle = tiles().reshape(2, -1)
    return cloud, speckle


def noise(which: int, s: F32, t: F32) -> F32:
    """Noise of tile `which` at texel coordinates (periodic, nearest texel)."""
    i, j = s.astype(np.int32), t.astype(np.int32)
    i &= TILE - 1
    i <<= 8
    j &= TILE - 1
    i |= j
    return _flat_tiles()[which].take(i)


@cache
def srgb_table() -> U8:
    """Linear light 0..1 in 4096 steps to sRGB 0..255."""
    x = np.arange(4096) / 4095
    curve = (255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)).astype(np.float32)
    return np.rint(curve).astype(np.uint8)


@cache
def veil_table() -> F32:
    """1 - exp(-x) for x in 0..8 in 4096 steps: a table keeps the result independent of vector instruction sets."""
    return np.float32(1) - np.exp(-np.arange(4096) * 8 / 4095).astype(np.float32)


def linear(rgb: Any) -> npt.NDArray[np.float64]:
    """sRGB 0..1 to linear light (rounded, so that the last bits of `pow` cannot matter)."""
    c = np.clip(np.asarray(rgb, float), 0, 1)
    return np.asarray(np.round(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 9))


@lru_cache(maxsize=256)
def light_of(rgb: Rgb) -> tuple[float, float, float]:
    """:func:`linear` of one colour."""
    red, green, blue = linear(rgb).tolist()
    return red, green, blue
