"""Jitter against Python's colorsys, blur against the published dense kernel."""

from __future__ import annotations

import colorsys
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segue.ops.augment import blur, jitter

Pixel = tuple[float, float, float]


def published_kernel_side(side_px: int) -> int:
    """Side of the published dense kernel for an image side: floor(ceil(n/10) - 0.5 + ceil(n/10) mod 2), always odd."""
    tenth = math.ceil(0.1 * side_px)
    return math.floor(tenth - 0.5 + tenth % 2)


def one_step(rgb: Pixel, k: int, shift: float) -> Pixel:
    if k == 0:
        moved = [v + shift for v in rgb]
    elif k == 1:
        moved = [v * (1 + shift) for v in rgb]
    else:
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        h, s = (h, min(s * (1 + shift), 1)) if k == 2 else ((h + shift) % 1, s)
        moved = list(colorsys.hsv_to_rgb(h, s, v))
    r, g, b = (min(max(v, 0.0), 1.0) for v in moved)
    return r, g, b


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
@pytest.mark.parametrize("shifts", [(0.2, -0.2, 0.2, -0.2), (-0.13, 0.17, -0.2, 0.2), (0.0, 0.0, 0.0, 0.0)])
def test_jitter_equals_the_definition(order: tuple[int, ...], shifts: tuple[float, ...]) -> None:
    image = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[:, 0, 0], image[:, 0, 1], image[:, 0, 2] = 0, 1, 0.4  # grey has no hue
    want = np.zeros((3, 6, 7))
    for y, x in np.ndindex(6, 7):
        rgb: Pixel = tuple(image[:, y, x].tolist())
        for k in order:
            rgb = one_step(rgb, k, shifts[k])
        want[:, y, x] = rgb
    np.testing.assert_allclose(jitter(image, shifts, order).numpy(), want, atol=1e-6)


@pytest.mark.parametrize(("side", "kernel"), [(512, 51), (1024, 103), (256, 25), (768, 77)])
def test_published_kernel_sides(side: int, kernel: int) -> None:
    assert published_kernel_side(side) == kernel


@pytest.mark.parametrize("sigma", [0.15, 0.6, 1.15])
def test_blur_equals_the_dense_published_kernel(sigma: float) -> None:
    side = published_kernel_side(512)
    image = (torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    d = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(d**2) / (2 * sigma**2))
    dense = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(image, (side // 2,) * 4, mode="reflect").double().view(6, 1, 64 + side - 1, 96 + side - 1)
    want = F.conv2d(padded, dense[None, None]).view(2, 3, 64, 96)
    got = blur(image, torch.tensor([sigma, sigma]), 5)
    assert (got - want).abs().max() < 1e-4
    assert sigma < 0.2 or (got - image).abs().max() > 0.05
