"""Shading: surface ids become light, vectorised over the image.

Colour = albedo (surface colour x texture) x (ambient + sun), then haze by depth and the response of an ideal camera
(sRGB).  What matters: ``Light`` and ``Weather``; ``texture`` has the textures.

Light is held as three planes of flat pixels (3, H x W): arithmetic over whole planes is several times faster than over
interleaved colours.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import BUILDING, GLOW, LIT
from segue.data.scenes.domains import Domain
from segue.data.scenes.geometry import Geometry
from segue.data.scenes.raster import Painting, View
from segue.data.scenes.tables import light_of, linear, noise, srgb_table, veil_table
from segue.data.scenes.texture import Textures

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
ONE, HALF = np.float32(1), np.float32(0.5)
LAMP = np.array((1.0, 0.7, 0.35), np.float32)
STREET_LAMP = np.array((1.0, 0.72, 0.42), np.float32)
FULL = np.float32(255) * np.float32(1 / 255)
"""A shadow map's 255 as a share."""


class Shader:
    """Holds the per-pixel geometry of one scene while its textures and light are worked out."""

    def __init__(self, d: Domain, view: View, painting: Painting, sun_side: float) -> None:
        self.d, self.view, self.sun_side = d, view, sun_side
        self.label = painting.label
        self.g = Geometry(view, painting)

    def run(self, cast: U8, contact: U8) -> F32:
        """Linear light of every pixel, as planes (3, H x W)."""
        night = self.d.light.night
        rows = self.g.rows
        plain: F32 = np.ascontiguousarray(linear(rows[:, :3]).astype(np.float32).T)
        light = np.empty((3, len(self.g.ids)), np.float32)
        for channel, colour in enumerate(plain):
            colour.take(self.g.ids, out=light[channel], mode="clip")
        glow = self.g.look_up(rows[:, GLOW] * np.float32(0.25 + 0.75 * night))
        if self.d.texture.amount != 0:
            textures = Textures(self.d, self.g)
            light *= textures.factor()
            textures.windows(light, glow if night > 0 else None)
        shining = np.flatnonzero(glow != 0)
        surfaces = self.g.ids.take(shining)
        lamp = plain.take(surfaces, axis=1) if night > 0 else light.take(shining, axis=1)
        lamp[:, self.label.take(surfaces) == BUILDING] = LAMP[:, None]
        self._sunlit(light, cast.ravel(), contact.ravel())
        own = light.take(shining, axis=1)
        light[:, shining] = own + (lamp - own) * np.minimum(glow.take(shining), ONE)
        self._sky(light)
        self._haze(light)
        if self.d.weather.rain > 0:
            self._mirror(light)
        return light

    def _sky(self, light: F32) -> None:
        """Gradient and clouds, in place."""
        at = np.flatnonzero(self.g.sky)
        if not len(at):
            return
        look, amount = self.d.light, np.float32(self.d.texture.amount)
        dim = np.float32(1 - 0.97 * look.night)
        top, low, cloud = (np.array(light_of(c), np.float32) * dim for c in (look.sky_top, look.sky_low, look.cloud))
        slope = np.maximum(self.g.ry, np.float32(0.02))
        mid = (top + low) / 2
        part = np.clip(slope / np.float32(0.28), 0, 1)
        base = mid + (low + (top - low) * part[:, None] - mid) * amount
        flat = np.float32(14) / (slope + np.float32(0.12))
        row = at // self.view.width
        column = at - row * self.view.width
        wide = flat.take(row)
        drift = np.float32(self.sun_side * 50 + 300)
        thick = noise(0, self.g.rx.take(column) * wide * 2 + drift, wide * 2)
        thick += np.float32(2 * look.cover - 1)
        thick *= np.float32(1.6)
        np.clip(thick, 0, 1, out=thick)
        thick *= np.float32(self.d.texture.clouds)
        thick *= amount
        for channel in range(3):
            own = base[:, channel].take(row)
            light[channel][at] = own + (cloud[channel] - own) * thick

    def _sunlit(self, light: F32, cast: U8, contact: U8) -> None:
        """Multiply by what arrives from sky and sun after shadows (and from lamps at night), and wet the ground.

        There are four states per surface at most (ground in and out of two kinds of shadow, walls on the sunny side or
        not), so light is worked out per surface and state and looked up.
        """
        g = self.g
        state = cast & np.uint8(1)
        state |= contact & np.uint8(2)
        state *= g.ground
        sunny = (g.rx * np.float32(self.sun_side) > 0).astype(np.uint8)
        state += np.tile(sunny, self.view.height) * g.side
        code = np.multiply(state, len(g.rows), dtype=np.intp)
        code += g.ids
        arriving = self._states()
        lamps = self._lamps() if self.d.light.night > 0 else None
        for channel in range(3):
            amount = arriving[channel].take(code)
            if lamps is not None:
                amount += lamps * STREET_LAMP[channel]
            light[channel] *= amount
        if self.d.weather.rain > 0:
            np.multiply(light, np.float32(1 - 0.35 * self.d.weather.rain), out=light, where=g.ground)

    def _states(self) -> F32:
        """Light by channel, state and surface (3, 4 x surfaces)."""
        look, g = self.d.light, self.g
        day = 1 - 0.93 * look.night
        lit = g.rows[:, LIT]
        cast = np.array((0, FULL, 0, FULL), np.float32)[:, None]
        contact = np.array((0, 0, FULL, FULL), np.float32)[:, None]
        sunny = np.array((1.15, 0.25, 1.15, 0.25), np.float32)[:, None]
        sun = np.where(
            g.on_ground, np.float32(0.95) * (1 - np.float32(look.shadow) * cast), lit * np.where(g.on_side, sunny, ONE)
        )
        dark = np.where(g.on_ground, 1 - np.float32(look.contact) * contact, ONE)
        side = np.where(g.on_ground, ONE, np.float32(0.72) + np.float32(0.4) * lit)
        a = (np.array(light_of(look.ambient)) * look.ambient_power * day).astype(np.float32)[:, None, None]
        b = (np.array(light_of(look.sun)) * look.sun_power * day).astype(np.float32)[:, None, None]
        return np.asarray((dark * side) * a + (dark * sun) * b, np.float32).reshape(3, -1)

    def _lamps(self) -> F32:
        """Night: pools of street light and the own headlights."""
        night = np.float32(self.d.light.night)
        z, rx = self.g.depth, np.tile(self.g.rx, self.view.height)
        near = ONE / (1 + (z * np.float32(1 / 16)) ** 2)
        beam = near / (1 + (rx * 3) ** 2)
        pools = HALF + HALF * np.abs((z * np.float32(1 / 22)) % 2 - 1)
        out: F32 = night * (HALF * beam + np.float32(0.22) * pools / (1 + np.maximum(self.g.up, 0) * 0.12))
        return out

    def _haze(self, light: F32) -> None:
        """Fade to the haze colour with depth, in place; the sky is haze already."""
        w = self.d.weather
        air = w.fog * (1 + 1.5 * w.rain)
        index = self.g.depth * np.float32(air * 4095 / 8)
        veil = veil_table().take(np.clip(index, 0, 4095, out=index).astype(np.int32))
        np.copyto(veil, ONE - (ONE - np.float32(min(1.0, air * 40))), where=self.g.sky)
        haze = (np.array(light_of(w.haze)) * (1 - 0.95 * self.d.light.night)).astype(np.float32)
        for channel in range(3):
            fading = haze[channel] - light[channel]
            fading *= veil
            light[channel] += fading

    def _mirror(self, light: F32) -> None:
        """Wet ground mirrors what stands above it: the row as far above the horizon as the pixel lies below."""
        h, w = self.view.height, self.view.width
        rows = np.arange(h)
        mirror = np.clip(np.rint(2 * self.view.v0 - rows - 1), 0, h - 1).astype(int)
        picture = light.reshape(3, h, w)
        soft = (picture[:, mirror] + picture[:, np.maximum(mirror - 2, 0)]) * HALF
        share = self.g.ground * np.float32(0.38 * self.d.weather.rain)
        light += (soft.reshape(3, -1) - light) * share


def expose(light: F32, view: View, exposure: float) -> U8:
    """The picture an ideal camera takes (H, W, 3); `light` is used up."""
    light *= np.float32(exposure * 4095)
    index = np.clip(light, 0, 4095, out=light).astype(np.int32)
    planes = srgb_table().take(index).reshape(3, view.height, view.width)
    return np.asarray(cv2.merge(tuple(planes)), np.uint8)
