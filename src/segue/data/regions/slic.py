"""Superpixels of one image: SLIC (Achanta et al., PAMI 2012) of ``cv2.ximgproc``, the only place that touches it.

Clusters start on a grid of step S = sqrt(H W / K), see pixels within S, and compare d = colour^2 + (m / S)^2 position^2
in CIELAB (OpenCV's 8-bit form): K is ``number``, m ``compactness``; two knobs, ten iterations. Of the connected pieces
the K largest stay, as in D2ADA's variant (``fast-slic``, which takes L1 distances instead): never more than K regions,
seldom fewer. Equal pixels give equal regions, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from segue.data.errors import DataError
from segue.labels import U8
from segue.settings import Settings

MAX_REGIONS = 2**16
"""What 16-bit files can number."""
ITERATIONS = 10
_SMALLEST_PERCENT = 1  # of the mean area: crumbs that OpenCV joins to a neighbour while it finds connected pieces

U16: TypeAlias = npt.NDArray[np.uint16]


class SuperpixelConfig(Settings):
    """Settings of superpixels."""

    number: int = Field(40, ge=1, le=MAX_REGIONS)
    """Regions of an image at most (40 in D2ADA); it may fall into fewer."""
    compactness: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Weight of position against colour (10 in D2ADA); larger is squarer."""


def superpixels(image: U8, config: SuperpixelConfig) -> U16:
    """(H, W, 3) RGB to (H, W) region ids, contiguous from 0 in the order of their first pixels, each in one piece.

    ``DataError`` when the installed cv2 cannot do it.
    """
    slic = _slic()
    step = max(1, round((image.shape[0] * image.shape[1] / config.number) ** 0.5))
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    found = slic.createSuperpixelSLIC(lab, slic.SLIC, step, config.compactness)
    found.iterate(ITERATIONS)
    found.enforceLabelConnectivity(_SMALLEST_PERCENT)
    return largest(np.asarray(found.getLabels()), config.number)


def largest(pieces: npt.NDArray[Any], number: int) -> U16:
    """Keep the ``number`` largest pieces of (H, W), every other one joins what is left of its first pixel, or above it.

    A piece is one connected patch with a label of its own. The piece of the first pixel always stays. Ids are
    contiguous from 0 in the order of first pixels.
    """
    _, first, inverse, area = np.unique(pieces, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    first, area = first[order], area[order]
    ids = np.argsort(order)[inverse.ravel()]
    area[0] = pieces.size
    kept = np.zeros(len(first), np.bool_)
    kept[np.argsort(-area, kind="stable")[:number]] = True
    target = np.cumsum(kept) - 1
    for dropped in np.flatnonzero(~kept):  # the neighbour comes earlier, so it is known where that one goes
        at = first[dropped]
        target[dropped] = target[ids[at - 1 if at % pieces.shape[1] else at - pieces.shape[1]]]
    return target.astype(np.uint16)[ids].reshape(pieces.shape)


def _slic() -> Any:
    found = getattr(cv2, "ximgproc", None)
    if not hasattr(found, "createSuperpixelSLIC"):
        raise DataError(
            f"superpixels need cv2.ximgproc, and the cv2 {cv2.__version__} in use has none: opencv-python and "
            "opencv-contrib-python overwrite each other, so keep one. pip uninstall -y opencv-python "
            "opencv-python-headless opencv-contrib-python opencv-contrib-python-headless; pip install "
            "opencv-contrib-python-headless"
        )
    return found
