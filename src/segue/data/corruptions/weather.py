"""Fog and rain, as a layer of one colour over the picture. No depth is known, so neither is a simulation.

Fog mixes the picture with a pale grey by ``1 - exp(-strength * distance)``, the law of Koschmieder (1924). Distance is
only guessed: that of a flat ground below a horizon at 45 % of the height, constant above it, times a smooth random
field. So far road fades and near road does not; but a near wall or tree that rises above the horizon fades with the sky
behind it, nothing is blurred, and lamps have no halo.

Rain is a thin veil and three layers of streaks, far to near, in one slant. There are no drops on the lens, no wet road
and no mirror images in it. A stronger rain keeps the streaks of a weaker one and adds to them.

As every pixel moves towards one colour and by more at each severity, the change grows pixel by pixel, but for a picture
that has that colour already.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from segue.data.corruptions.draws import F32, Size, mix, smooth_field
from segue.labels import U8

FOG_STRENGTH = (0.25, 0.5, 0.8, 1.2, 1.8)
"""Optical depth up to the far end, severities 1 to 5: 22 % to 83 % of the light there is the fog's."""

RAIN_VEIL = (0.06, 0.12, 0.18, 0.25, 0.33)
RAIN_STREAKS = (150, 300, 500, 750, 1100)
"""Streaks of the far layer in a square picture; the nearer ones have a third and a ninth as many."""

_HORIZON = 0.45
_NEAREST = 0.2  # distance at the lower border, in units of the far end
_SLANT_DEG = 15.0
_STREAK_OPACITY = 0.6
_LAYERS = ((0.02, 1.0, 0.5), (0.05, 1 / 3, 0.75), (0.11, 1 / 9, 1.0))
"""Length (share of the height), how many (share of the far layer's), brightness of the streaks of a layer."""
_FRACTION_BITS = 4  # of the streaks' coordinates


def fog(image: U8, severity: int, rng: np.random.Generator) -> U8:
    """Fog, denser with the guessed distance."""
    grey = rng.uniform(205, 230)
    color = (grey, grey, grey + 5)
    density = distance(image.shape[:2]) * (0.6 + 0.8 * smooth_field(rng, image.shape[:2]))
    return mix(image, color, 1 - np.exp(-FOG_STRENGTH[severity - 1] * density))


def rain(image: U8, severity: int, rng: np.random.Generator) -> U8:
    """Rain: a veil, and streaks before it."""
    grey = rng.uniform(165, 190)
    slant = math.tan(math.radians(rng.uniform(-_SLANT_DEG, _SLANT_DEG)))
    veil = RAIN_VEIL[severity - 1]
    opacity = veil + (1 - veil) * _STREAK_OPACITY * np.arange(256) / 255
    streaks = _streaks(image.shape[:2], severity, slant, rng)
    return mix(image, (grey, grey, grey + 5), np.asarray(cv2.LUT(streaks, opacity.astype(np.float32)), np.float32))


def distance(size: Size) -> F32:
    """Guessed distance (H, 1) of each row, 1 at the far end: flat ground below a horizon, nothing nearer above it."""
    height = size[0]
    below = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - _HORIZON
    return np.asarray(np.minimum(1, _NEAREST * (1 - _HORIZON) / np.maximum(below, 1e-6)), np.float32)


def _streaks(size: Size, severity: int, slant: float, rng: np.random.Generator) -> U8:
    height, width = size
    out = np.zeros(size, np.uint8)
    for length, share, brightness in _LAYERS:
        most, count = (round(n * share * width / height) for n in (RAIN_STREAKS[-1], RAIN_STREAKS[severity - 1]))
        # All that the strongest rain has are drawn, so that a weaker one shows the first of the same streaks.
        places = rng.random((most, 2))[:count] * (width, height * (1 + length)) - (0, height * length)
        ends = np.stack([places, places + height * length * np.array([slant, 1.0])], axis=1)
        layer = np.zeros(size, np.uint8)
        points = np.rint(ends * (1 << _FRACTION_BITS)).astype(np.int32)
        cv2.polylines(layer, list(points), False, round(255 * brightness), 1, cv2.LINE_AA, _FRACTION_BITS)
        out = np.asarray(cv2.max(out, layer), np.uint8)
    return out
