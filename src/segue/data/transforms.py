"""What happens to a training sample on the CPU: size, scale, crop, flip, colour, augmentation, padding, in this order.

``flip`` and the colour settings are the small jitter that nearly every recipe has; ``augment`` is a block of strong
steps on top of it (``segue.data.augment``). It sees the window alone: no padding moves into the picture, and a window
that was chosen for its classes may lose some of them to a rotation.

Every draw is one number of a fixed list that comes from ``segue.ops.keys.generator(seed, stage, stream, uid)``: a
sample depends on its key only, and switching one setting on does not change what the others draw.

The label decides the window (``max_class_share``, ``rare_class``), then only as much of the picture as the window needs
is resized; label pixels are looked up straight in the file (nearest centre), never resized twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from segue.config import TransformConfig
from segue.data.augment import GREY, NUMBERS, Matrix, augment, blank, nearest, turn_hue
from segue.data.images import Size, nearest_index
from segue.data.statistics import histogram
from segue.labels import IGNORE, U8
from segue.ops.keys import generator

REDRAWS = 10
"""A crop is redrawn at most this often, then the next one is used (mmseg, DAFormer)."""

_CROP_AREA = 2 * 512**2
"""DAFormer wants half of ``min_px`` in a crop of 512x512, HRDA twice of it in one of 1024x1024."""

_MOST_TRIES = 100
_SCALE, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _CROPS = range(7)
_AUGMENT = _CROPS + 2 * (_MOST_TRIES + 1)

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
    """A sample ready to be stacked: image (H, W, 3) uint8, label (H, W) uint8, pixel (H, W) bool (None = all true).

    ``weight`` (H, W) uint8: trust in the label, None and 255 = full; 0 where there is no picture. ``warp``: the
    matrix of :func:`segue.data.augment.warp` from the sample to the window, None where they agree.
    """

    image: U8
    label: U8 | None
    pixel: npt.NDArray[np.bool_] | None
    window: Window
    warp: Matrix | None = None
    weight: U8 | None = None

    def geometry(self) -> dict[str, Any]:
        """``Meta.geometry``: that of the window and, when there is one, ``warp`` as three rows of three numbers."""
        return self.window.to_dict() | ({} if self.warp is None else {"warp": self.warp.tolist()})


def draws(*key: int | str) -> Draws:
    """The uniform numbers in [0, 1) of one sample, from its key (seed, stage, stream, uid)."""
    out: Draws = torch.rand(_AUGMENT + NUMBERS, generator=generator(*key), dtype=torch.float64).numpy()
    return out


def apply(
    image: U8,
    label: U8 | None,
    size: Size | None,
    config: TransformConfig,
    numbers: Draws,
    wanted: int | None = None,
    weight: U8 | None = None,
) -> Item:
    """Transform one sample. ``size``: (height, width) that files are resized to before ``config.scale``, or None.

    ``wanted``: train id that the crop should show (``config.rare_class``). ``weight`` (H, W) uint8 goes where the label
    goes. Label pixels of padding are 255. Without a label the first window is taken.
    """
    window = choose_window(image.shape[:2], label, size, config, numbers, wanted)
    picture = cut(image, window)
    if config.brightness or config.contrast or config.saturation or config.hue:
        picture = colour(picture, config, numbers)
    part, trust = (None if p is None else p.take(window.rows(), 0).take(window.columns(), 1) for p in (label, weight))
    shown, warp = None, None
    if config.augment is not None:
        picture, part, shown, warp = augment(picture, part, config.augment, numbers[_AUGMENT:])
        if trust is not None and warp is not None:
            trust = nearest(trust, warp, 0)
    if config.crop is None or (window.height, window.width) == tuple(config.crop):
        return Item(picture, part, shown, window, warp, trust)
    height, width = config.crop
    padded = blank(height, width)
    padded[: window.height, : window.width] = picture
    pixel = np.zeros((height, width), np.bool_)
    pixel[: window.height, : window.width] = True if shown is None else shown
    part, trust = _padded(part, (height, width), IGNORE), _padded(trust, (height, width), 0)
    return Item(padded, part, pixel, window, warp, trust)


def choose_window(
    file_size: Size,
    label: U8 | None,
    size: Size | None,
    config: TransformConfig,
    numbers: Draws,
    wanted: int | None = None,
) -> Window:
    """Scale, crop and flip of a sample.

    The crop is redrawn while one class fills more than ``max_class_share`` of its labels, or while it shows too little
    of ``wanted``. When every try fails, the last one is used; with ``wanted`` the one that shows most of it (up to what
    is asked), of equal ones the one with the least dominant class.
    """
    low, high = config.scale
    factor = low + (high - low) * float(numbers[_SCALE])
    base = file_size if size is None else size
    resized = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    flip = bool(numbers[_FLIP] < config.flip)
    if config.crop is None:
        return Window(file_size, resized, 0, 0, *resized, flip)
    height, width = min(config.crop[0], resized[0]), min(config.crop[1], resized[1])
    spare = (resized[0] - height, resized[1] - width)
    tries = 1 + (REDRAWS if wanted is None or config.rare_class is None else config.rare_class.tries)
    corners = (numbers[_CROPS : _CROPS + 2 * tries].reshape(-1, 2) * [n + 1 for n in spare]).astype(int).tolist()
    windows = [Window(file_size, resized, top, left, height, width, flip) for top, left in corners]
    if label is None or spare == (0, 0) or (wanted is None and config.max_class_share == 1):
        return windows[0]
    needed_px = -1 if wanted is None else _needed_px(config)
    fits = []
    for window in windows:
        shown_px, share = _look(label, window, wanted)
        if shown_px > needed_px and share <= config.max_class_share:
            return window
        fits.append((min(shown_px, needed_px + 1), -share))
    return windows[-1] if wanted is None else windows[fits.index(max(fits))]


def cut(image: U8, window: Window) -> U8:
    """The window of a picture (H, W, 3), resized and mirrored: the same bytes as of the whole picture resized."""
    (rows, top), (columns, left) = _span(window, 0), _span(window, 1)
    part = image[rows, columns]
    if window.resized != window.file_size:
        fy, fx = (out / size for out, size in zip(window.resized, window.file_size, strict=True))
        if abs(fy - 1) * part.shape[0] < 1 and abs(fx - 1) * part.shape[1] < 1:
            # cv2 copies what would keep its size; the whole picture does not
            part, top, left = image, window.top, window.left
        method = cv2.INTER_AREA if max(fy, fx) <= 1 else cv2.INTER_LINEAR  # as resize_image
        part = np.asarray(cv2.resize(part, None, fx=fx, fy=fy, interpolation=method), np.uint8)
    part = part[top : top + window.height, left : left + window.width]
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
        grey = brightness * float(GREY @ np.array(cv2.mean(image)[:3]))
        matrix = np.empty((3, 4))
        matrix[:, :3] = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * GREY)
        matrix[:, 3] = (1 - contrast) * grey
        image = np.asarray(cv2.transform(image, matrix), np.uint8)
    return turn_hue(image, (2 * float(numbers[_HUE]) - 1) * config.hue)


def _padded(plane: U8 | None, size: Size, fill: int) -> U8 | None:
    if plane is None:
        return None
    out = np.full(size, fill, np.uint8)
    out[: plane.shape[0], : plane.shape[1]] = plane
    return out


def _factor(spread: float, number: float) -> float:
    return max(0.0, 1 + (2 * float(number) - 1) * spread)


def _span(window: Window, axis: int) -> tuple[slice, int]:
    """The file's rows or columns that a window is made of, and how many resized ones come before the window's first."""
    size, out = window.file_size[axis], window.resized[axis]
    start, count = ((window.top, window.height), (window.left, window.width))[axis]
    # cv2 looks at (i + 1/2) * size / out - 1/2, rounded to single precision: only a part that begins where the picture
    # does repeats its roundings; where one side is 2, 4, ... times the other, there are none to repeat.
    first = 0
    if size % out == 0 and (size // out).bit_count() == 1:
        first = start
    elif out % size == 0 and (out // size).bit_count() == 1:
        first = max(0, start // (out // size) - 1) * (out // size)
    end = -(-(start + count) * size // out) + (size != out)
    return slice(first * size // out, min(size, end)), start - first


def _needed_px(config: TransformConfig) -> float:
    rare, crop = config.rare_class, config.crop
    if rare is None or crop is None:
        return -1
    return rare.min_px * crop[0] * crop[1] / _CROP_AREA if rare.crop_px is None else rare.crop_px


def _look(label: U8, window: Window, wanted: int | None) -> tuple[int, float]:
    """Pixels of ``wanted`` in a window; share of the commonest class among its labelled pixels, 1 without any."""
    count = histogram(label.take(window.rows(), 0).take(window.columns(), 1))
    total = int(count[:IGNORE].sum())
    share = float(count[:IGNORE].max() / total) if total else 1.0
    return 0 if wanted is None else int(count[wanted]), share
