"""What happens to a training sample on the CPU: size, scale, crop, flip, colour, padding, in this order.

Every draw is one number of a fixed list that comes from ``segue.ops.keys.generator(seed, stage, stream, uid)``: a
sample depends on its key only, and switching one setting on does not change what the others draw.

The label decides the window (``max_class_share``), then only the window of the picture is touched; label pixels are
looked up straight in the file (nearest centre), never resized twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from segue.config import TransformConfig
from segue.data.images import Size, nearest_index, resize_image
from segue.labels import IGNORE, U8
from segue.ops.keys import generator

FILL = (124, 116, 104)
"""Colour of padding: the ImageNet mean, 0 after the usual normalisation. Such pixels enter no loss."""

REDRAWS = 10
"""A crop is redrawn at most this often, then the next one is used (mmseg, DAFormer)."""

_SCALE, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _CROPS = range(7)
_GREY = np.array([0.299, 0.587, 0.114])

Draws = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The part of a file that a sample shows.

    The file (``file_size``) is resized to ``resized``; of that, ``height`` x ``width`` pixels from (``top``, ``left``)
    are taken, mirrored when ``flip``, and stand at the top left of the sample; the rest of the sample is padding.
    """

    file_size: Size
    resized: Size
    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def rows(self) -> npt.NDArray[np.intp]:
        """File row under each row of the sample."""
        return nearest_index(self.file_size[0], self.resized[0], self.top, self.height)

    def columns(self) -> npt.NDArray[np.intp]:
        """File column under each column of the sample."""
        columns = nearest_index(self.file_size[1], self.resized[1], self.left, self.width)
        return columns[::-1] if self.flip else columns

    def to_dict(self) -> dict[str, Any]:
        """``Meta.geometry``: resized (h, w), window (top, left, height, width), flip."""
        window = (self.top, self.left, self.height, self.width)
        return {"resized": self.resized, "window": window, "flip": self.flip}


@dataclass(frozen=True)
class Item:
    """A sample ready to be stacked: image (H, W, 3) uint8, label (H, W) uint8, pixel (H, W) bool (None = all true)."""

    image: U8
    label: U8 | None
    pixel: npt.NDArray[np.bool_] | None
    window: Window


def draws(*key: int | str) -> Draws:
    """The uniform numbers in [0, 1) of one sample, from its key (seed, stage, stream, uid)."""
    out: Draws = torch.rand(_CROPS + 2 * (REDRAWS + 1), generator=generator(*key), dtype=torch.float64).numpy()
    return out


def apply(image: U8, label: U8 | None, size: Size | None, config: TransformConfig, numbers: Draws) -> Item:
    """Transform one sample. ``size``: (height, width) that files are resized to before ``config.scale``, or None.

    Label pixels of padding are 255. Without a label the first window is taken.
    """
    window = choose_window(image.shape[:2], label, size, config, numbers)
    picture = cut(image, window)
    if config.brightness or config.contrast or config.saturation or config.hue:
        picture = colour(picture, config, numbers)
    part = None if label is None else label.take(window.rows(), 0).take(window.columns(), 1)
    if config.crop is None or (window.height, window.width) == tuple(config.crop):
        return Item(picture, part, None, window)
    height, width = config.crop
    padded = np.empty((height, width, 3), np.uint8)
    padded[:] = FILL
    padded[: window.height, : window.width] = picture
    pixel = np.zeros((height, width), np.bool_)
    pixel[: window.height, : window.width] = True
    if part is not None:
        full = np.full((height, width), IGNORE, np.uint8)
        full[: window.height, : window.width] = part
        part = full
    return Item(padded, part, pixel, window)


def choose_window(
    file_size: Size, label: U8 | None, size: Size | None, config: TransformConfig, numbers: Draws
) -> Window:
    """Scale, crop and flip of a sample; redrawn while one class fills more than ``max_class_share`` of the labels."""
    low, high = config.scale
    factor = low + (high - low) * float(numbers[_SCALE])
    base = file_size if size is None else size
    resized = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    flip = bool(numbers[_FLIP] < config.flip)
    if config.crop is None:
        return Window(file_size, resized, 0, 0, *resized, flip)
    height, width = min(config.crop[0], resized[0]), min(config.crop[1], resized[1])
    spare = (resized[0] - height, resized[1] - width)
    limited = label is not None and config.max_class_share < 1 and spare != (0, 0)
    for attempt in range(REDRAWS + 1):
        u, v = numbers[_CROPS + 2 * attempt : _CROPS + 2 * attempt + 2]
        top, left = int(u * (spare[0] + 1)), int(v * (spare[1] + 1))
        window = Window(file_size, resized, top, left, height, width, flip)
        if not limited or label is None or _largest_share(label, window) <= config.max_class_share:
            break
    return window


def cut(image: U8, window: Window) -> U8:
    """The window of a picture (H, W, 3), resized and mirrored."""
    resized = resize_image(image, window.resized)
    rows = slice(window.top, window.top + window.height)
    part = resized[rows, window.left : window.left + window.width]
    return part[:, ::-1] if window.flip else part


def colour(image: U8, config: TransformConfig, numbers: Draws) -> U8:
    """Brightness, contrast, saturation, then hue of an (H, W, 3) uint8 RGB picture.

    The definitions are those of torchvision's ``adjust_*`` functions. The first three are linear, so they are one 3x4
    matrix and one rounding, without torchvision's clamping in between. Hue turns in 8-bit HSV, in steps of 1/256.
    """
    brightness = _factor(config.brightness, numbers[_BRIGHTNESS])
    contrast = _factor(config.contrast, numbers[_CONTRAST])
    saturation = _factor(config.saturation, numbers[_SATURATION])
    image = np.ascontiguousarray(image)
    if (brightness, contrast, saturation) != (1.0, 1.0, 1.0):
        grey = brightness * float(_GREY @ np.array(cv2.mean(image)[:3]))
        matrix = np.empty((3, 4))
        matrix[:, :3] = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * _GREY)
        matrix[:, 3] = (1 - contrast) * grey
        image = np.asarray(cv2.transform(image, matrix), np.uint8)
    steps = round((2 * float(numbers[_HUE]) - 1) * config.hue * 256) % 256
    if steps:
        turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        turned[:, :, 0] += np.uint8(steps)
        image = np.asarray(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL), np.uint8)
    return image


def _factor(spread: float, number: float) -> float:
    return max(0.0, 1 + (2 * float(number) - 1) * spread)


def _largest_share(label: U8, window: Window) -> float:
    """Share of the commonest class among the labelled pixels of a window; 1 when there are none."""
    part = label.take(window.rows(), 0).take(window.columns(), 1)
    count = np.bincount(part.ravel(), minlength=256)[:IGNORE]
    total = int(count.sum())
    return float(count.max() / total) if total else 1.0
