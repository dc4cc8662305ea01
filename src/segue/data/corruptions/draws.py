"""What several corruptions are made of: a generator for every key, a smooth field, noise, one colour mixed in."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from statistics import NormalDist

import cv2
import numpy as np
import numpy.typing as npt

from segue.labels import U8

F32 = npt.NDArray[np.float32]
Size = tuple[int, int]

_CELLS = 4


def generator(*key: int | str) -> np.random.Generator:
    """A fresh generator for a key; equal keys draw the same on every machine."""
    return np.random.default_rng(int.from_bytes(blake2b(repr(key).encode(), digest_size=16).digest(), "little"))


def smooth_field(rng: np.random.Generator, size: Size) -> F32:
    """A smooth random field (H, W) in 0..1, about four bumps across the longer side."""
    height, width = size
    cells = (max(2, round(_CELLS * height / max(size))), max(2, round(_CELLS * width / max(size))))
    coarse = rng.random(cells, np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def add_noise(image: U8, deviation: float, rng: np.random.Generator) -> U8:
    """Add independent Gaussian noise of this standard deviation (levels of 255), at most 2.9 of them.

    With equal draws, more deviation moves no value less.
    """
    draws = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    noise = cv2.LUT(draws, np.rint(deviation * _quantiles()).astype(np.int16))
    return np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U), np.uint8)


def mix(image: U8, color: tuple[float, float, float], weight: F32) -> U8:
    """``image + weight * (color - image)``, with weights (H, W) in 0..1."""
    plain = np.empty_like(image)
    plain.reshape(len(image), -1)[:] = np.tile(np.rint(color).astype(np.uint8), image.shape[1])
    return np.asarray(cv2.blendLinear(image, plain, 1 - weight, weight), np.uint8)


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    normal = NormalDist()
    values = np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)])
    return np.asarray(values / values.std())
