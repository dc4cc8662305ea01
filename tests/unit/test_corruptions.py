"""Corruptions: nothing at severity 0, more at every severity, nothing moves; formulas by oracles."""

from __future__ import annotations

import itertools
import subprocess
import sys

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segue.data import scenes
from segue.data.corruptions import corrupt, names
from segue.data.corruptions.camera import BLUR_SIGMA_PX
from segue.data.corruptions.weather import FOG_STRENGTH, RAIN_VEIL
from segue.data.errors import DataError
from segue.labels import U8

SEEDS = st.integers(0, 10**6)
NAMES = st.sampled_from(names())
TOWARDS_ONE_VALUE = ("fog", "night", "rain", "camera")
PIXELWISE = ("fog", "night", "rain")


@st.composite
def pictures(draw: st.DrawFn) -> U8:
    """Rectangles of any colours on a gradient, some with texture: edges, plain parts and fine detail."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    height, width = draw(st.integers(32, 80)), draw(st.integers(32, 80))
    image = np.linspace(0, 255, height)[:, None, None] * rng.random(3) + np.zeros((height, width, 3))
    for _ in range(draw(st.integers(4, 20))):
        top, left = rng.integers(0, height), rng.integers(0, width)
        part = image[top : top + rng.integers(8, height), left : left + rng.integers(8, width)]
        part[:] = rng.uniform(0, 255, 3) + rng.uniform(-30, 30, part.shape) * rng.integers(0, 2)
    return np.clip(image, 0, 255).astype(np.uint8)


def plain(level: int, size: tuple[int, int] = (64, 96)) -> U8:
    return np.full((*size, 3), level, np.uint8)


def changes(image: U8, name: str, seed: int) -> list[float]:
    return [float(np.abs(corrupt(image, name, s, seed).astype(int) - image).mean()) for s in range(6)]


def assert_ladder(image: U8, name: str, seed: int) -> None:
    ladder = changes(image, name, seed)
    assert ladder[0] == 0 and all(a < b for a, b in itertools.pairwise(ladder)), (name, ladder)


@settings(max_examples=60, deadline=None)
@given(pictures(), NAMES, SEEDS)
def test_the_change_grows_with_every_severity(image: U8, name: str, seed: int) -> None:
    before = image.copy()
    assert_ladder(image, name, seed)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("domain", ["game", "city"])
def test_the_change_grows_on_scenes_and_on_noise(name: str, domain: str) -> None:
    for seed in range(3):
        scene = scenes.render(scenes.domain(domain), seed, (64, 96)).image
        noise = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        assert_ladder(scene, name, seed)
        assert_ladder(noise, name, seed)


@pytest.mark.parametrize("name", TOWARDS_ONE_VALUE)
def test_no_pixel_goes_back(name: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for seed in range(6):
        far = np.stack([np.abs(corrupt(image, name, s, seed).astype(int) - image) for s in range(6)])
        assert (np.diff(far, axis=0) >= 0).all()


@pytest.mark.parametrize("name", TOWARDS_ONE_VALUE)
@pytest.mark.parametrize("level", [20, 128, 255])
def test_even_plain_pictures_change(name: str, level: int) -> None:
    assert_ladder(plain(level), name, 5)


@given(NAMES, SEEDS, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_severity_0_is_the_picture_and_any_size_stays(name: str, seed: int, height: int, width: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert corrupt(image, name, 0, seed).tobytes() == image.tobytes()
    for severity in (1, 5):
        out = corrupt(image, name, severity, seed)
        assert out.shape == image.shape and out.dtype == np.uint8


@settings(max_examples=20, deadline=None)
@given(pictures(), NAMES, SEEDS, st.integers(1, 5))
def test_the_outcome_depends_on_the_arguments_alone(image: U8, name: str, seed: int, severity: int) -> None:
    state = np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
    first = corrupt(image, name, severity, seed)
    view = np.asfortranarray(image)[::-1][::-1]
    assert np.array_equal(corrupt(view, name, severity, seed), first)
    assert np.random.get_state()[1].tobytes() == state  # type: ignore[union-attr]
    assert np.array_equal(corrupt(image, name, severity, seed + 1), first) == (name == "blur")


@pytest.mark.parametrize("name", names())
def test_nothing_moves(name: str) -> None:
    """Another colour in one block changes the outcome there and no farther than the lens or a block of JPEG reaches."""
    image = np.random.default_rng(2).integers(60, 200, (128, 192, 3), dtype=np.uint8)
    other = image.copy()
    other[64:80, 96:112] = 255 - other[64:80, 96:112]
    for severity in range(1, 6):
        differs = (corrupt(image, name, severity, 7) != corrupt(other, name, severity, 7)).any(axis=2)
        reach = 0 if name in PIXELWISE else 1 if name == "camera" else round(1.5 * BLUR_SIGMA_PX[severity - 1]) + 1
        rows, columns = np.nonzero(differs)
        assert differs[64:80, 96:112].mean() > 0.9
        assert (rows.min(), rows.max()) >= (64 - reach, 0) and rows.max() < 80 + reach
        assert columns.min() >= 96 - reach and columns.max() < 112 + reach


@pytest.mark.parametrize("name", names())
def test_edges_stay_where_the_label_has_them(name: str) -> None:
    image = plain(10, (96, 128))
    image[:, 64:] = 250
    for severity in range(1, 6):
        out = corrupt(image, name, severity, 4).astype(float).mean(axis=(0, 2))
        assert abs(int(np.diff(out).argmax()) - 63) <= (name == "blur")


def optical_depth(severity: int, seed: int) -> npt.NDArray[np.float64]:
    black, white = (corrupt(plain(level, (100, 160)), "fog", severity, seed).astype(float) for level in (0, 255))
    return np.asarray(-np.log((white - black) / 255).mean(axis=2))


def test_fog_follows_its_law() -> None:
    depth = np.array([optical_depth(severity, 3) for severity in (1, 3, 5)])
    far = slice(0, 45)
    ratio = depth[:, far].mean(axis=(1, 2)) / depth[0, far].mean()
    np.testing.assert_allclose(ratio, np.array(FOG_STRENGTH)[[0, 2, 4]] / FOG_STRENGTH[0], rtol=0.02)
    rows = depth[2].mean(axis=1)
    assert rows[far].mean() > 2.5 * rows[95:].mean()
    np.testing.assert_allclose(rows[99] / rows[60], (0.605 - 0.45) / (0.995 - 0.45), rtol=0.25)
    mean = np.mean([optical_depth(2, seed)[far].mean() for seed in range(60)])
    assert mean == pytest.approx(FOG_STRENGTH[1], rel=0.05)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_a_gaussian(severity: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    sigma = BLUR_SIGMA_PX[severity - 1] / 2
    wanted = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror", truncate=4)
    assert np.abs(corrupt(image, "blur", severity, 0) - wanted).max() < 3
    large = cv2.resize(image, (800, 640), interpolation=cv2.INTER_NEAREST)
    wanted = ndimage.gaussian_filter(large.astype(float), (2.5 * sigma, 2.5 * sigma, 0), mode="mirror", truncate=4)
    assert np.abs(corrupt(large, "blur", severity, 0) - wanted).max() < 3


def test_night_is_dark_and_noisy_with_a_cast() -> None:
    casts = []
    for seed in range(20):
        out = corrupt(plain(200), "night", 5, seed).astype(float)
        casts.append(out.mean(axis=(0, 1)))
        assert casts[-1].max() < 60
        assert out.std(axis=(0, 1)) == pytest.approx(8, rel=0.1)
    warm = [red > blue for red, _, blue in casts]
    assert any(warm) and not all(warm)


def test_stronger_rain_keeps_the_streaks_of_weaker_rain() -> None:
    streaks = []
    for severity, veil in enumerate(RAIN_VEIL, 1):
        out = corrupt(plain(0, (128, 128)), "rain", severity, 9)[:, :, 1].astype(float)
        streaks.append((out - out.min()) / (1 - veil))
    for weaker, stronger in itertools.pairwise(streaks):
        assert (stronger >= weaker - 2).all()  # rounding
        assert (stronger > 25).sum() > 1.2 * (weaker > 25).sum() > 60


def test_camera_turns_colours_either_way() -> None:
    tints = [corrupt(plain(128, (32, 32)), "camera", 5, seed).astype(float).mean(axis=(0, 1)) for seed in range(20)]
    warm = np.array([red - blue for red, _, blue in tints])
    light = np.array([green for _, green, _ in tints])
    assert (np.abs(warm) > 20).all() and 0 < (warm > 0).sum() < 20
    assert (np.abs(light - 128) > 10).all() and 0 < (light > 128).sum() < 20
    red = np.full((32, 32, 3), (220, 40, 60), np.uint8)
    for seed in range(20):
        channels = corrupt(red, "camera", 5, seed).astype(float).mean(axis=(0, 1))
        assert channels[0] > 1.5 * channels[1:].max()


def test_unknown_names_and_severities_are_said() -> None:
    with pytest.raises(DataError, match=r"unknown corruption 'frog'.*did you mean 'fog'.*rain"):
        corrupt(plain(0), "frog", 1, 0)
    for severity in (-1, 6, 2.5):
        with pytest.raises(DataError, match="whole number from 0 to 5"):
            corrupt(plain(0), "fog", severity, 0)  # type: ignore[arg-type]
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(TypeError, match="uint8, this one is"):
            corrupt(wrong, "fog", 1, 0)


def test_no_torch_is_loaded() -> None:
    code = "import sys, segue.data.corruptions, segue.data.buckets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
