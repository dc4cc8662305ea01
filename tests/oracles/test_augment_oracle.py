"""Every augmentation step, and every policy as a whole, against torchvision on pictures in 0..1."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from helpers.miniatures import picture
from segue.data.augment import FILL, NUMBERS, Augmented, augment, recolour
from segue.labels import IGNORE, U8
from segue.policies import POLICIES, AugmentConfig, AugmentStep

Step = Callable[[Tensor, float], Tensor]

COLOUR: dict[str, Step] = {
    "contrast": oracle.adjust_contrast,
    "saturation": oracle.adjust_saturation,
    "brightness": oracle.adjust_brightness,
    "hue": oracle.adjust_hue,
    "solarize": oracle.solarize,
    "blur": lambda x, sigma: oracle.gaussian_blur(x, [15, 15], [sigma, sigma]),
    "grayscale": lambda x, _: oracle.rgb_to_grayscale(x, 3),
}
VALUES = {
    "contrast": (0.0, 0.3, 1.0, 2.0, 6.0, 20.0),
    "saturation": (0.0, 0.3, 1.0, 4.0, 20.0),
    "brightness": (0.0, 0.3, 1.0, 3.0, 20.0),
    "hue": (-0.5, -0.3, 0.05, 0.3),
    "solarize": (0.0, 0.2, 0.4, 0.7, 1.0),
    "blur": (0.1, 0.3, 0.7, 2.0, 5.0),
    "grayscale": (0.0,),
}
SIDES = st.tuples(st.integers(12, 70), st.integers(12, 70))


def as_float(image: U8) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


def levels(x: Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy() * 255


def noise(seed: int, size: tuple[int, int] = (40, 60)) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("step", "value"), [(step, value) for step, row in VALUES.items() for value in row])
@pytest.mark.parametrize("make", [noise, picture])
def test_a_colour_step_is_torchvisions_to_the_rounding(step: str, value: float, make: Callable[[int], U8]) -> None:
    image = make(0)
    difference = np.abs(recolour(image, step, value) - levels(COLOUR[step](as_float(image), value)))
    # One rounding; fixed-point sums have one more, torchvision's weight of red is 0.2989, and 8-bit HSV moves in steps
    # of 1/256 turn, 6 levels of a pure colour.
    bounds = {"hue": (11.0, 1.2), "blur": (1.5, 0.4), "saturation": (1.0, 0.3), "contrast": (1.0, 0.5)}
    most, mean = bounds.get(step, (0.55, 0.3))
    assert difference.max() <= most and difference.mean() <= mean


def test_solarize_inverts_from_the_threshold_on() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    got = recolour(image, "solarize", 0.4)[0, :, 0].tolist()
    assert got == [*range(102), *(255 - v for v in range(102, 256))], "0.4 of 255 is 102, and it is inverted"


def drawn(config: AugmentConfig, numbers: np.ndarray) -> list[tuple[str, float, np.ndarray]]:
    """Name, value and corners of every step, from the documented places of the numbers."""
    rows = numbers[1:].reshape(-1, 10)
    ranges = [step.range or (0.0, 0.0) for step in config.steps]
    return [
        (step.name, low + (high - low) * row[1], row[2:])
        for step, row, (low, high) in zip(config.steps, rows, ranges, strict=False)
    ]


def geometry(x: Tensor, step: str, value: float, corners: np.ndarray, mode: InterpolationMode) -> Tensor:
    """torchvision's step; its fill marks what lies outside."""
    height, width = x.shape[-2:]
    if step == "flip":
        return oracle.horizontal_flip(x)
    if step == "rotation":
        return oracle.rotate(x, value, interpolation=mode, fill=-1.0)
    there = [(a * width, b * height) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
    inwards = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    here = [
        (x0 + sx * value * width / 2 * u, y0 + sy * value * height / 2 * v)
        for (x0, y0), (sx, sy), (u, v) in zip(there, inwards, corners.reshape(4, 2), strict=True)
    ]
    return oracle.perspective(x, there, here, interpolation=mode, fill=-1.0)


def interior(got: Augmented) -> np.ndarray:
    """Pixels more than two from the picture's edge, into which torchvision mixes its fill."""
    shown = np.ones(got.image.shape[:2], np.uint8) if got.pixel is None else got.pixel.view(np.uint8)
    eroded = cv2.erode(shown, np.ones((5, 5)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(eroded > 0)


@settings(max_examples=60, deadline=None)
@given(
    step=st.sampled_from([("rotation", (-180.0, 180.0)), ("perspective", (0.1, 0.6)), ("flip", None)]),
    size=SIDES,
    seed=st.integers(0, 10**6),
)
def test_a_geometric_step_is_torchvisions(
    step: tuple[str, tuple[float, float] | None], size: tuple[int, int], seed: int
) -> None:
    config = AugmentConfig(steps=(AugmentStep(name=step[0], range=step[1]),), probability=1.0)
    numbers = np.random.default_rng(seed).random(NUMBERS)
    image, label = picture(seed, size), np.random.default_rng(seed).integers(0, 19, size, dtype=np.uint8)
    got = augment(image, label, config, numbers)
    ((name, value, corners),) = drawn(config, numbers)
    assert got.label is not None
    expected = geometry(torch.from_numpy(label)[None].double(), name, value, corners, InterpolationMode.NEAREST)[0]
    wanted = torch.where(expected < 0, IGNORE, expected).numpy()
    assert (got.label != wanted).mean() <= 0.01, "all but a tie of two pixels here and there"
    shown = levels(geometry(as_float(image), name, value, corners, InterpolationMode.BILINEAR))
    assert np.abs(got.image - shown)[interior(got)].max(initial=0) <= 1.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_its_steps_in_torchvision(policy: str, seed: int) -> None:
    config = AugmentConfig.model_validate({"steps": policy, "probability": 1.0})
    numbers = np.random.default_rng(seed).random(NUMBERS)
    image = picture(seed, (64, 96))
    got = augment(image, None, config, numbers)
    x = as_float(image)
    for name, value, corners in drawn(config, numbers):
        step = COLOUR.get(name)
        x = geometry(x, name, value, corners, InterpolationMode.BILINEAR) if step is None else step(x, value)
    inside = interior(got)
    assert inside.mean() > 0.1
    difference = np.abs(got.image - levels(x))[inside]
    # a rounding before a saturation of at most 4 grows to at most 3.5 levels
    assert difference.max() <= {"C-S-HF": 4.5, "H-RP-HF": 11.0}.get(policy, 2.0) and difference.mean() < 1.2
    if got.pixel is not None:
        assert (got.image[~got.pixel] == FILL).all()
