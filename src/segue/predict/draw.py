"""Predictions as pictures: colours, overlay, panels with titles next to each other, a legend.

Everything is drawn by cv2 at whole pixels with its own font, so the same input gives the same bytes. Void is black.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segue.labels import IGNORE, U8, LabelSpace

GAP_PX = 4
DARK, LIGHT = (32, 32, 32), (240, 240, 240)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def render(ids: U8, picture: U8, labels: LabelSpace, format: str, alpha: float = 0.5) -> U8:
    """Train ids (H, W) as what a file of that format holds: (H, W) numbers or an (H, W, 3) RGB picture.

    ``alpha``: weight of the colours over the picture, for ``overlay``.
    """
    if format == "trainid":
        return ids
    if format in ("labelid", "cityscapes"):
        return labels.to_label_ids(ids)
    colors = labels.colorize(ids)
    if format == "color":
        return colors
    out = np.asarray(cv2.addWeighted(colors, alpha, picture, 1 - alpha, 0), np.uint8)
    out[ids == IGNORE] = 0
    return out


def strip(panels: Sequence[tuple[str, U8]]) -> U8:
    """Pictures (H, W, 3) of one size next to each other, each with its title above."""
    height, width = panels[0][1].shape[:2]
    gap = np.full((height + _bar_px(width), GAP_PX, 3), LIGHT, np.uint8)
    parts: list[U8] = []
    for title, picture in panels:
        parts += [gap, np.concatenate([_bar(title, width), picture])]
    return np.concatenate(parts[1:], 1)


def with_legend(picture: U8, labels: LabelSpace) -> U8:
    """The picture with a swatch and the name of every class below it, in rows that fit its width."""
    line = _bar_px(picture.shape[1] // 3)
    scale = _scale(line)
    places: list[tuple[int, int]] = []
    left, top = GAP_PX, 0
    for name in labels.classes:
        wide = line + _width(name, scale) + 2 * GAP_PX
        if left > GAP_PX and left + wide > picture.shape[1]:
            left, top = GAP_PX, top + line
        places.append((left, top))
        left += wide
    board = np.full((top + line, picture.shape[1], 3), DARK, np.uint8)
    for name, color, (x, y) in zip(labels.classes, labels.colors, places, strict=True):
        board[y + 3 : y + line - 3, x : x + line - 6] = color
        _write(board, name, (x + line - 2, y), line, scale)
    return np.concatenate([picture, board])


def even(picture: U8) -> U8:
    """With even sides, as films need them: an odd one gets a dark row or column more."""
    height, width = picture.shape[:2]
    return fitted(picture, (height + height % 2, width + width % 2))


def fitted(picture: U8, size: tuple[int, int]) -> U8:
    """Shrunk where it is too large for (height, width), its ratio kept, and filled up with dark."""
    factor = min(1.0, size[0] / picture.shape[0], size[1] / picture.shape[1])
    if factor < 1:
        small = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
        picture = np.asarray(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), np.uint8)
    out = np.full((*size, 3), DARK, np.uint8)
    out[: picture.shape[0], : picture.shape[1]] = picture
    return out


def _bar_px(width: int) -> int:
    return max(14, min(40, width // 20))


def _bar(title: str, width: int) -> U8:
    height = _bar_px(width)
    bar = np.full((height, width, 3), DARK, np.uint8)
    # A long title gets smaller letters, so that two models with long names stay distinct.
    room = (width - 2 * GAP_PX) / max(1, _width(title, 1.0))
    _write(bar, title, (GAP_PX, 0), height, min(_scale(height), room))
    return bar


def _scale(line_px: int) -> float:
    return line_px / 40  # letters are 22 pixels high at 1.0


def _width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])


def _write(board: U8, text: str, corner: tuple[int, int], line_px: int, scale: float) -> None:
    base = corner[0], corner[1] + (line_px + round(22 * scale)) // 2
    cv2.putText(board, text, base, _FONT, scale, LIGHT, 1, cv2.LINE_AA)
