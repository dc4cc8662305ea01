"""Confusion matrix: shards, views, absent classes, wrong input; bootstrap intervals; per-image files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import UserError
from segue.labels import IGNORE, LabelError, LabelSpace, load_space
from segue.scoring import matrix
from segue.scoring.bootstrap import PerImage, interval, paired_interval, read_per_image, write_per_image
from segue.scoring.matrix import Confusion

SPACE = LabelSpace(
    "five", ("a", "b", "c", "d", "e"), tuple((40 * i, 0, 0) for i in range(5)), tuple(range(5)), {"two": ("b", "d")}
)


def _random(seed: int, shape: tuple[int, ...] = (6, 40), classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(classes), IGNORE], shape).astype(np.uint8)
    return label, rng.integers(0, classes, shape).astype(np.uint8)


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_merged_shards_equal_one_pass(seed: int, cut: int) -> None:
    label, prediction = _random(seed)
    parts = [Confusion(5), Confusion(5)]
    parts[0].add(label[:cut], prediction[:cut])
    parts[1].add(torch.from_numpy(label[cut:]), torch.from_numpy(prediction[cut:]).long())
    whole = Confusion(5)
    whole.add(label, prediction)
    assert np.array_equal((parts[0] + parts[1]).counts, whole.counts)
    assert whole.counts.sum() == np.count_nonzero(label != IGNORE)


def test_rows_are_ground_truth_and_columns_predictions() -> None:
    confusion = Confusion(3)
    confusion.add(np.array([0, 0, 2, 255], np.uint8), np.array([1, 0, 255, 1], np.uint8))
    assert confusion.counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("part_px", [1, 7, 1 << 24])
def test_counts_are_a_plain_loop_whatever_is_counted_at_a_time(part_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "EXACT_PX", part_px)
    label, prediction = _random(3, (2, 5, 9))
    prediction[0, 0, :3] = (5, 200, IGNORE)
    expected = np.zeros((5, 6), np.int64)
    for truth, guess in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if truth != IGNORE:
            expected[truth, min(guess, 5)] += 1
    assert np.array_equal(matrix.count(label, prediction, 5), expected)
    assert not matrix.count(label[:0], prediction[:0], 5).any()


def test_prediction_that_is_no_class_is_a_miss() -> None:
    confusion = Confusion(5)
    confusion.add(np.zeros(4, np.uint8), np.array([0, 0, 255, 77], np.uint8))
    scores = confusion.scores(SPACE)
    assert scores.iou["a"] == scores.class_accuracy["a"] == scores.accuracy == 0.5


def test_absent_class_is_nan_and_in_no_mean_but_a_false_class_is_zero() -> None:
    confusion = Confusion(5)
    confusion.add(np.array([0, 0, 0, 0], np.uint8), np.array([0, 0, 0, 1], np.uint8))
    scores = confusion.scores(SPACE)
    assert scores.iou["a"] == 0.75 and scores.iou["b"] == 0.0 and math.isnan(scores.iou["c"])
    assert scores.miou == 0.375
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["iou"]["c"] is None


def test_nothing_labelled_scores_nan() -> None:
    confusion = Confusion(5)
    confusion.add(np.full(9, IGNORE, np.uint8), np.zeros(9, np.uint8))
    assert math.isnan(confusion.scores(SPACE).miou) and math.isnan(confusion.scores(SPACE).accuracy)


def test_view_of_16_is_19_over_16_when_three_classes_score_zero() -> None:
    space = load_space("cityscapes19")
    label, prediction = _random(1, (50, 60), 19)
    left_out = [space.index(c) for c in ("terrain", "truck", "train")]
    prediction[np.isin(prediction, left_out)] = 0
    confusion = Confusion(19)
    confusion.add(label, prediction)
    rest = tuple(c for i, c in enumerate(space.classes) if i not in left_out)
    space = LabelSpace("s", space.classes, space.colors, space.ids, {"16": rest})
    assert confusion.scores(space, "16").miou == pytest.approx(confusion.scores(space).miou * 19 / 16, rel=1e-12)


def test_left_out_ground_truth_still_counts_as_false_positive() -> None:
    confusion = Confusion(5)
    confusion.add(np.array([1, 1, 0, 0], np.uint8), np.array([1, 1, 1, 1], np.uint8))
    assert confusion.scores(SPACE, "two").iou == {"b": 0.5, "d": pytest.approx(math.nan, nan_ok=True)}
    assert confusion.scores(SPACE, "two-lenient").iou["b"] == 1.0, "unless the view says so"
    assert confusion.scores(SPACE, "two", absent=1.0).iou == {"b": 0.5, "d": 1.0}
    assert confusion.scores(SPACE, "all-lenient").to_dict()["iou"] == confusion.scores(SPACE).to_dict()["iou"]
    with pytest.raises(LabelError, match="did you mean 'two'"):
        confusion.scores(SPACE, "twoo")


@pytest.mark.parametrize(
    ("label", "prediction", "message"),
    [
        (np.array([5], np.uint8), np.array([0], np.uint8), r"labels \[5\] are no train ids"),
        (np.array([0, 0], np.uint8), np.array([0], np.uint8), "same shape"),
        (np.array([0]), np.array([300]), "outside 0..255"),
        (np.array([0]), np.array([-1]), "outside 0..255"),
        (np.array([0]), np.array([0.5]), "integer train ids"),
    ],
)
def test_wrong_input_is_named(label: np.ndarray, prediction: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Confusion(5).add(label, prediction)


def _per_image(seed: int, skill: float, num: int = 40) -> PerImage:
    rng = np.random.default_rng(99)  # the same labels for every model
    rows = []
    noise = np.random.default_rng(seed)
    for _ in range(num):
        label = rng.integers(0, 5, 300).astype(np.uint8)
        prediction = np.where(noise.random(300) < skill, label, noise.integers(0, 5, 300)).astype(np.uint8)
        rows.append(Confusion(5).add(label, prediction).sums())
    right, truth, predicted = (np.stack(r).astype(np.uint32) for r in zip(*rows, strict=True))
    return PerImage(tuple(f"i/{k}" for k in range(num)), SPACE.classes, right, truth, predicted, tuple(range(5)))


def test_paired_interval_finds_a_real_difference_and_no_false_one() -> None:
    weak, good, same = _per_image(0, 0.5), _per_image(1, 0.7), _per_image(2, 0.5)
    gain = paired_interval(weak, good, seed=1)
    assert gain.low < gain.value < gain.high and gain.low > 0.1
    nothing = paired_interval(weak, same, seed=1)
    assert nothing.low < 0 < nothing.high
    assert paired_interval(weak, good, seed=1) == gain
    assert interval(weak).value == pytest.approx(float(weak.miou(np.ones((1, 40)))[0]))


def test_paired_interval_is_narrower_than_unpaired_images_would_give() -> None:
    weak, good = _per_image(0, 0.5), _per_image(0, 0.52)
    gain, one = paired_interval(weak, good), interval(weak)
    assert gain.high - gain.low < one.high - one.low


def test_paired_interval_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_interval(_per_image(0, 0.5), _per_image(0, 0.5, num=39))


def test_resample_of_all_images_equals_the_summed_matrix() -> None:
    per_image = _per_image(4, 0.6)
    total = Confusion(5)
    label, prediction = _random(8)
    counts = total.add(label, prediction).counts
    sums = Confusion(5, counts).sums()
    one = PerImage(("x",), SPACE.classes, *(s[None].astype(np.uint32) for s in sums), tuple(range(5)))
    assert float(one.miou(np.ones((1, 1)))[0]) == pytest.approx(total.scores(SPACE).miou, rel=1e-12)
    assert per_image.miou(np.zeros((1, 40))).tolist() == pytest.approx([math.nan], nan_ok=True)


def test_worst_images_average_over_classes_of_their_own_ground_truth() -> None:
    right = np.array([[3, 0], [0, 2], [0, 0]], np.uint32)
    truth = np.array([[4, 0], [0, 8], [0, 0]], np.uint32)
    predicted = np.array([[3, 1], [0, 2], [1, 0]], np.uint32)
    images = PerImage(("good", "bad", "void"), ("a", "b"), right, truth, predicted, (0, 1))
    assert images.worst(5) == [("bad", 0.25), ("good", 0.75)]


def test_per_image_file_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "per_image_x_val.npz"
    images = _per_image(0, 0.5)
    write_per_image(images, path)
    back = read_per_image(path)
    assert back.ids == images.ids and back.rows == images.rows and np.array_equal(back.right, images.right)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="no per-image scores"):
        read_per_image(path)
    np.savez(path.open("wb"), ids=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="no per-image scores"):
        read_per_image(path)
