"""Camera effects: the ideal picture becomes a photograph.

Order as in a real camera: lens blur, vignetting, white balance, noise, then saturation, tone curve and black level.
The knobs that matter: ``Camera.blur_px``, ``noise``, ``gain``, ``saturation``, ``contrast``, ``lift``.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.domains import Camera, Domain
from segue.data.scenes.tables import tiles

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


@lru_cache(maxsize=32)
def _falloff(height: int, width: int, vignette: float, gain: tuple[float, float, float]) -> F32:
    """Vignetting (by the squared distance from the centre, 1 in the corners) times white balance, (3, H, W)."""
    y = ((np.arange(height) + 0.5) / height * 2 - 1) ** 2
    x = ((np.arange(width) + 0.5) / width * 2 - 1) ** 2
    radius = ((x[None, :] + y[:, None]) / 2).astype(np.float32)
    return (np.float32(1) - np.float32(vignette) * radius) * np.array(gain, np.float32)[:, None, None]


@lru_cache(maxsize=32)
def _tone(contrast: float, lift: float, gamma: float) -> U8:
    """Tone curve over 1024 levels of 0..1: an S curve about mid grey, then gamma and black level."""
    x = np.arange(1024) / 1023
    bend = contrast - 1.0
    curve = x + bend * (x * x * (3 - 2 * x) - x) * 1.6
    curve = np.clip(curve, 0, 1) ** gamma
    return np.rint(255 * (lift + (1 - lift - 0.5 * max(0.0, 1 - contrast) * 0.3) * curve)).clip(0, 255).astype(np.uint8)


def _rain(picture: F32, rain: float, rng: np.random.Generator) -> None:
    """Falling streaks, in place."""
    h, w = picture.shape[1:]
    dy, dx = (int(v) for v in rng.integers(0, 256, 2))
    rows = (np.arange(h) // max(1, h // 24) + dy) % 256
    slant = (np.arange(w)[None, :] * 256 // max(w, 256) * 2 + np.arange(h)[:, None] // 5 + dx) % 256
    picture += np.maximum(tiles()[1][rows[:, None], slant] - np.float32(0.55), 0) * np.float32(0.5 * rain)


def photograph(clean: U8, domain: Domain, rng: np.random.Generator) -> U8:
    """The picture a camera of `domain` takes of `clean` (uint8 RGB)."""
    c: Camera = domain.camera
    h, w = clean.shape[:2]
    sigma = c.blur_px * h / 128
    # The 8-bit blur of OpenCV is bit exact on every machine, the float one is not.
    soft = cv2.GaussianBlur(clean, (0, 0), sigma) if sigma > 0.05 else clean
    picture = np.empty((3, h, w), np.float32)
    for plane, channel in zip(picture, cv2.split(soft), strict=True):
        np.multiply(channel, np.float32(1 / 255), out=plane)
    grain = rng.standard_normal((h, w, 3), np.float32)
    picture *= _falloff(h, w, c.vignette, c.gain)
    if domain.weather.rain > 0:
        _rain(picture, domain.weather.rain, rng)
    _noise(picture, grain, c.noise)
    grey = picture[0] * LUMA[0] + picture[1] * LUMA[1] + picture[2] * LUMA[2]
    picture -= grey
    picture *= np.float32(c.saturation)
    picture += grey
    picture *= np.float32(1023)
    picture += np.float32(0.5)
    index = np.clip(picture, 0, 1023, out=picture).astype(np.int32)
    return np.asarray(cv2.merge(tuple(_tone(c.contrast, c.lift, c.gamma).take(index))), np.uint8)


def _noise(picture: F32, grain: F32, strength: float) -> None:
    """Add sensor noise, stronger where it is dark, in place; `grain` is (H, W, 3)."""
    for plane, speckle in zip(picture, cv2.split(grain), strict=True):
        amount = np.float32(1) - plane
        amount *= np.float32(0.7)
        amount += np.float32(0.6)
        amount *= np.float32(strength)
        amount *= speckle
        plane += amount
