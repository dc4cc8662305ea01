"""Textures: factors on the surface colours, and window panes.

Textures live in world coordinates (metres), so they recede with the street; they fade where a pixel covers more than
their period.  What matters: ``Texture.amount`` (0 = flat).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import (
    AMP,
    ASPHALT,
    BARS,
    BRICK,
    BUILDING,
    GRASS,
    HIGH,
    LEAVES,
    LOW,
    PAVING,
    PLASTER,
    TEX,
    WINDOWS,
)
from segue.data.scenes.domains import Domain
from segue.data.scenes.geometry import Geometry
from segue.data.scenes.tables import light_of, noise

F32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]
ONE, HALF = np.float32(1), np.float32(0.5)


class Patch:
    """The pixels of one texture kind: where they are (`at`), their surfaces and coordinates, all gathered."""

    def __init__(self, g: Geometry, at: Index, footprint: F32) -> None:
        self.at, self.ids, self.rows = at, g.ids.take(at), g.rows
        self.s, self.t, self.footprint = g.s.take(at), g.t.take(at), footprint.take(at)

    def of_surface(self, column: int) -> F32:
        """One number of each pixel's surface."""
        return self.rows[:, column].take(self.ids)

    def seed(self) -> F32:
        """A number in 0..255 for each pixel's surface."""
        return (np.arange(len(self.rows)) * 37 & 255).astype(np.float32).take(self.ids)

    def fade(self, size: float) -> F32:
        """1 where a pixel is much smaller than `size` metres, falling to 0 where it is larger."""
        out = self.footprint / np.float32(size)
        out *= out
        out += ONE
        np.divide(ONE, out, out=out)
        return out


class Textures:
    """The textures of one scene."""

    def __init__(self, d: Domain, geometry: Geometry) -> None:
        self.d, self.g = d, geometry
        self.amount, self.k = np.float32(d.texture.amount), np.float32(d.texture.scale)
        kinds = geometry.rows[:, TEX].astype(np.uint8)
        self.kinds = kinds.take(geometry.ids)
        self.present = set(kinds.tolist())
        self.footprint = geometry.footprint()

    def patch(self, kind: int) -> Patch | None:
        """The pixels whose surface has texture `kind`; None when there are none."""
        if kind not in self.present:
            return None
        at = np.flatnonzero(self.kinds == kind)
        return Patch(self.g, at, self.footprint) if len(at) else None

    def factor(self) -> F32:
        """Factor on the albedo, per pixel."""
        factor = np.ones(len(self.g.ids), np.float32)
        works: tuple[tuple[int, Callable[[Patch], F32]], ...] = (
            (ASPHALT, self._asphalt),
            (PAVING, self._paving),
            (LEAVES, self._leaves),
            (GRASS, self._grass),
            (BRICK, self._brick),
            (BARS, self._bars),
            (PLASTER, self._plaster),
        )
        for kind, work in works:
            patch = self.patch(kind)
            if patch is not None:
                value = work(patch)
                value *= self.amount
                value += ONE
                factor[patch.at] = value
        factor *= self._slope()
        return np.maximum(factor, np.float32(0.05), out=factor)

    def _slope(self) -> F32:
        """Upright surfaces get lighter from bottom to top: leaves more, houses less."""
        rows, look_up = self.g.rows, self.g.look_up
        low, high = rows[:, LOW], rows[:, HIGH]
        sloped = high > low
        strength = self.amount * np.where(self.g.painting.label == BUILDING, np.float32(0.2), HALF)
        value = self.g.up - look_up(low)
        value /= look_up(np.where(sloped, high - low, ONE))
        value -= np.float32(0.55)
        value *= look_up(np.where(sloped, strength, np.float32(0)))
        value += ONE
        return value

    def _asphalt(self, p: Patch) -> F32:
        fine = noise(1, p.s * 24 * self.k, p.t * 24 * self.k)
        fine *= p.fade(0.08)
        fine *= np.float32(self.d.texture.asphalt)
        wear = noise(0, p.s * 14 * self.k, p.t * 2.2 * self.k)
        wear *= p.fade(1.2)
        wear *= np.float32(self.d.texture.patches)
        fine += wear
        return fine

    def _paving(self, p: Patch) -> F32:
        s, t = p.s * 1.6 * self.k, p.t * 1.6 * self.k
        i, j = np.floor(s), np.floor(t)
        joint = (s - i < 0.1) | (t - j < 0.1)
        tone = noise(1, i * 7, j * 5)
        tone *= HALF
        tone -= joint
        tone *= p.fade(0.35)
        stain = noise(0, p.s * 9, p.t * 4)
        stain *= HALF
        tone += stain
        tone *= self.d.texture.paving
        return tone

    def _leaves(self, p: Patch) -> F32:
        seed, k = p.seed(), self.k
        big = noise(0, p.s * 34 * k + seed, p.t * 34 * k)
        fine = noise(1, p.s * 6 * k + seed, p.t * 6 * k)
        fine *= p.fade(0.3)
        fine *= np.float32(0.75)
        big *= np.float32(0.65)
        big += fine
        big *= p.of_surface(AMP)
        return big

    def _grass(self, p: Patch) -> F32:
        k = self.k
        fine = noise(1, p.s * 40 * k, p.t * 14 * k)
        fine *= p.fade(0.15)
        fine += np.float32(0.8) * noise(0, p.s * 12 * k, p.t * 5 * k)
        fine *= np.float32(self.d.texture.grass)
        return fine

    def _brick(self, p: Patch) -> F32:
        t = p.t * 3.2
        j = np.floor(t)
        s = p.s * 1.6 + HALF * (j.astype(np.int32) & 1).astype(np.float32)
        i = np.floor(s)
        joint = (t - j < 0.18) | (s - i < 0.1)
        tone = np.float32(0.6) * noise(1, i * 11, j * 13)
        tone -= np.float32(0.7) * joint
        tone *= p.fade(0.3)
        tone += np.float32(0.45) * noise(0, p.s * 8 * self.k, p.t * 14 * self.k)
        tone *= p.of_surface(AMP)
        return tone

    def _bars(self, p: Patch) -> F32:
        s = p.s * 2.6
        gap = s - np.floor(s) > 0.42
        rail = (p.t % np.float32(0.85)) < 0.12
        dark: F32 = -p.of_surface(AMP) * p.fade(0.5)
        return np.where(gap & ~rail, dark, np.float32(0.15))

    def _plaster(self, p: Patch) -> F32:
        value = noise(0, p.s * 9 * self.k + p.seed(), p.t * 6 * self.k)
        value *= p.of_surface(AMP)
        return value

    def windows(self, albedo: F32, glow: F32 | None) -> None:
        """Paint window panes on facades in place; with `glow` (at night) some of them glow."""
        p = self.patch(WINDOWS)
        if p is None:
            return
        tex, seed = self.d.texture, p.seed()
        plaster = noise(0, p.s * 9 * self.k + seed, p.t * 6 * self.k)
        plaster *= np.float32(tex.amount * tex.plaster)
        plaster += ONE
        pane, sill, whim, fade = self._panes(p, seed)
        fade *= np.float32(tex.windows * tex.amount)
        share = np.where(pane, fade, np.where(sill & (seed > 90), np.float32(-0.12) * fade, np.float32(0)))
        mirrored = whim * whim
        mirrored *= np.float32(0.35)
        glass, sky = (np.array(light_of(c), np.float32) for c in (self.d.palette.window, self.d.light.sky_low))
        for channel in range(3):
            own = albedo[channel].take(p.at)
            own *= plaster
            tint = mirrored * (sky[channel] - glass[channel])
            tint += glass[channel]
            tint -= own
            tint *= share
            own += tint
            albedo[channel][p.at] = own
        if glow is not None:
            night = np.float32(self.d.light.night)
            glow[p.at] += np.where(pane & (whim > 0.55), fade * night * np.float32(0.9), np.float32(0))

    def _panes(self, p: Patch, seed: F32) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], F32, F32]:
        """Panes, the sills around them, a random number per window and how well windows can be told apart."""
        period_s, period_t, fill_s, fill_t = (column.take(p.ids) for column in self.g.painting.panes.T)
        s = p.s + seed
        s /= period_s
        t = p.t - np.float32(0.4)
        t /= period_t
        i, j = np.floor(s), np.floor(t)
        s -= i
        s -= HALF
        t -= j
        t -= np.float32(0.52)
        across, along = np.abs(s, out=s), np.abs(t, out=t)
        fill_s *= HALF
        fill_t *= HALF
        pane = (across < fill_s) & (along < fill_t)
        pane &= (p.t > 2.9) & (p.t < p.of_surface(HIGH) - np.float32(0.7))
        sill = ~pane & (across < fill_s + np.float32(0.06)) & (along < 0.38)
        whim = noise(1, i * 17 + seed, j * 29)
        whim *= HALF
        whim += HALF
        period_s /= p.footprint * 2
        period_s -= np.float32(0.6)
        return pane, sill, whim, np.clip(period_s, 0, 1, out=period_s)
