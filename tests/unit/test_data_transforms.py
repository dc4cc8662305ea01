"""Geometry is the same on image, label and mask; colour agrees with torchvision; all of it depends on the key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as oracle

from helpers.miniatures import picture
from segue.config import RareClassConfig, TransformConfig
from segue.data import transforms
from segue.data.augment import FILL
from segue.data.images import resize_image, resize_label
from segue.data.transforms import Window, apply, choose_window, colour, cut, draws
from segue.labels import IGNORE
from segue.ops.keys import generator

SIZES = st.tuples(st.integers(9, 60), st.integers(9, 60))


def ramp(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is 4 x column and green 4 x row, and a label that is the column; sides up to 60 pixels."""
    rows, columns = np.indices(size)
    image = np.stack([4 * columns, 4 * rows, np.zeros(size)], axis=2).astype(np.uint8)
    return image, columns.astype(np.uint8)


@settings(max_examples=150, deadline=None)
@given(size=SIZES, base=st.none() | SIZES, crop=st.none() | SIZES, low=st.floats(0.5, 2), seed=st.integers(0, 10**6))
def test_image_label_and_mask_stay_aligned(
    size: tuple[int, int], base: tuple[int, int] | None, crop: tuple[int, int] | None, low: float, seed: int
) -> None:
    image, label = ramp(size)
    config = TransformConfig(scale=(low, low * 1.5), crop=crop, flip=0.5)
    item = apply(image, label, base, config, draws(seed))
    assert item.label is not None
    expected = crop or item.window.resized
    assert item.image.shape[:2] == item.label.shape == tuple(expected)
    pixel = np.ones(item.label.shape, bool) if item.pixel is None else item.pixel
    assert np.array_equal(pixel, item.label != IGNORE)
    assert pixel.sum() == item.window.height * item.window.width
    assert (item.image[~pixel] == FILL).all()
    rows, columns = item.window.rows(), item.window.columns()
    part = item.label[: len(rows), : len(columns)]
    assert np.array_equal(part, np.broadcast_to(columns, part.shape))
    # The colour of a pixel says where in the file it comes from: within one file pixel (or output step) of the label.
    step = np.array([size[i] / item.window.resized[i] for i in (1, 0)])
    shown = item.image[: len(rows), : len(columns), :2].astype(float) / 4
    truth = np.stack(np.broadcast_arrays(columns[None, :], rows[:, None]), axis=2)
    assert (np.abs(shown - truth) <= np.maximum(1.0, step / 2) + 0.5).all()


@settings(max_examples=60, deadline=None)
@given(size=SIZES, target=SIZES)
def test_nearest_takes_the_pixel_under_the_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    _, label = ramp(size)
    got = resize_label(label, target)
    centres = np.floor((np.arange(target[1]) + 0.5) * size[1] / target[1] + 1e-9)
    assert np.array_equal(got[0], centres)


def test_halving_is_the_mean_of_four_pixels() -> None:
    image = picture(0, (8, 10))
    mean = image.reshape(4, 2, 5, 2, 3).mean((1, 3))
    assert np.abs(resize_image(image, (4, 5)).astype(float) - mean).max() <= 0.5


def test_flip_mirrors_and_padding_stays_bottom_right() -> None:
    image, label = ramp((10, 12))
    item = apply(image, label, None, TransformConfig(crop=(14, 15), flip=1.0), draws(1))
    assert item.label is not None and item.pixel is not None
    assert np.array_equal(item.label[:10, :12], label[:, ::-1])
    assert np.array_equal(item.image[:10, :12], image[:, ::-1])
    assert item.pixel[:10, :12].all() and not item.pixel[10:].any() and not item.pixel[:, 12:].any()


def test_crops_reach_every_corner_and_are_uniform() -> None:
    image, label = ramp((12, 20))
    config = TransformConfig(crop=(10, 16), flip=0.0)
    windows = [apply(image, label, None, config, draws("u", n)).window for n in range(3000)]
    lefts = np.bincount([w.left for w in windows], minlength=5) / 3000
    assert lefts.shape == (5,) and np.abs(lefts - 0.2).max() < 0.04
    assert {w.top for w in windows} == {0, 1, 2}


SIDES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=600, deadline=None)
@given(
    size=SIDES,
    resized=SIDES,
    powers=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 10**6),
)
def test_a_window_is_the_same_bytes_as_of_the_whole_picture(
    size: tuple[int, int],
    resized: tuple[int, int],
    powers: tuple[int, int],
    corner: tuple[float, ...],
    seed: int,
) -> None:
    out = [n if power == 0 else max(1, int(s * 2.0**power)) for s, n, power in zip(size, resized, powers, strict=True)]
    height, width = (1 + int(corner[i] * (out[i] - 1)) for i in (0, 1))
    top, left = int(corner[2] * (out[0] - height)), int(corner[3] * (out[1] - width))
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    window = Window(size, (out[0], out[1]), top, left, height, width, flip=seed % 2 == 1)
    whole = resize_image(image, (out[0], out[1]))[top : top + height, left : left + width]
    assert np.array_equal(cut(image, window), whole[:, ::-1] if window.flip else whole)


@pytest.mark.parametrize(
    ("resized", "limit"), [((150, 300), 0.2), ((200, 400), 0.1), ((70, 140), 0.5), ((50, 100), 0.5)]
)
def test_only_what_the_window_needs_is_resized(
    resized: tuple[int, int], limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(0, (100, 200))
    made: list[float] = []
    real = transforms.cv2.resize

    def noted(part: np.ndarray, *args: object, **options: object) -> np.ndarray:
        made.append(part.shape[0] * part.shape[1] / image[..., 0].size)
        return real(part, *args, **options)

    monkeypatch.setattr(transforms.cv2, "resize", noted)
    cut(image, Window((100, 200), resized, 10, 20, 40, 60))
    assert len(made) == 1 and made[0] < limit
    cut(image, Window((100, 200), (100, 200), 10, 20, 40, 60))
    assert len(made) == 1, "nothing to resize"


def rare(crop: tuple[int, int], share: float = 1.0, **given: object) -> TransformConfig:
    return TransformConfig(crop=crop, flip=0, max_class_share=share, rare_class=RareClassConfig.model_validate(given))


def test_a_crop_is_redrawn_until_it_shows_the_wanted_class() -> None:
    label = np.zeros((60, 80), np.uint8)
    label[40:48, 60:70] = 3
    config = rare((20, 20), crop_px=30, tries=100)
    for n in range(50):
        window = choose_window((60, 80), label, None, config, draws("r", n), wanted=3)
        part = label.take(window.rows(), 0).take(window.columns(), 1)
        assert (part == 3).sum() > 30
        first = choose_window((60, 80), label, None, config, draws("r", n))
        shown = (label.take(first.rows(), 0).take(first.columns(), 1) == 3).sum()
        assert (window == first) == (shown > 30), "a first crop that fits is kept"
    scaled = choose_window((60, 80), label, (120, 160), config, draws("r", 1), wanted=3)
    assert (label.take(scaled.rows(), 0).take(scaled.columns(), 1) == 3).sum() > 30


def test_the_best_of_the_tries_is_used_when_none_fits() -> None:
    label = np.zeros((60, 80), np.uint8)
    label[40:48, 60:70] = 3

    def shown(tries: int, n: int) -> int:
        window = choose_window((60, 80), label, None, rare((12, 12), crop_px=500, tries=tries), draws("b", n), wanted=3)
        return int((label.take(window.rows(), 0).take(window.columns(), 1) == 3).sum())

    for n in range(30):
        more = [shown(tries, n) for tries in (0, 3, 10, 40)]
        assert more == sorted(more)
    assert sum(shown(10, n) for n in range(30)) > 3 * sum(shown(0, n) for n in range(30))


def test_wanted_and_dominant_classes_are_looked_at_together() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    label[10:14, 40:44] = 3
    label[50:54, 29:33] = 3

    def dominance(limit: float, n: int) -> float:
        config = rare((24, 24), limit, crop_px=12, tries=100)
        window = choose_window((64, 64), label, None, config, draws(n), wanted=3)
        part = label.take(window.rows(), 0).take(window.columns(), 1)
        assert (part == 3).sum() > 12
        return float(np.bincount(part.ravel()).max() / part.size)

    assert max(dominance(0.7, n) for n in range(60)) <= 0.7 < max(dominance(1.0, n) for n in range(60))


@pytest.mark.parametrize(
    ("crop", "given", "needed"),
    [
        ((512, 512), {}, 1500),  # half of 3000, as DAFormer
        ((1024, 1024), {}, 6000),  # twice of 3000, as HRDA
        ((256, 256), {"min_px": 1000}, 125),
        ((256, 256), {"crop_px": 7}, 7),
    ],
)
def test_what_a_crop_must_show_follows_its_area(
    crop: tuple[int, int], given: dict[str, int], needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    real = transforms.histogram
    monkeypatch.setattr(transforms, "histogram", lambda part: looks.append(1) or real(part))
    label = np.zeros((crop[0], crop[1] + 1), np.uint8)
    for shown in (needed, needed + 1):
        flat = np.zeros(crop[0] * (crop[1] - 1), np.uint8)
        flat[:shown] = 3
        label[:, 1:-1] = flat.reshape(crop[0], crop[1] - 1)  # in every crop
        looks.clear()
        choose_window(label.shape, label, None, rare(crop, **given), draws(0), 3)
        assert len(looks) == (11 if shown == needed else 1)


def test_more_tries_do_not_change_what_fewer_draw() -> None:
    assert np.array_equal(draws("a", 1)[:29], torch.rand(29, generator=generator("a", 1), dtype=torch.float64).numpy())


def test_dominant_class_is_avoided_and_given_up_after_ten_redraws() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 1
    image = picture(0, (40, 40))

    def share(limit: float, n: int) -> float:
        config = TransformConfig(crop=(20, 20), flip=0.0, max_class_share=limit)
        part = apply(image, label, None, config, draws("d", n)).label
        assert part is not None
        return float(max((part == c).mean() for c in (0, 1)))

    free = np.array([share(1.0, n) for n in range(200)])
    held = np.array([share(0.75, n) for n in range(200)])
    assert (free > 0.75).mean() > 0.3
    assert (held > 0.75).mean() == 0
    assert np.array_equal(held[free <= 0.75], free[free <= 0.75]), "an accepted first crop is not redrawn"
    only = np.zeros((40, 40), np.uint8)
    config = TransformConfig(crop=(20, 10), max_class_share=0.75)
    assert apply(image, only, None, config, draws(0)).image.shape == (20, 10, 3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("setting", ["brightness", "contrast", "saturation", "hue"])
def test_colour_agrees_with_torchvision(setting: str, seed: int) -> None:
    image = picture(seed, (32, 48)) // 2 + 50  # room at both ends: torchvision clamps between the steps, we do not
    numbers = draws(seed)
    spread = 0.3
    config = TransformConfig(**{setting: spread})
    index = ["brightness", "contrast", "saturation", "hue"].index(setting) + 2
    offset = (2 * float(numbers[index]) - 1) * spread
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    factor = offset if setting == "hue" else 1 + offset
    expected = getattr(oracle, f"adjust_{setting}")(tensor, factor).permute(1, 2, 0).numpy()
    got = colour(image, config, numbers)
    difference = np.abs(got.astype(int) - expected.astype(int))
    # hue: 8-bit HSV moves in steps of 1/256 turn; the others may differ by roundings
    assert difference.max() <= (6 if setting == "hue" else 2)
    assert np.abs(expected.astype(int) - image.astype(int)).max() > 6 or abs(offset) < 0.1


def test_colour_composes_in_the_documented_order() -> None:
    image = picture(3, (32, 48)) // 2 + 50
    numbers = draws(5)
    config = TransformConfig(brightness=0.2, contrast=0.2, saturation=0.2)
    b, c, s = (1 + (2 * float(numbers[k]) - 1) * 0.2 for k in (2, 3, 4))
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    tensor = oracle.adjust_saturation(oracle.adjust_contrast(oracle.adjust_brightness(tensor, b), c), s)
    expected = (tensor.permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(colour(image, config, numbers) - expected).max() <= 1.5


def test_padding_and_colour_do_not_mix() -> None:
    config = TransformConfig(crop=(40, 40), brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    item = apply(picture(0, (20, 20)), None, None, config, draws(3))
    assert item.pixel is not None and item.label is None
    assert (item.image[~item.pixel] == FILL).all()


def test_one_setting_does_not_change_the_draws_of_another() -> None:
    image, label = ramp((30, 30))
    plain = apply(image, label, None, TransformConfig(crop=(10, 10)), draws(1, "s", 7))
    rich = apply(image, label, None, TransformConfig(crop=(10, 10), hue=0.5, contrast=0.5), draws(1, "s", 7))
    assert plain.window == rich.window
    assert plain.window != apply(image, label, None, TransformConfig(crop=(10, 10)), draws(1, "s", 8)).window


def test_window_of_the_whole_image_is_the_identity() -> None:
    window = Window((7, 9), (7, 9), 0, 0, 7, 9)
    assert window.rows().tolist() == list(range(7)) and window.columns().tolist() == list(range(9))
