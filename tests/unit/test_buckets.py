"""Buckets of a stream: nothing lost, nothing twice, in order; ranking files as published and damaged ones."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.data.buckets import (
    Bucket,
    Cut,
    Direction,
    EqualCount,
    EqualWidth,
    ImageFilter,
    Within,
    lowest,
    make_buckets,
    order,
    read_ranking,
    select_published,
)
from segue.data.errors import DataError

# Few distinct values: ties and edges come often.
SCORES = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=40)
SORTED: st.SearchStrategy[Direction] = st.sampled_from(["ascending", "descending"])
CUTS: st.SearchStrategy[Cut] = st.one_of(
    st.builds(EqualCount, st.integers(1, 40)),
    st.builds(EqualWidth, st.integers(1, 40)),
    st.builds(Within, st.floats(0, 12)),
)


def places(buckets: list[Bucket]) -> list[int]:
    return [int(i) for bucket in buckets for i in bucket.indices]


def sizes(scores: list[float], cut: Cut) -> list[int]:
    return [len(b.indices) for b in make_buckets(scores, "ascending", cut)]


@given(SCORES, SORTED, CUTS)
def test_every_image_is_in_one_bucket_and_buckets_follow_the_order(
    scores: list[float], direction: Direction, cut: Cut
) -> None:
    if isinstance(cut, EqualCount) and cut.buckets > len(scores):
        with pytest.raises(DataError, match="cannot fill"):
            make_buckets(scores, direction, cut)
        return
    buckets = make_buckets(scores, direction, cut)
    sign = 1 if direction == "ascending" else -1
    assert places(buckets) == sorted(range(len(scores)), key=lambda i: (sign * scores[i], i))
    for bucket in buckets:
        inside = [scores[i] for i in bucket.indices]
        assert (bucket.low, bucket.high) == (min(inside), max(inside))


@given(SCORES, st.integers(1, 40), st.sampled_from(["ascending", "descending", "random"]))
def test_equal_counts_differ_by_one_at_most(scores: list[float], number: int, direction: Direction) -> None:
    number = min(number, len(scores))
    counts = [len(b.indices) for b in make_buckets(scores, direction, EqualCount(number))]
    assert len(counts) == number and sum(counts) == len(scores)
    assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)


@given(SCORES, SORTED, st.integers(1, 12))
def test_equal_widths_are_intervals_of_the_score(scores: list[float], direction: Direction, number: int) -> None:
    low, high = min(scores), max(scores)

    def interval(score: float) -> int:
        return number - 1 if score == high else math.floor((score - low) * number / (high - low) + 1e-12)

    wanted: dict[int, set[int]] = {}
    for i, score in enumerate(scores):
        wanted.setdefault(interval(score), set()).add(i)
    found = make_buckets(scores, direction, EqualWidth(number))
    groups = [wanted[k] for k in sorted(wanted, reverse=direction == "descending")]
    assert [set(b.indices.tolist()) for b in found] == groups


@given(SCORES, SORTED, st.integers(0, 40).map(lambda n: n / 4))
def test_a_bucket_ends_where_the_score_has_moved_on(scores: list[float], direction: Direction, distance: float) -> None:
    buckets = make_buckets(scores, direction, Within(distance))
    for bucket in buckets:
        assert bucket.high - bucket.low <= distance
    for one, after in itertools.pairwise(buckets):
        assert abs(scores[after.indices[0]] - scores[one.indices[0]]) > distance


def test_sizes_known_by_hand() -> None:
    scores = [0.0, 1.0, 2.0, 3.0, 4.0, 10.0]
    assert sizes(scores, EqualCount(4)) == [2, 2, 1, 1]
    assert sizes(scores, EqualWidth(5)) == [2, 2, 1, 1]  # 2 and 4 lie on edges: above; 6..8 is empty
    assert sizes(scores, Within(1.5)) == [2, 2, 1, 1]
    assert sizes(scores, Within(2.0)) == [3, 2, 1]
    assert sizes([7.0] * 5, EqualWidth(3)) == [5]


@given(st.integers(2, 60), st.integers(0, 1000))
def test_random_orders_depend_on_the_seed_alone(count: int, seed: int) -> None:
    first = order(np.full(count, np.nan), "random", seed)
    assert sorted(first.tolist()) == list(range(count))
    assert first.tolist() == order(np.arange(count), "random", seed).tolist()


def test_random_orders_are_random() -> None:
    orders = np.array([order(np.zeros(10), "random", seed) for seed in range(400)])
    assert len({tuple(o) for o in orders.tolist()}) > 395
    for place in orders.T:  # each image at each place about 40 times
        assert np.bincount(place, minlength=10).min() > 15


@pytest.mark.parametrize(
    ("scores", "direction", "cut", "message"),
    [
        ([], "random", EqualCount(1), "no images"),
        ([1.0, math.nan], "ascending", EqualCount(1), "1 of 2 images have no finite score"),
        ([1.0, math.inf], "descending", EqualWidth(1), "no finite score"),
        ([1.0, 2.0], "random", EqualWidth(2), "only be cut by count"),
        ([1.0, 2.0], "random", Within(2), "only be cut by count"),
        ([1.0, 2.0], "ascending", EqualCount(3), "2 images cannot fill 3 buckets"),
        ([1.0, 2.0], "ascending", EqualCount(0), "must be 1 or more"),
        ([1.0, 2.0], "ascending", EqualWidth(-1), "must be 1 or more"),
        ([1.0, 2.0], "ascending", Within(-0.1), "must be 0 or more"),
        ([1.0, 2.0], "ascending", Within(math.nan), "must be 0 or more"),
    ],
)
def test_what_cannot_be_cut_is_said(scores: list[float], direction: Direction, cut: Cut, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_buckets(scores, direction, cut)


@given(st.lists(st.one_of(st.just(math.nan), st.integers(0, 9).map(float)), max_size=30), st.data())
def test_lowest_is_the_start_of_the_sorted_rest(scores: list[float], data: st.DataObject) -> None:
    among = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))), np.bool_)
    rest = sorted((s, i) for i, s in enumerate(scores) if among[i] and not math.isnan(s))
    count = data.draw(st.integers(0, len(scores) + 1))
    if count > len(rest):
        with pytest.raises(DataError, match=f"only {len(rest)} are left"):
            lowest(scores, count, among)
    else:
        assert lowest(scores, count, among).tolist() == [i for _, i in rest[:count]]


def test_filters_include_their_limits_and_refuse_what_is_unknown() -> None:
    values = {
        "class_count": np.array([8.0, 9, 12, 12, math.nan]),
        "entropy": np.array([0.1, 0.3, 0.31, 0.2, 0.1]),
        "confidence": np.array([0.9, 0.9, 0.95, 0.89, 0.99]),
    }
    assert ImageFilter().mask({}, 3).tolist() == [True] * 3
    assert ImageFilter(class_count_min=9).mask(values, 5).tolist() == [False, True, True, True, False]
    assert ImageFilter(entropy_max=0.3).mask(values, 5).tolist() == [True, True, False, True, True]
    assert ImageFilter(confidence_min=0.9).mask(values, 5).tolist() == [True, True, True, False, True]
    assert ImageFilter(9, 0.3, 0.9).mask(values, 5).tolist() == [False, True, False, False, False]
    with pytest.raises(DataError, match="no score 'entropy'"):
        ImageFilter(entropy_max=0.3).mask({"emd": np.zeros(5)}, 5)


def frame(number: int) -> str:
    return f"datasets/data/KITTI-360/data_2d_raw/drive_0000/image_00/data_rect/{number:010d}.png"


def written(folder: Path, name: str, records: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(records), "utf-8")
    return path


def record(number: int, key: str = "image", **fields: Any) -> dict[str, Any]:
    return {key: frame(number), "entropy": 0.1, "confidence": 0.9, "class_count": 9, "emd_block_11": 20.0, **fields}


def test_ranking_files_are_read_as_published(tmp_path: Path) -> None:
    records = [
        record(1, val_set=False, emd_layer4_2=30.0),
        record(2, val_set=True, ground_truth="a\\b.png", image_exists=True, ground_truth_exists=True),
        record(3, emd_block_11=None),
        {"image": "with\\windows\\slashes.png"},
    ]
    ranking = read_ranking(written(tmp_path, "ranked_2k.json", records))
    assert ranking.images == (frame(1), frame(2), frame(3), "with/windows/slashes.png")
    assert ranking.truths == (None, "a/b.png", None, None)
    assert ranking.validation.tolist() == [False, True, False, False]
    assert sorted(ranking.values) == ["class_count", "confidence", "emd_block_11", "emd_layer4_2", "entropy"]
    np.testing.assert_array_equal(ranking.column("emd_block_11"), [20, 20, np.nan, np.nan])
    np.testing.assert_array_equal(ranking.column("emd_layer4_2"), [30, np.nan, np.nan, np.nan])
    taken = ranking.take(np.array([1, 0]))
    assert taken.images == (frame(2), frame(1)) and taken.truths == ("a/b.png", None)
    assert taken.validation.tolist() == [True, False]
    with pytest.raises(DataError, match=r"no score 'emd' in .*ranked_2k.json.*emd_block_11"):
        ranking.column("emd")


def test_the_published_selection_follows_its_rule(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [
        record(i, "image_path", emd_block_11=float(rng.uniform(16, 37)), class_count=int(rng.integers(5, 20)))
        for i in range(200)
    ]
    held = {int(i) for i in rng.choice(200, 40, replace=False)}
    master = read_ranking(written(tmp_path, "master_v1_tmp.json", rows))
    validation = read_ranking(written(tmp_path, "master_val.json", [{**rows[i], "val_set": True} for i in held]))
    left = [r for i, r in enumerate(rows) if i not in held and r["class_count"] >= 9]
    wanted = [r["image_path"] for r in sorted(left, key=lambda r: r["emd_block_11"])[:50]]
    assert list(select_published(master, validation, count=50).images) == wanted
    with pytest.raises(DataError, match=f"2500 images are asked for, but only {len(left)} are left"):
        select_published(master, validation)
    flagged = read_ranking(written(tmp_path, "flagged.json", [{**r, "val_set": i in held} for i, r in enumerate(rows)]))
    assert list(select_published(flagged, flagged.take(np.array([], np.int64)), count=50).images) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not JSON"),
        (b'[{"image": "a.png", "emd_block_11": 1', "not JSON"),
        (b"\xff\xfe[", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "not a list of objects"),
        (b"[]", "not a list of objects"),
        (b'["a.png"]', "not a list of objects"),
        (b'[{"emd_block_11": 1.0}]', "entry 0 has no path as 'image' or 'image_path'"),
        (b'[{"image": 3}]', "entry 0 has no path as 'image'"),
        (b'[{"image": "a"}, {"image": "b", "ground_truth": 1}]', "entry 1 has no path as 'ground_truth'"),
        (b'[{"image": "a", "val_set": "no"}]', "'val_set' of entry 0 is 'no'"),
        (b'[{"image": "a", "emd": 1}, {"image": "b", "emd": "2"}]', "'emd' of entry 1 is '2', not a finite"),
        (b'[{"image": "a", "emd": 1}, {"image": "b", "emd": true}]', "'emd' of entry 1 is 'True', not a finite"),
        (b'[{"image": "a", "emd": Infinity}]', "'emd' of entry 0 is 'inf', not a finite"),
        (b'[{"image": "a", "emd": NaN}]', "'emd' of entry 0 is 'nan', not a finite"),
        (b'[{"image": "a", "emd": 1' + b"0" * 400 + b"}]", "not a finite"),
        (b'[{"image": "a/b"}, {"image": "a\\\\b"}]', "a/b is listed twice"),
    ],
)
def test_damaged_ranking_files_have_one_clear_message(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "ranked.json"
    path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_ranking(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and message in said and "\n" not in said and len(said) < 400


def test_missing_ranking_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="is no ranking of images"):
            read_ranking(path)
