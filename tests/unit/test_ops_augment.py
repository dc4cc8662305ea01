"""Strong augmentation: whose randomness, how often, and what stays untouched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from segue.ops.augment import StrongConfig, blur, strong
from segue.ops.keys import generator


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 20, generator=torch.Generator().manual_seed(seed))


def keys(n: int) -> list[torch.Generator]:
    return [generator("augment", i) for i in range(n)]


def test_an_image_owns_its_draws_and_the_input_is_kept() -> None:
    image = images(6)
    before = image.clone()
    together = strong(image, keys(6), StrongConfig())
    assert torch.equal(image, before)
    assert together.min() >= 0 and together.max() <= 1
    for i in range(6):
        torch.testing.assert_close(strong(image[i : i + 1], [keys(6)[i]], StrongConfig()), together[i : i + 1])


def test_coins_fall_as_often_as_they_say() -> None:
    image = images(1).expand(300, -1, -1, -1)
    jittered = strong(image, keys(300), StrongConfig(blur_probability=0))
    blurred = strong(image, keys(300), StrongConfig(jitter_probability=0))
    share = [((x - image).abs().amax((1, 2, 3)) > 0).float().mean().item() for x in (jittered, blurred)]
    assert share[0] == pytest.approx(0.8, abs=0.07) and share[1] == pytest.approx(0.5, abs=0.09)
    off = strong(image, keys(300), StrongConfig(jitter_probability=0, blur_probability=0))
    assert torch.equal(off, image)


def test_blur_does_not_depend_on_the_jitters_settings() -> None:
    flat = torch.full((8, 3, 16, 20), 0.5)
    flat[:, :, 8, 10] = 1
    a = strong(flat, keys(8), StrongConfig(jitter_probability=0, blur_probability=1))
    b = strong(flat, keys(8), StrongConfig(jitter_probability=1, jitter_strength=0, blur_probability=1))
    assert torch.equal(a, b)
    peaks = a[:, 0, 8, 10]
    assert peaks.unique().numel() == 8  # one sigma an image
    torch.testing.assert_close(a.mean((2, 3)), flat.mean((2, 3)))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="generators"):
        strong(images(2), keys(1), StrongConfig())
    with pytest.raises(ValueError, match="too small"):
        blur(torch.rand(1, 3, 5, 9), torch.ones(1), 5)
    with pytest.raises(ValidationError, match="ascending"):
        StrongConfig(blur_sigma_px=(2.0, 1.0))


def test_importing_ops_does_not_import_kornia() -> None:
    modules = ", ".join(f"segue.ops.{name}" for name in ("augment", "detail", "fourier", "losses", "mixing", "resize"))
    code = f"import sys, {modules}; assert 'kornia' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
