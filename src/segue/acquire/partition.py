"""What can be bought in an image: superpixels, the whole image, or small windows where a score is high.

Each makes a region map (H, W) int32, ids from 0, -1 where nothing is for sale; statistics are pooled over it.
Superpixels come from their file, whatever made it. Windows do not overlap: the best centre first, and none within
``suppress_px`` of it in either direction after that (RIPU, Xie et al., CVPR 2022). A window's id is the place of its
centre, y W + x, so it means the same in every round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from segue.acquire.table import I32, I64
from segue.errors import UserError
from segue.labels import U8
from segue.settings import Settings

CHUNK = 4096


class Maps(TypedDict, total=False):
    """What a partition may need of an image, all (H, W)."""

    superpixels: npt.NDArray[np.integer] | None
    score: npt.NDArray[np.floating] | None
    labelled: npt.NDArray[np.bool_] | None
    """What was bought before."""


class Partition(Settings, ABC):
    """Base of the three."""

    @abstractmethod
    def regions(self, size: tuple[int, int], **maps: Unpack[Maps]) -> I32:
        """Region map of an image of that size."""


class Superpixels(Partition):
    """The map of the image's file."""

    name: Literal["superpixels"] = "superpixels"

    def regions(self, size: tuple[int, int], **maps: Unpack[Maps]) -> I32:
        """The file's ids."""
        superpixels = maps.get("superpixels")
        if superpixels is None or superpixels.shape != size:
            has = "has no superpixels" if superpixels is None else f"has superpixels of size {superpixels.shape}"
            raise UserError(f"an image of size {size} {has}: make them with `segue data regions`")
        return superpixels.astype(np.int32)


class WholeImage(Partition):
    """One region, id 0."""

    name: Literal["image"] = "image"

    def regions(self, size: tuple[int, int], **maps: Unpack[Maps]) -> I32:
        """All zeros."""
        return np.zeros(size, np.int32)


class Windows(Partition):
    """Squares of side 2 ``label_px`` + 1, best score first, that do not overlap."""

    name: Literal["windows"] = "windows"
    radius_px: int = Field(1, ge=0)
    """k: radius of the window that is scored (RIPU: 1 for regions, 32 for pixels)."""
    label_px: int | None = Field(None, ge=0)
    """Radius of what is labelled; null: the same, 0: one pixel."""
    suppress_px: int | None = Field(None, ge=0)
    """No other centre within this distance; null: 2 k."""
    most: int | None = Field(None, ge=1)
    """Windows an image; null: all that fit."""

    def regions(self, size: tuple[int, int], **maps: Unpack[Maps]) -> I32:
        """Windows of an image by its ``score``."""
        score = maps.get("score")
        if score is None or score.shape != size:
            raise UserError(f"windows of an image of size {size} need a score of that size")
        label_px = self.radius_px if self.label_px is None else self.label_px
        return self.around(size, self._centres(score, label_px, maps.get("labelled")))

    def around(self, size: tuple[int, int], centres: Sequence[int]) -> I32:
        """Region map (H, W) of windows by their ids, -1 elsewhere."""
        label_px = self.radius_px if self.label_px is None else self.label_px
        out = np.full(size, -1, np.int32)
        for centre in centres:
            y, x = divmod(centre, size[1])
            out[max(y - label_px, 0) : y + label_px + 1, max(x - label_px, 0) : x + label_px + 1] = centre
        return out

    def _centres(
        self, score: npt.NDArray[np.floating], label_px: int, labelled: npt.NDArray[np.bool_] | None
    ) -> list[int]:
        reach = max(2 * self.radius_px if self.suppress_px is None else self.suppress_px, 2 * label_px)
        closed: U8 = np.zeros(score.shape, np.uint8)
        if labelled is not None:  # windows of earlier rounds suppress as if they were chosen now
            side = 2 * (reach - label_px) + 1
            closed[:] = cv2.dilate(labelled.astype(np.uint8), np.ones((side, side), np.uint8))
        chosen: list[int] = []
        order: I64 = np.argsort(-score.ravel(), kind="stable")
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            for centre in chunk[closed.ravel()[chunk] == 0].tolist():
                y, x = divmod(centre, score.shape[1])
                if closed[y, x]:
                    continue
                if len(chosen) == self.most:
                    return chosen
                chosen.append(centre)
                closed[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = 1
        return chosen
