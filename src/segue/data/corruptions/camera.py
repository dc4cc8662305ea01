"""What the camera makes of the same scene: too little light, a lens out of focus, another maker's processing.

Night and camera processing are worked out once, at their strongest, and a severity is the share of that in the
picture: every pixel moves towards one value and by more at each severity. So artefacts of compression fade in; they are
not those of a better quality.

Night darkens and crushes the shadows, shifts the colours towards lamps or moonlight and adds noise. It is the exposure
of a day scene turned down: no lamp lights up, no window shines, the shadows of the sun stay.

Camera processing adds noise, then white balance and gamma (either way, by the draw), then JPEG.

Blur is a lens out of focus, its disc taken for a Gaussian of the same spread. Motion blur is left out: a box lets a
regular pattern come back at some lengths, so that more blur would change less. No pixel moves, but the picture's edges
no longer end as sharply as the label's. The change grows as long as there is something left to blur: not in a plain
picture, nor in one whose patterns are all finer than a severity blurs.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.corruptions.draws import add_noise
from segue.labels import U8

NIGHT_SHARE = (0.4, 0.6, 0.75, 0.88, 1.0)
"""Severities 1 to 5, as in all tables here."""
CAMERA_SHARE = (0.2, 0.4, 0.6, 0.8, 1.0)

BLUR_SIGMA_PX = (1.2, 2.0, 3.2, 4.8, 7.0)
"""Spread in a picture whose shorter side is 512 px; it scales with that side, down to 256 px."""

_NIGHT_GAIN, _NIGHT_CONTRAST, _NIGHT_NOISE = 0.28, 1.25, 8.0
_LAMPS, _MOON = np.array([1.0, 0.85, 0.6]), np.array([0.7, 0.85, 1.0])
_CAMERA_NOISE, _CAMERA_QUALITY = 10.0, 15  # standard deviation in levels of 255; 1 to 100 as libjpeg means it
_REFERENCE_PX, _LEAST_PX = 512, 256

Levels = npt.NDArray[np.float64]


def night(image: U8, severity: int, rng: np.random.Generator) -> U8:
    """The scene under-exposed, with a cast and noise."""
    lamps = rng.random()
    cast = lamps * _LAMPS + (1 - lamps) * _MOON
    dark = _tone(image, _NIGHT_GAIN * cast * _brightness() ** _NIGHT_CONTRAST)
    return _share(image, add_noise(dark, _NIGHT_NOISE, rng), NIGHT_SHARE[severity - 1])


def camera(image: U8, severity: int, rng: np.random.Generator) -> U8:
    """The scene as a noisier camera with other colours and strong compression writes it."""
    warm, brighter = rng.integers(0, 2, 2) * 2 - 1
    balance, gamma = rng.uniform(0.2, 0.3), rng.uniform(1.25, 1.45)
    gains = 1 + balance * warm * np.array([1, 0, -1])
    toned = _tone(add_noise(image, _CAMERA_NOISE, rng), gains * _brightness() ** (gamma**-brighter))
    written = cv2.imencode(".jpg", toned[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, _CAMERA_QUALITY))[1]
    seen = np.asarray(cv2.imdecode(written, cv2.IMREAD_COLOR), np.uint8)
    return _share(image, np.ascontiguousarray(seen[:, :, ::-1]), CAMERA_SHARE[severity - 1])


def blur(image: U8, severity: int, rng: np.random.Generator) -> U8:
    """The scene out of focus; nothing in it is drawn."""
    del rng
    sigma = BLUR_SIGMA_PX[severity - 1] * max(_LEAST_PX, min(image.shape[:2])) / _REFERENCE_PX
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.uint8)


def _brightness() -> Levels:
    return np.arange(256)[:, None] / 255


def _tone(image: U8, curve: Levels) -> U8:
    # curve (256, 3): the brightness that each value of each channel becomes.
    return np.asarray(cv2.LUT(image, np.clip(np.rint(255 * curve), 0, 255).astype(np.uint8)[:, None]), np.uint8)


def _share(image: U8, full: U8, share: float) -> U8:
    return np.asarray(cv2.addWeighted(image, 1 - share, full, share, 0), np.uint8)
