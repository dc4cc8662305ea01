"""What labelling costs a person, so that pixel, region and image methods stand on one axis.

A region is clicked round its boundary and given its class with one more click: clicks = vertices of the boundary, holes
included, after simplification to ``tolerance_px`` (Douglas and Peucker, 1973), plus 1. Colling et al., "MetaBox+",
2020, and Mackowiak et al., "CEREALS", BMVC 2018, count in clicks like this. A single pixel has no boundary to draw: one
click.

Time: a click takes ``seconds_per_click``, 2.4 s by default, the median for a point on an object in Bearman et al.,
"What's the Point: Semantic Segmentation with Point Supervision", ECCV 2016. It is not measured here, and vertices along
one boundary may be faster: time your own people. To compare: a fine label of a whole Cityscapes image took more than
1.5 h, quality control included (Cordts et al., CVPR 2016).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from segue.acquire.table import I64
from segue.labels import U8
from segue.settings import Settings

TOLERANCE_PX = 2.0


class CostModel(Settings):
    """From boundary vertices to clicks and minutes."""

    seconds_per_click: float = Field(2.4, gt=0)
    """Bearman et al., ECCV 2016; see the module."""
    seconds_per_region: float = Field(0.0, ge=0)
    """To find and show the next region; 0: only clicks count."""

    def clicks(self, vertices: npt.NDArray[np.integer]) -> I64:
        """(N,) clicks of regions with that many boundary vertices; one vertex or none is a point, one click."""
        return np.where(vertices > 1, vertices + 1, 1).astype(np.int64)

    def clicks_of(self, parts: npt.NDArray[np.integer], number: int) -> list[int]:
        """Clicks of the regions 1 … ``number`` of a map (H, W) whose 0 is no region."""
        vertices = region_vertices(np.where(parts > 0, parts, -1).astype(np.int32))
        counted: list[int] = self.clicks(np.array([vertices[k] for k in range(1, number + 1)])).tolist()
        return counted

    def minutes(self, clicks: int, regions: int) -> float:
        """Time for so many regions with so many clicks together."""
        return (clicks * self.seconds_per_click + regions * self.seconds_per_region) / 60


def boundary_vertices(mask: npt.NDArray[np.bool_], tolerance_px: float = TOLERANCE_PX) -> int:
    """Vertices of all boundaries of a region (H, W) after simplification; 0 for an empty mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return sum(len(cv2.approxPolyDP(contour, tolerance_px, True)) for contour in contours)


def region_vertices(regions: npt.NDArray[np.integer], tolerance_px: float = TOLERANCE_PX) -> dict[int, int]:
    """Vertices of every region of a map (H, W) by its id; negative ids are no region."""
    flat = regions.ravel()
    order = np.argsort(flat, kind="stable")
    ids, starts = np.unique(flat[order], return_index=True)
    out = {}
    for name, pixels in zip(ids.tolist(), np.split(order, starts[1:]), strict=True):
        if name < 0:
            continue
        y, x = np.divmod(pixels, regions.shape[1])
        mask: U8 = np.zeros((y.max() - y.min() + 1, x.max() - x.min() + 1), np.uint8)
        mask[y - y.min(), x - x.min()] = 1
        out[name] = boundary_vertices(mask.astype(bool), tolerance_px)
    return out
