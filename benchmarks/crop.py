"""How much faster a resized crop is than the same crop of the whole resized picture, in interleaved pairs.

``python benchmarks/crop.py`` takes the published training sizes with crops at random places, asserts equal bytes, and
prints the ratio; the bar is 1 for its median: no size may become slower. It writes docs/results/crop.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from common import paired, record, wall

from segue.data.images import resize_image
from segue.data.transforms import Window, cut

BAR = 1.0
CASES = (  # file, resized, crop: GTA5 of DAFormer and HRDA, Cityscapes at half and full size and twice of it
    ((1052, 1914), (704, 1280), (512, 512)),
    ((1052, 1914), (1407, 2560), (1024, 1024)),
    ((1052, 1914), (1407, 2560), (512, 512)),
    ((1024, 2048), (512, 1024), (512, 512)),
    ((1024, 2048), (1229, 2458), (512, 512)),
    ((1024, 2048), (2048, 4096), (512, 512)),
)
WINDOWS = 24


def whole(image: np.ndarray, w: Window) -> np.ndarray:
    """The picture resized, then cropped."""
    return resize_image(image, w.resized)[w.top : w.top + w.height, w.left : w.left + w.width]


def every(form: Callable[[np.ndarray, Window], np.ndarray], image: np.ndarray, windows: list[Window]) -> None:
    """One form of the crop at all windows."""
    for window in windows:
        form(image, window)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for size, resized, crop in CASES:
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        corners = [[int(rng.integers(0, resized[i] - crop[i] + 1)) for i in (0, 1)] for _ in range(WINDOWS)]
        windows = [Window(size, resized, top, left, *crop) for top, left in corners]
        assert all(np.array_equal(cut(image, w), whole(image, w)) for w in windows)
        row = paired(
            partial(every, whole, image, windows),
            partial(every, cut, image, windows),
            arguments.pairs,
            wall,
        )
        rows.append({"size": size, "resized": resized, "crop": crop, "windows": WINDOWS, **row})
        print(f"{size} -> {resized}, crop {crop}: ratio {row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]")
    record("crop", BAR, rows)
    return 0 if all(row["ratio_median"] >= BAR for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
