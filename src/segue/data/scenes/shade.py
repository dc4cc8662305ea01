"""Shading: surface ids become light, vectorised over the image.

Colour = albedo (surface colour x texture) x (ambient + sun), then haze by depth and the response of an ideal camera
(sRGB).  Textures live in world coordinates (metres), so they recede with the street; they fade where a pixel covers
more than their period.  What matters: ``Texture.amount`` (0 = flat), ``Light`` and ``Weather``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import (
    ASPHALT,
    BARS,
    BRICK,
    BUILDING,
    GRASS,
    GROUND,
    LEAVES,
    PAVING,
    PLASTER,
    SIDE,
    SKY,
    WINDOWS,
)
from segue.data.scenes.domains import Domain
from segue.data.scenes.raster import Painting, View

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.intp]
Scale = np.float32
FAR = 1000.0
TILE = 256
(RED, GREEN, BLUE, AXIS, AT, TEX, AMP, FREQ, LIT, GLOW, LOW, HIGH, PERIOD_S, PERIOD_T, FILL_S, FILL_T, NEAR,
 DEEP) = range(18)


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
def srgb_table() -> F32:
    """Linear light 0..1 in 4096 steps to sRGB 0..255."""
    x = np.arange(4096) / 4095
    return (255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)).astype(np.float32)


@cache
def exp_table() -> F32:
    """exp(-x) for x in 0..8 in 4096 steps: a table keeps the result independent of vector instruction sets."""
    return np.exp(-np.arange(4096) * 8 / 4095).astype(np.float32)


def linear(rgb: Any) -> npt.NDArray[np.float64]:
    """sRGB 0..1 to linear light (rounded, so that the last bits of `pow` cannot matter)."""
    c = np.clip(np.asarray(rgb, float), 0, 1)
    return np.asarray(np.round(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 9))


@dataclass
class Shaded:
    """Linear light of the scene (H x W, 3 flattened) and depth in metres."""

    light: F32
    depth: F32


def _noise(which: int, s: Any, t: Any) -> F32:
    """Noise at texel coordinates (periodic, nearest texel)."""
    i = s.astype(np.int32) & (TILE - 1)
    j = t.astype(np.int32) & (TILE - 1)
    out: F32 = tiles()[which].ravel()[(i << 8) | j]
    return out


class Shader:
    """Holds the per-pixel geometry of one scene while its textures and light are worked out."""

    def __init__(self, d: Domain, view: View, painting: Painting, sun_side: float) -> None:
        self.d, self.view, self.sun_side = d, view, sun_side
        self.rows = painting.rows.astype(np.float32)
        self.ids = painting.surface.ravel()
        self.label = painting.label[self.ids]
        self.axis = self._take(AXIS).astype(np.int8)
        rx = (np.arange(view.width, dtype=np.float32) + np.float32(0.5 - view.u0)) / np.float32(view.focal)
        ry = (np.float32(view.v0 - 0.5) - np.arange(view.height, dtype=np.float32)) / np.float32(view.focal)
        self.rx = np.tile(rx, view.height)
        self.ry = np.repeat(ry, view.width)
        self._solve()

    def _take(self, column: int) -> F32:
        out: F32 = self.rows[:, column].take(self.ids)
        return out

    def _solve(self) -> None:
        """Depth and texture coordinates (metres) from the plane each pixel lies on."""
        ground, side = self.axis == GROUND, self.axis == SIDE
        at = self._take(AT)
        rise = np.where(ground, self.ry, np.where(side, self.rx, np.float32(1)))
        drop = np.where(ground, at - np.float32(self.view.camera_m), at)
        safe = np.where(np.abs(rise) < 1e-6, np.float32(1e-6), rise)
        self.depth: F32 = np.clip(drop / safe, self._take(NEAR), self._take(DEEP))
        self.up = np.float32(self.view.camera_m) + self.ry * self.depth
        self.s = np.where(side, self.depth, self.rx * self.depth)
        self.t = np.where(ground, self.depth, self.up)
        self.ground = ground
        # Metres a pixel covers across its surface; stretched where the surface recedes.
        stretch = np.where(ground, self.depth * np.float32(0.35), np.where(side, self.depth / np.maximum(
            np.abs(at), np.float32(1)), np.float32(1)))
        self.print: F32 = self.depth * np.maximum(stretch, np.float32(1)) / np.float32(self.view.focal)

    def where(self, kind: int) -> Mask:
        """Flat indices of pixels whose surface has texture `kind`."""
        return np.flatnonzero((self.rows[:, TEX] == kind).take(self.ids))

    def _fade(self, at: Mask, size: float) -> F32:
        """1 where a pixel is much smaller than `size` metres, falling to 0 where it is larger."""
        out: F32 = np.float32(1) / (np.float32(1) + (self.print[at] / np.float32(size)) ** 2)
        return out

    def _seed(self, at: Mask) -> F32:
        return (self.ids[at] * 37 & 255).astype(np.float32)

    def texture(self) -> F32:
        """Factor on the albedo, per pixel."""
        amount = np.float32(self.d.texture.amount)
        k = np.float32(self.d.texture.scale)
        factor = np.ones(len(self.ids), np.float32)
        if amount == 0:
            return factor
        for kind, work in ((ASPHALT, self._asphalt), (PAVING, self._paving), (LEAVES, self._leaves),
                           (GRASS, self._grass), (BRICK, self._brick), (BARS, self._bars), (PLASTER, self._plaster)):
            at = self.where(kind)
            if len(at):
                factor[at] += amount * work(at, k)
        at = np.flatnonzero((self.rows[:, HIGH] > self.rows[:, LOW]).take(self.ids))
        low, high = self._take(LOW)[at], self._take(HIGH)[at]
        slope = np.where(self.label[at] == BUILDING, np.float32(0.2), np.float32(0.5))
        factor[at] *= 1 + amount * slope * ((self.up[at] - low) / (high - low) - np.float32(0.55))
        return np.maximum(factor, np.float32(0.05))

    def _asphalt(self, at: Mask, k: Scale) -> F32:
        s, t = self.s[at], self.t[at]
        fine = _noise(1, s * 24 * k, t * 24 * k) * self._fade(at, 0.08)
        wear = _noise(0, s * 14 * k, t * 2.2 * k) * self._fade(at, 1.2)
        return np.float32(self.d.texture.asphalt) * fine + np.float32(self.d.texture.patches) * wear

    def _paving(self, at: Mask, k: Scale) -> F32:
        s, t = self.s[at] * 1.6 * k, self.t[at] * 1.6 * k
        joint = ((s % 1) < 0.1) | ((t % 1) < 0.1)
        tone = _noise(1, np.floor(s) * 7, np.floor(t) * 5)
        blur = self._fade(at, 0.35)
        stain = _noise(0, self.s[at] * 9, self.t[at] * 4)
        out: F32 = self.d.texture.paving * (blur * (np.float32(0.5) * tone - joint) + np.float32(0.5) * stain)
        return out

    def _leaves(self, at: Mask, k: Scale) -> F32:
        s, t, seed = self.s[at], self.t[at], self._seed(at)
        big = _noise(0, s * 34 * k + seed, t * 34 * k)
        fine = _noise(1, s * 6 * k + seed, t * 6 * k) * self._fade(at, 0.3)
        return self._take(AMP)[at] * (np.float32(0.65) * big + np.float32(0.75) * fine)

    def _grass(self, at: Mask, k: Scale) -> F32:
        s, t = self.s[at], self.t[at]
        fine = _noise(1, s * 40 * k, t * 14 * k) * self._fade(at, 0.15)
        return np.float32(self.d.texture.grass) * (fine + np.float32(0.8) * _noise(0, s * 12 * k, t * 5 * k))

    def _brick(self, at: Mask, k: Scale) -> F32:
        t = self.t[at] * 3.2
        s = self.s[at] * 1.6 + np.float32(0.5) * (np.floor(t) % 2)
        joint = ((t % 1) < 0.18) | ((s % 1) < 0.1)
        tone = _noise(1, np.floor(s) * 11, np.floor(t) * 13)
        stain = _noise(0, self.s[at] * 8 * k, self.t[at] * 14 * k)
        return self._take(AMP)[at] * (self._fade(at, 0.3) * (np.float32(0.6) * tone - np.float32(0.7) * joint)
                                      + np.float32(0.45) * stain)

    def _bars(self, at: Mask, k: Scale) -> F32:
        gap = (self.s[at] * 2.6 % 1) > 0.42
        rail = (self.t[at] % np.float32(0.85)) < 0.12
        dark: F32 = -self._take(AMP)[at] * self._fade(at, 0.5)
        out: F32 = np.where(gap & ~rail, dark, np.float32(0.15))
        return out

    def _plaster(self, at: Mask, k: Scale) -> F32:
        return self._take(AMP)[at] * _noise(0, self.s[at] * 9 * k + self._seed(at), self.t[at] * 6 * k)

    def windows(self, albedo: F32, glow: F32) -> None:
        """Paint window panes on facades in place; at night some of them glow."""
        at = self.where(WINDOWS)
        tex = self.d.texture
        if not len(at) or tex.amount == 0:
            return
        seed = self._seed(at)
        plaster = _noise(0, self.s[at] * 9 * np.float32(tex.scale) + seed, self.t[at] * 6 * np.float32(tex.scale))
        albedo[at] *= (1 + np.float32(tex.amount * tex.plaster) * plaster)[:, None]
        ps, pt = self._take(PERIOD_S)[at], self._take(PERIOD_T)[at]
        s = (self.s[at] + seed) / ps
        t = (self.t[at] - np.float32(0.4)) / pt
        i, j = np.floor(s), np.floor(t)
        fs, ft = s - i, t - j
        half = self._take(FILL_S)[at] * np.float32(0.5)
        pane = (np.abs(fs - np.float32(0.5)) < half) & (np.abs(ft - np.float32(0.52)) < self._take(FILL_T)[at] * 0.5)
        pane &= (self.t[at] > 2.9) & (self.t[at] < self._take(HIGH)[at] - 0.7)
        sill = ~pane & (np.abs(fs - np.float32(0.5)) < half + 0.06) & (np.abs(ft - np.float32(0.52)) < 0.38)
        whim = _noise(1, i * 17 + seed, j * 29) * np.float32(0.5) + np.float32(0.5)
        fade = np.clip(ps / (self.print[at] * 2) - np.float32(0.6), 0, 1) * np.float32(tex.windows * tex.amount)
        glass = linear(self.d.palette.window).astype(np.float32)
        sky = linear(self.d.light.sky_low).astype(np.float32)
        tint = glass + (sky - glass) * (whim * whim * np.float32(0.35))[:, None]
        share = np.where(pane, fade, np.where(sill & (seed > 90), np.float32(-0.12) * fade, np.float32(0)))[:, None]
        albedo[at] += (tint - albedo[at]) * share
        night = np.float32(self.d.light.night)
        glow[at] += np.where(pane & (whim > 0.55), fade * night * np.float32(0.9), np.float32(0))

    def sky(self, light: F32) -> None:
        """Gradient and clouds, in place."""
        at = np.flatnonzero(self.axis == SKY)
        if not len(at):
            return
        look, amount = self.d.light, np.float32(self.d.texture.amount)
        dim = np.float32(1 - 0.97 * look.night)
        top, low, cloud = (linear(c).astype(np.float32) * dim for c in (look.sky_top, look.sky_low, look.cloud))
        ry = np.maximum(self.ry[at], np.float32(0.02))
        mid = (top + low) / 2
        part = np.clip(ry / np.float32(0.28), 0, 1)
        base = mid + (low + (top - low) * part[:, None] - mid) * amount
        flat = np.float32(14) / (ry + np.float32(0.12))
        n = _noise(0, self.rx[at] * flat * 2 + np.float32(self.sun_side * 50 + 300), flat * 2)
        thick = np.clip((n + np.float32(2 * look.cover - 1)) * np.float32(1.6), 0, 1)
        thick = thick * np.float32(self.d.texture.clouds) * amount
        light[at] = base + (cloud - base) * thick[:, None]

    def sunlit(self, cast: F32, contact: F32) -> F32:
        """Light arriving at each pixel, per channel, from sky and sun after shadows."""
        look = self.d.light
        day = 1 - 0.93 * look.night
        lit = self._take(LIT)
        facing = np.where(self.axis == SIDE, np.where(self.rx * np.float32(self.sun_side) > 0, np.float32(0.25),
                                                      np.float32(1.15)), np.float32(1))
        sun = lit * facing
        sun = np.where(self.ground, np.float32(0.95) * (1 - np.float32(look.shadow) * cast), sun)
        dark = np.where(self.ground, 1 - np.float32(look.contact) * contact, np.float32(1))
        side = np.where(self.ground, np.float32(1), np.float32(0.72) + np.float32(0.4) * lit)
        a = (linear(look.ambient) * look.ambient_power * day).astype(np.float32)
        b = (linear(look.sun) * look.sun_power * day).astype(np.float32)
        out: F32 = (dark * side)[:, None] * a + (dark * sun)[:, None] * b
        if look.night > 0:
            out += self._lamps()[:, None] * np.array((1.0, 0.72, 0.42), np.float32)
        return out

    def _lamps(self) -> F32:
        """Night: pools of street light and the own headlights."""
        night = np.float32(self.d.light.night)
        z = self.depth
        near = np.float32(1) / (1 + (z * np.float32(1 / 16)) ** 2)
        beam = near / (1 + (self.rx * 3) ** 2)
        pools = np.float32(0.5) + np.float32(0.5) * np.abs((z * np.float32(1 / 22)) % 2 - 1)
        out: F32 = night * (np.float32(0.5) * beam + np.float32(0.22) * pools / (1 + np.maximum(self.up, 0) * 0.12))
        return out

    def run(self, cast: npt.NDArray[np.uint8], contact: npt.NDArray[np.uint8]) -> Shaded:
        """Linear light of every pixel."""
        albedo: F32 = linear(self.rows[:, :3]).astype(np.float32).take(self.ids, axis=0)
        glow = self._take(GLOW) * np.float32(0.25 + 0.75 * self.d.light.night)
        bare = albedo.copy() if self.d.light.night > 0 else albedo
        albedo *= self.texture()[:, None]
        self.windows(albedo, glow)
        wet = np.where(self.ground, np.float32(1 - 0.35 * self.d.weather.rain), np.float32(1))
        scale = np.float32(1 / 255)
        light: F32 = albedo * self.sunlit(cast.ravel() * scale, contact.ravel() * scale) * wet[:, None]
        lamp = np.where((self.label == BUILDING)[:, None], np.array((1.0, 0.7, 0.35), np.float32), bare)
        light += (lamp - light) * np.minimum(glow, 1)[:, None]
        self.sky(light)
        self._haze(light)
        if self.d.weather.rain > 0:
            self._mirror(light)
        return Shaded(light, self.depth)

    def _haze(self, light: F32) -> None:
        """Fade to the haze colour with depth, in place; the sky is haze already."""
        w = self.d.weather
        air = w.fog * (1 + 1.5 * w.rain)
        index = np.minimum(self.depth * np.float32(air * 4095 / 8), 4095).astype(np.int32)
        keep = np.where(self.axis == SKY, np.float32(1) - np.float32(min(1.0, air * 40)), exp_table()[index])
        haze = (linear(w.haze) * (1 - 0.95 * self.d.light.night)).astype(np.float32)
        light += (haze - light) * (1 - keep)[:, None]

    def _mirror(self, light: F32) -> None:
        """Wet ground mirrors what stands above it: the row as far above the horizon as the pixel lies below."""
        h, w = self.view.height, self.view.width
        rows = np.arange(h)
        mirror = np.clip(np.rint(2 * self.view.v0 - rows - 1), 0, h - 1).astype(int)
        picture = light.reshape(h, w, 3)
        soft = (picture[mirror] + picture[np.maximum(mirror - 2, 0)]) * np.float32(0.5)
        share = np.where(self.ground, np.float32(0.38 * self.d.weather.rain), np.float32(0))
        light += (soft.reshape(-1, 3) - light) * share[:, None]
