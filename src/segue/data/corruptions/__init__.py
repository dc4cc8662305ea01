"""Five severities of fog, night, rain, blur and camera processing for any labelled image: a known ladder of drift.

Five severities of corruptions that a network was not trained on are the idea of Hendrycks and Dietterich
("Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019); kinds, formulas and
numbers are our own, chosen so that the ladder holds: severity 0 is the picture itself, and the mean absolute change
grows with every severity. Nothing moves, so the label of the picture stays its label.

Knobs that matter: the severity, and the seed: equal seeds give the five severities one colour, one direction and one
noise, so that they differ in strength alone. What each kind is and is not: :mod:`weather`, :mod:`camera`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from segue.data.corruptions.camera import blur, camera, night
from segue.data.corruptions.draws import generator
from segue.data.corruptions.weather import fog, rain
from segue.data.errors import DataError
from segue.labels import U8, nearest

MOST_SEVERE = 5

_CORRUPTIONS: Mapping[str, Callable[[U8, int, np.random.Generator], U8]] = {
    "fog": fog,
    "night": night,
    "rain": rain,
    "blur": blur,
    "camera": camera,
}


def names() -> tuple[str, ...]:
    """The kinds of corruption."""
    return tuple(_CORRUPTIONS)


def corrupt(image: U8, name: str, severity: int, seed: int) -> U8:
    """An (H, W, 3) uint8 RGB picture under one corruption, severity 0 (the picture, unchanged) to 5.

    Depends on its arguments alone; give every image of a set a seed of its own. ``DataError`` for an unknown name or
    severity, ``TypeError`` for pictures of any other type.
    """
    if name not in _CORRUPTIONS:
        raise DataError(f"unknown corruption {name!r}{nearest(name, names())}")
    if severity not in range(MOST_SEVERE + 1):
        raise DataError(f"severity of {name!r} must be a whole number from 0 to {MOST_SEVERE}, it is {severity!r}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"pictures are corrupted as (H, W, 3) uint8, this one is {image.shape} {image.dtype}")
    if not severity or not image.size:
        return image
    return _CORRUPTIONS[name](np.ascontiguousarray(image), int(severity), generator("corruption", name, int(seed)))
