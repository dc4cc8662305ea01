"""Per-pixel geometry: which plane each pixel lies on, its depth and its place on that plane in metres.

Arrays are flat (one entry per pixel, row by row).  Whatever depends on the surface only is worked out once per surface
and looked up, whatever depends on the row or column only once per row or column.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segue.data.scenes.build import AT, AXIS, GROUND, SIDE, SKY
from segue.data.scenes.raster import Painting, View

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]


def _safe(slope: F32) -> F32:
    """`slope` without (nearly) zeros, to divide by."""
    return np.where(np.abs(slope) < 1e-6, np.float32(1e-6), slope)


class Geometry:
    """Depth and texture coordinates (metres) of a painting seen by `view`.

    `ids` is the surface of each pixel, `rows` the numbers of each surface; `ground`, `side` and `sky` mark planes;
    `s` and `t` are coordinates on the surface, `up` is the height above the road; `rx` and `ry` are the slopes of the
    view rays by column and by row.
    """

    def __init__(self, view: View, painting: Painting) -> None:
        self.view, self.painting = view, painting
        self.rows = painting.rows.astype(np.float32)
        self.ids: Index = painting.surface.ravel().astype(np.intp)
        axis = self.rows[:, AXIS].astype(np.int8)
        self.on_ground, self.on_side = axis == GROUND, axis == SIDE
        pixel_axis = axis.take(self.ids)
        self.ground, self.side, self.sky = pixel_axis == GROUND, pixel_axis == SIDE, pixel_axis == SKY
        focal = np.float32(view.focal)
        self.rx: F32 = (np.arange(view.width, dtype=np.float32) + np.float32(0.5 - view.u0)) / focal
        self.ry: F32 = (np.float32(view.v0 - 0.5) - np.arange(view.height, dtype=np.float32)) / focal
        self._solve()

    def look_up(self, values: F32) -> F32:
        """The value of each pixel's surface."""
        return values.take(self.ids)

    def picture(self, flat: F32) -> F32:
        """A flat array as rows and columns (a view)."""
        return flat.reshape(self.view.height, self.view.width)

    def _solve(self) -> None:
        ground, side = (m.reshape(self.view.height, self.view.width) for m in (self.ground, self.side))
        camera = np.float32(self.view.camera_m)
        at, rx, ry = self.rows[:, AT], self.rx, self.ry[:, None]
        rise = np.ones(ground.shape, np.float32)
        np.copyto(rise, _safe(ry), where=ground)
        np.copyto(rise, _safe(rx), where=side)
        self.depth = self.look_up(np.where(self.on_ground, at - camera, at))
        self.depth /= rise.ravel()
        np.maximum(self.depth, self.look_up(self.painting.near), out=self.depth)
        np.minimum(self.depth, self.look_up(self.painting.far), out=self.depth)
        depth = self.picture(self.depth)
        up = ry * depth
        up += camera
        self.up: F32 = up.ravel()
        self.s: F32 = (rx * depth).ravel()
        np.copyto(self.s, self.depth, where=self.side)
        self.t = self.up.copy()
        np.copyto(self.t, self.depth, where=self.ground)

    def footprint(self) -> F32:
        """Metres a pixel covers across its surface; stretched where the surface recedes."""
        distance = np.where(self.on_side, np.maximum(np.abs(self.rows[:, AT]), np.float32(1)), np.float32(np.inf))
        stretch = self.depth / self.look_up(distance)
        np.copyto(stretch, self.depth * np.float32(0.35), where=self.ground)
        np.maximum(stretch, np.float32(1), out=stretch)
        stretch *= self.depth
        stretch /= np.float32(self.view.focal)
        return stretch
