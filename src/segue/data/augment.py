"""The augmentation block of a training sample: strong colour steps, then one warp, on 8-bit RGB.

Steps mean what torchvision's functions of these names mean on pictures in 0..1 (``adjust_contrast``,
``adjust_saturation``, ``adjust_brightness``, ``adjust_hue``, ``rgb_to_grayscale``, ``solarize``, ``gaussian_blur`` with
a kernel of 15, ``horizontal_flip``, ``rotate``, and ``perspective`` with corners drawn as ``RandomPerspective`` does,
not rounded to pixels). Each colour step clamps and rounds once. A picture is never normalised before: contrast and its
kin mean nothing around another zero.

Colour steps come first, in the given order, on the picture alone: no fill enters their means or is recoloured. Flips,
rotations and the perspective make one matrix, again in the given order, and one interpolation: bilinear for the picture
(:data:`FILL` outside), nearest for the label (255 outside). The pixel mask says what lies outside.

Knobs that matter: the block's ``probability`` and the ranges (``segue.policies``).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from segue.labels import IGNORE, U8
from segue.policies import MOST_STEPS, AugmentConfig

FILL = (124, 116, 104)
"""Colour where there is no picture: the ImageNet mean, 0 after the usual normalisation. Such pixels enter no loss."""

GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness."""

_CORNERS = 8
_PER_STEP = 2 + _CORNERS
NUMBERS = 1 + MOST_STEPS * _PER_STEP
"""Uniform numbers that :func:`augment` is given: the block's coin, then for each step its coin, value and corners."""

_GEOMETRY = ("flip", "rotation", "perspective")
_BLUR_RADIUS_PX = 7

Numbers = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


class Augmented(NamedTuple):
    """A sample after the block.

    Image (H, W, 3) uint8; label (H, W) uint8; pixel (H, W) bool, None when all are true; ``warp``: None, or the 3x3
    matrix that takes a pixel (x, y, 1) of this sample to the one it shows of the sample before.
    """

    image: U8
    label: U8 | None
    pixel: npt.NDArray[np.bool_] | None
    warp: Matrix | None


def augment(image: U8, label: U8 | None, config: AugmentConfig, numbers: Numbers) -> Augmented:
    """Apply the block to a picture (H, W, 3) uint8 RGB in 0..255 and its label (H, W) uint8, or none of it.

    ``numbers``: :data:`NUMBERS` uniform draws in [0, 1), of which every step has its own. ``TypeError`` for pictures of
    any other type, whose scale would have to be guessed.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"pictures are augmented as uint8 before they are normalised, this one is {image.dtype}")
    if numbers[0] >= config.probability:
        return Augmented(image, label, None, None)
    image = np.ascontiguousarray(image)
    matrix = np.eye(3)
    for step, (coin, place, *corners) in zip(config.steps, numbers[1:].reshape(-1, _PER_STEP), strict=False):
        if coin >= step.probability:
            continue
        low, high = step.range or (0.0, 0.0)
        value = low + (high - low) * float(place)
        if step.name in _GEOMETRY:
            matrix = matrix @ _backwards(step.name, value, image.shape[:2], np.array(corners))
        else:
            image = recolour(image, step.name, value)
    return warp(image, label, matrix)


def recolour(image: U8, step: str, value: float) -> U8:
    """One colour step, by name and value, on an (H, W, 3) uint8 RGB picture."""
    levels = np.arange(256.0)
    out: npt.NDArray[Any] = image
    if step == "contrast":
        grey = float(GREY @ np.array(cv2.mean(image)[:3]))
        out = cv2.LUT(image, _rounded(value * levels + (1 - value) * grey))
    elif step == "brightness":
        out = cv2.LUT(image, _rounded(value * levels))
    elif step == "solarize":
        out = cv2.LUT(image, np.where(levels / 255 >= value, 255 - levels, levels).astype(np.uint8))
    elif step == "saturation":
        out = cv2.transform(image, value * np.eye(3) + (1 - value) * GREY)
    elif step == "grayscale":
        out = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    elif step == "hue":
        out = turn_hue(image, value)
    elif step == "blur":
        side = 2 * min(_BLUR_RADIUS_PX, math.ceil(4 * value)) + 1  # taps beyond 4 sigma are less than 1e-4
        out = cv2.GaussianBlur(image, (side, side), value, borderType=cv2.BORDER_REFLECT_101)
    else:
        raise ValueError(f"{step!r} is not a colour step")
    return np.asarray(out, np.uint8)


def turn_hue(image: U8, turns: float) -> U8:
    """Hue turned in 8-bit HSV, in steps of 1/256 turn."""
    steps = round(turns * 256) % 256
    if not steps:
        return image
    turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turned[:, :, 0] += np.uint8(steps)
    return np.asarray(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def warp(image: U8, label: U8 | None, matrix: Matrix) -> Augmented:
    """Picture and label as seen through ``matrix``, which takes a pixel (x, y, 1) of the outcome to one of the input.

    A pixel that lies outside the input, or behind the horizon, is :data:`FILL`, 255 and false. Inside, the picture's
    border pixels are not mixed with the fill.
    """
    height, width = image.shape[:2]
    if np.array_equal(matrix, np.eye(3)):
        return Augmented(image, label, None, None)
    if np.array_equal(matrix, _mirror(width)):
        return Augmented(image[:, ::-1], None if label is None else label[:, ::-1], None, matrix)
    outside = nearest(np.zeros((height, width), np.uint8), matrix, IGNORE)
    ends = matrix[2] @ np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
    if ends.min() <= 0:
        columns, rows = np.arange(width), np.arange(height)[:, None]
        outside[matrix[2, 0] * columns + matrix[2, 1] * rows + matrix[2, 2] <= 0] = IGNORE
    # One replicated pixel on every side: half a pixel beyond the border still shows the border.
    framed = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = np.asarray(cv2.warpPerspective(framed, _shift(1) @ matrix, (width, height), flags=flags), np.uint8)
    cv2.copyTo(blank(height, width), outside, seen)
    if label is not None:
        label = np.maximum(nearest(label, matrix, IGNORE), outside)
    return Augmented(seen, label, outside == 0, matrix)


def blank(height: int, width: int) -> U8:
    """A picture of nothing but :data:`FILL`."""
    out = np.empty((height, width, 3), np.uint8)
    out.reshape(height, -1)[:] = np.tile(np.array(FILL, np.uint8), width)  # 50 times faster than out[:] = FILL
    return out


def _backwards(step: str, value: float, size: tuple[int, ...], corners: Numbers) -> Matrix:
    height, width = size
    if step == "flip":
        return _mirror(width)
    if step == "rotation":  # counter-clockwise about the centre, as seen, with y downwards
        turn = math.radians(value)
        cos, sin, x, y = math.cos(turn), math.sin(turn), (width - 1) / 2, (height - 1) / 2
        return np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1]])
    # Each corner of the picture (pixel 0 covers 0..1) moves inwards by up to `value` half sides.
    full = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    moved = full + (1 - 2 * full) * value / 2 * corners.reshape(4, 2)
    there, here = ((points * (width, height)).astype(np.float32) for points in (moved, full))
    return np.asarray(_shift(-0.5) @ np.linalg.inv(cv2.getPerspectiveTransform(here, there)) @ _shift(0.5))


def _mirror(width: int) -> Matrix:
    return np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])


def _shift(by_px: float) -> Matrix:
    return np.array([[1, 0, by_px], [0, 1, by_px], [0, 0, 1]])


def nearest(plane: U8, matrix: Matrix, outside: int) -> U8:
    """(H, W) uint8 as seen through ``matrix``, the same pixels as :func:`warp`'s label; ``outside`` fills the rest."""
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpPerspective(plane, matrix, plane.shape[::-1], flags=flags, borderValue=outside), np.uint8)


def _rounded(levels: npt.NDArray[Any]) -> U8:
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)
