"""Contact sheets: many scenes of a domain at a glance, each with its labels beneath."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from segue.data.scenes.domains import Domain
from segue.data.scenes.scene import render
from segue.labels import load_space

U8 = npt.NDArray[np.uint8]


def contact_sheet(domain: Domain, num: int = 24, seed: int = 0, size: tuple[int, int] = (256, 512)) -> U8:
    """`num` scenes from `seed` on, four to a row, each above a half-size thumbnail of its label colours (RGB)."""
    palette, columns, gap = load_space("cityscapes19").palette(), min(4, num), 4
    h, w = size
    rows = -(-num // columns)
    cell = (h + h // 2 + gap, w + gap)
    sheet = np.full((rows * cell[0], columns * cell[1], 3), 24, np.uint8)
    for k in range(num):
        scene = render(domain, seed + k, size)
        y, x = k // columns * cell[0], k % columns * cell[1]
        sheet[y : y + h, x : x + w] = scene.image
        small = cv2.resize(palette[scene.label], (w // 2, h // 2), interpolation=cv2.INTER_NEAREST)
        sheet[y + h : y + h + h // 2, x + w // 4 : x + w // 4 + w // 2] = small
    return sheet
