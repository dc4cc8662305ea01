"""The augmentation block: image, label and mask stay aligned whatever the steps; draws are the sample's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.miniatures import picture
from helpers.recipes import recipe
from segue import recipes
from segue.config import DatasetConfig, RareClassConfig, TransformConfig
from segue.data.augment import FILL, NUMBERS, Augmented, augment
from segue.data.dataset import open_dataset
from segue.data.loaders import Stream
from segue.data.transforms import Item, apply, draws
from segue.jobs.run import run
from segue.labels import IGNORE
from segue.policies import LIMITS, MOST_STEPS, POLICIES, AugmentConfig
from segue.recipes import ConfigError

SIDES = st.tuples(st.integers(1, 60), st.integers(1, 60))
SEEDS = st.integers(0, 10**6)
GEOMETRY = ("flip", "rotation", "perspective")


def config(steps: str | list[Any], probability: float = 1.0) -> AugmentConfig:
    return AugmentConfig.model_validate({"steps": steps, "probability": probability})


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(NUMBERS)


@st.composite
def combinations(draw: st.DrawFn, names: tuple[str, ...] = tuple(LIMITS)) -> AugmentConfig:
    """Any steps in any order, each with a part of its range and a probability of its own."""
    rows = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=MOST_STEPS)):
        if name == "perspective" and any(row["name"] == name for row in rows):
            continue
        row: dict[str, Any] = {"name": name, "probability": draw(st.sampled_from([1.0, 1.0, 0.5]))}
        if (limits := LIMITS[name]) is not None:
            row["range"] = sorted(draw(st.tuples(st.floats(*limits), st.floats(*limits))))
        rows.append(row)
    return config(rows)


def positions(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image whose red is 4 x column and green 4 x row, a label that is the column, one that is the row."""
    rows, columns = np.indices(size).astype(np.uint8)
    return np.stack([4 * columns, 4 * rows, 0 * rows], axis=2), columns, rows


def mask(got: Augmented | Item) -> np.ndarray:
    return np.ones(got.image.shape[:2], bool) if got.pixel is None else got.pixel


def sources(matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and depth of the place that each pixel shows."""
    rows, columns = np.indices(size)
    x, y, depth = np.tensordot(matrix, np.stack([columns, rows, np.ones(size)]), 1)
    return x / depth, y / depth, depth


@settings(max_examples=200, deadline=None)
@given(block=combinations(GEOMETRY), size=SIDES, seed=SEEDS)
def test_geometry_acts_alike_on_image_label_and_mask(block: AugmentConfig, size: tuple[int, int], seed: int) -> None:
    image, column, row = positions(size)
    across = augment(image, column, block, numbers(seed))
    down = augment(image, row, block, numbers(seed))
    assert across.label is not None and down.label is not None
    inside = mask(across)
    assert np.array_equal(inside, across.label != IGNORE) and np.array_equal(inside, down.label != IGNORE)
    assert (across.image[~inside] == FILL).all()
    # The colour of a pixel says where it comes from, and so does its label, rounded to a whole pixel.
    shown = across.image[inside].astype(float) / 4
    assert (np.abs(shown[:, 0] - across.label[inside]) <= 0.75).all()
    assert (np.abs(shown[:, 1] - down.label[inside]) <= 0.75).all()
    if across.warp is None:
        assert np.array_equal(across.image, image)
        return
    x, y, depth = sources(across.warp, size)
    assert (np.abs(across.label - x)[inside] < 0.52).all() and (np.abs(down.label - y)[inside] < 0.52).all()
    margin = np.minimum.reduce([x + 0.5, y + 0.5, size[1] - 0.5 - x, size[0] - 0.5 - y])
    assert inside[(margin > 0.02) & (depth > 0)].all(), "what the picture shows is there"
    assert not inside[(margin < -0.02) | (depth <= 0)].any(), "what it does not show is not"


@settings(max_examples=100, deadline=None)
@given(block=combinations(), size=SIDES, seed=SEEDS)
def test_colour_moves_nothing_and_no_label_is_made_up(block: AugmentConfig, size: tuple[int, int], seed: int) -> None:
    image = picture(seed, size)
    label = np.random.default_rng(seed).choice(np.array([0, 7, 18, 200, IGNORE], np.uint8), size)
    before = image.copy(), label.copy()
    image.flags.writeable = label.flags.writeable = False  # pictures may be views of a file
    got = augment(image, label, block, numbers(seed))
    assert got.label is not None and got.image.shape == image.shape and got.image.dtype == np.uint8
    assert np.array_equal(image, before[0]) and np.array_equal(label, before[1])
    assert set(np.unique(got.label)) <= set(np.unique(label)) | {IGNORE}
    assert (got.label[~mask(got)] == IGNORE).all() and (got.image[~mask(got)] == FILL).all()
    steps = [s.model_dump() | ({} if s.name in GEOMETRY else {"probability": 0.0}) for s in block.steps]
    plain = augment(image, label, config(steps), numbers(seed))
    assert plain.label is not None and np.array_equal(got.label, plain.label)
    assert np.array_equal(mask(got), mask(plain)) and (got.pixel is None) == (plain.pixel is None)
    assert np.array_equal(got.warp, plain.warp) if got.warp is not None else plain.warp is None
    without = augment(image, None, block, numbers(seed))
    assert without.label is None and np.array_equal(without.image, got.image)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_every_policy_keeps_two_colours_where_their_labels_are(policy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = cv2.resize(rng.integers(0, 2, (4, 6), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST)
    assume(0.2 < label.mean() < 0.8)  # contrast needs both
    image = np.array([(40, 30, 120), (200, 160, 40)], np.uint8)[label]
    got = augment(image, label, config(policy), numbers(seed))
    assert got.label is not None
    assert (got.warp is not None) and not np.array_equal(got.image, image)
    square = np.ones((9, 9))
    sure = [cv2.erode((got.label == k).astype(np.uint8), square, borderValue=0) > 0 for k in (0, 1)]
    assume(all(area.any() for area in sure))
    colours = [got.image[area].astype(int) for area in sure]
    assert all((np.ptp(colour, axis=0) <= 2).all() for colour in colours), "one colour for each label"
    assert np.abs(colours[0].mean(0) - colours[1].mean(0)).max() > 15


def test_what_lies_behind_the_horizon_is_not_shown() -> None:
    """A flat wide picture that is turned, tilted and turned again would appear a second time, upside down."""
    turns = [{"name": "rotation", "range": [degrees, degrees]} for degrees in (-135, -105)]
    block = config([turns[0], {"name": "perspective", "range": [0.6, 0.6]}, turns[1]])
    image, column, _ = positions((10, 60))
    drawn = numbers(0)
    drawn[13:21] = [0, 0, 0, 0, 1, 0, 1, 1]  # the corners of the second step
    got = augment(image, column, block, drawn)
    assert got.warp is not None and got.label is not None
    x, y, depth = sources(got.warp, (10, 60))
    twin = (depth <= 0) & (np.abs(x - 29.5) < 29) & (np.abs(y - 4.5) < 4)
    assert twin.sum() > 50, "the example has such pixels"
    assert not mask(got)[twin].any() and (got.label[twin] == IGNORE).all() and (got.image[twin] == FILL).all()


def test_the_policies_are_the_published_ones() -> None:
    given = {
        name: [(step.name, step.range, step.probability) for step in config(name).steps] for name in sorted(POLICIES)
    }
    assert given == {
        "B-GS-R": [("brightness", (1, 3), 1), ("grayscale", None, 1), ("rotation", (-90, 90), 1)],
        "C-S-HF": [("contrast", (2, 6), 1), ("saturation", (1, 4), 1), ("flip", None, 1)],
        "H-RP-HF": [("hue", (-0.3, 0.3), 1), ("perspective", (0.5, 0.5), 1), ("flip", None, 1)],
        "S-BL-R": [("solarize", (0.4, 0.4), 1), ("blur", (0.3, 0.7), 1), ("rotation", (-90, 90), 1)],
    }


def test_values_fill_their_range_evenly() -> None:
    block = TransformConfig.model_validate({"flip": 0, "augment": "B-GS-R"}).augment
    assert block is not None and block.probability == 0.5
    image = picture(0, (8, 8))
    degrees = []
    for n in range(3000):
        item = apply(image, None, None, TransformConfig(flip=0, augment=block), draws("v", n))
        if item.warp is not None:
            degrees.append(np.degrees(np.arctan2(item.warp[1, 0], item.warp[0, 0])))
    assert abs(len(degrees) / 3000 - 0.5) < 0.04, "the block's coin"
    share, _ = np.histogram(degrees, bins=6, range=(-90, 90))
    assert share.sum() == len(degrees) and np.abs(share / len(degrees) - 1 / 6).max() < 0.04


def test_a_step_has_its_own_coin_and_the_block_is_all_or_nothing() -> None:
    image = picture(0, (8, 8))
    steps = [{"name": "flip", "probability": 0.25}, {"name": "solarize", "range": [0, 0], "probability": 0.75}]
    flipped, inverted, both = np.zeros(2000), np.zeros(2000), np.zeros(2000)
    for n in range(2000):
        got = augment(image, None, config(steps, 0.8), draws("c", n)[-NUMBERS:])
        flipped[n] = got.warp is not None
        inverted[n] = not np.array_equal(got.image[:, ::-1] if got.warp is not None else got.image, image)
        both[n] = flipped[n] * inverted[n]
    assert abs(flipped.mean() - 0.2) < 0.04 and abs(inverted.mean() - 0.6) < 0.04
    assert abs(both.mean() - 0.8 * 0.25 * 0.75) < 0.04, "within the block, coins do not know of each other"
    assert not any((augment(image, None, config(p, 0.0), numbers(0)).image != image).any() for p in POLICIES)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_no_other_draw(policy: str) -> None:
    image, label = picture(0, (40, 60)), np.random.default_rng(0).integers(0, 4, (40, 60), dtype=np.uint8)
    rich: dict[str, Any] = {"crop": (24, 24), "scale": (0.7, 1.4), "hue": 0.2, "contrast": 0.3, "max_class_share": 0.5}
    rare = RareClassConfig(crop_px=140)
    changed = 0
    for n in range(20):
        plain = apply(image, label, None, TransformConfig(rare_class=rare, **rich), draws(1, "s", n), 2)
        on = TransformConfig.model_validate(rich | {"rare_class": rare, "augment": {"steps": policy}})
        got = apply(image, label, None, on, draws(1, "s", n), 2)
        assert got.window == plain.window and plain.warp is None
        if got.warp is None:
            assert np.array_equal(got.image, plain.image) and np.array_equal(got.label, plain.label)
            continue
        changed += 1
        shown = augment(plain.image, plain.label, config(policy), draws(1, "s", n)[-NUMBERS:])
        assert np.array_equal(got.image, shown.image), "the small jitter comes first and stays what it was"
        again = apply(image, label, None, on, draws(1, "s", n), 2)
        assert np.array_equal(again.image, got.image) and np.array_equal(again.warp, got.warp)
    assert 3 <= changed <= 17


def test_no_step_changes_the_draws_of_another() -> None:
    image = picture(0, (30, 30))
    turn = {"name": "rotation", "range": [-90, 90]}
    steps = [{"name": "contrast", "range": [2, 6]}, {"name": "perspective", "range": [0.5, 0.5]}, turn]
    off = [{**step, "probability": 0.0} for step in steps[:2]]
    alone = augment(image, None, config([*off, turn]), numbers(3)).warp
    seen = augment(image, None, config([steps[0], off[1], turn]), numbers(3))
    assert np.array_equal(alone, seen.warp) and not np.array_equal(seen.image, image)
    assert not np.array_equal(alone, augment(image, None, config([*off, turn]), numbers(4)).warp)


@settings(max_examples=40, deadline=None)
@given(block=combinations(GEOMETRY), seed=SEEDS)
def test_padding_never_moves_into_the_picture(block: AugmentConfig, seed: int) -> None:
    image, column, _ = positions((20, 30))
    item = apply(image, column, None, TransformConfig(crop=(26, 48), flip=0, augment=block), draws(seed))
    window = augment(image, column, block, draws(seed)[-NUMBERS:])
    assert item.label is not None and item.pixel is not None and window.label is not None
    assert np.array_equal(item.label[:20, :30], window.label) and np.array_equal(item.image[:20, :30], window.image)
    assert np.array_equal(item.pixel[:20, :30], mask(window))
    assert (item.warp is None) == (window.warp is None) and np.array_equal(item.geometry().get("warp"), window.warp)
    assert not item.pixel[20:].any() and not item.pixel[:, 30:].any()
    assert (item.label[~item.pixel] == IGNORE).all() and (item.image[~item.pixel] == FILL).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_only_pictures_in_0_to_255_are_taken(dtype: type) -> None:
    with pytest.raises(TypeError, match="uint8 before they are normalised"):
        augment(picture(0).astype(dtype), None, config("C-S-HF"), numbers(0))


def test_geometry_of_a_sample_leads_back_to_the_file(scene_data: Path) -> None:
    dataset = open_dataset("game", DatasetConfig(dataset="gta5", root=scene_data / "game"), "train")
    free = [{"name": "rotation", "range": [-40, 40]}, {"name": "flip"}, {"name": "perspective", "range": [0.2, 0.5]}]
    transform = TransformConfig.model_validate(
        {"crop": [48, 80], "scale": [0.8, 1.6], "augment": {"steps": free, "probability": 0.7}}
    )
    stream = Stream([dataset], None, transform, (0, "s", "source"), 12, labelled=True, workers=0)
    batch = next(stream.iterate())[0]
    warped = 0
    for label, pixel, meta in zip(batch.label.numpy(), batch.pixel.numpy(), batch.meta, strict=True):
        (top, left, height, width), resized = meta.geometry["window"], meta.geometry["resized"]
        matrix = np.array(meta.geometry.get("warp", np.eye(3)))
        warped += "warp" in meta.geometry
        x, y, _ = sources(matrix, label.shape)
        column, row = np.rint(x[pixel]), np.rint(y[pixel])
        tie = np.maximum(np.abs(x[pixel] - column), np.abs(y[pixel] - row)) > 0.48
        column = width - 1 - column if meta.geometry["flip"] else column
        row = ((row + top + 0.5) * meta.file_size[0] / resized[0]).astype(int).clip(0, meta.file_size[0] - 1)
        column = ((column + left + 0.5) * meta.file_size[1] / resized[1]).astype(int).clip(0, meta.file_size[1] - 1)
        truth = dataset.read_label(dataset.ids.index(meta.id))[row, column]
        assert (truth == label[pixel])[~tie].all()
        assert (height, width) != label.shape or warped or pixel.all()
    assert 4 <= warped <= 11


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("C-S-FH", r"unknown augmentation policy 'C-S-FH' \(did you mean 'C-S-HF'\? known: C-S-HF, H-RP-HF"),
        ({"steps": "nonorm"}, r"unknown augmentation policy 'nonorm' \(known:"),
        ({"steps": [{"name": "contrst", "range": [1, 2]}]}, r"step 'contrst' \(did you mean 'contrast'\?"),
        ({"steps": [{"name": "contrast"}]}, r"'contrast' needs 'range: \[low, high\]' .*within 0..20, it has none"),
        ({"steps": [{"name": "contrast", "range": [6, 2]}]}, "ascending"),
        ({"steps": [{"name": "hue", "range": [-0.6, 0]}]}, "within -0.5..0.5"),
        ({"steps": [{"name": "blur", "range": [0, 1]}]}, "within 0.1..5"),
        ({"steps": [{"name": "perspective", "range": [0.5, 0.7]}]}, "within 0..0.6"),
        ({"steps": [{"name": "brightness", "range": [1, float("nan")]}]}, "finite"),
        ({"steps": [{"name": "flip", "range": [0, 1]}]}, "'flip' has no range"),
        ({"steps": [{"name": "perspective", "range": [0, 0.5]}] * 2}, "at most one step 'perspective'"),
        ({"steps": [{"name": "flip"}] * 13}, "at most 12"),
        ({"steps": []}, "at least 1"),
        ({"steps": [{"name": "flip", "chance": 1}]}, r"unknown key .*chance.*known: name, range, probability"),
        ({"policy": "C-S-HF"}, r"unknown key .*policy.*known: steps, probability"),
        ({"steps": "C-S-HF", "probability": 2}, "less than or equal to 1"),
    ],
)
def test_a_fault_names_the_way_out(scene_data: Path, value: Any, message: str) -> None:
    given = recipe(scene_data)
    given["transform"]["augment"] = value
    with pytest.raises(ConfigError, match=message):
        recipes.load(given)
    given = recipe(scene_data)
    given["stages"][1]["streams"] = {"source": {"augment": value}}
    with pytest.raises(ConfigError, match=message):
        recipes.load(given)


def test_stages_and_streams_switch_it_off_and_over(scene_data: Path) -> None:
    given = recipe(scene_data, "self_training")
    given["transform"]["augment"] = "H-RP-HF"
    given["stages"][1]["streams"] = {"target": {"augment": None}, "source": {"augment": {"probability": 0.9}}}
    loaded = recipes.load(given, ["stages.first.transform.augment=null"])
    first, second = loaded.stages

    def block(stage: Any, stream: str) -> AugmentConfig | None:
        return loaded.transform_of(stage, stream).augment

    assert block(first, "source") is None and block(second, "target") is None
    assert block(second, "source") == config("H-RP-HF", 0.9)
    assert recipes.validate(recipes.yaml.safe_load(recipes.to_yaml(loaded))) == loaded
    over = recipes.load(given, ["stages.first.transform.augment={steps: S-BL-R, probability: 1}"])
    assert over.transform_of(over.stages[0], "source").augment == config("S-BL-R", 1.0)


def test_two_iterations_of_a_run_with_and_without(scene_data: Path, tmp_path: Path) -> None:
    losses = []
    for n, augmentation in enumerate([None, *POLICIES, {"steps": "B-GS-R", "probability": 0}]):
        given = recipe(scene_data)
        given["stages"] = given["stages"][:1]
        given["transform"]["augment"] = {"steps": augmentation, "probability": 1} if n in range(1, 5) else augmentation
        run(recipes.load(given), tmp_path / str(n), device="cpu")
        lines = (tmp_path / str(n) / "stages/0_first/metrics.jsonl").read_text().splitlines()
        losses += [loss for line in lines if (loss := json.loads(line).get("loss/source")) is not None]
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert losses[0] == losses[5] and len(set(losses)) == 5, "each policy trains on other pictures"
