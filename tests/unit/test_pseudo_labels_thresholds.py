"""Thresholds from counts against sorting every confidence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import UserError
from segue.pseudo_labels.thresholds import REFUSED, Histogram, apply, decode, encode, limits, published

F32 = npt.NDArray[np.float32]
C = 5
STEP = 2**-11  # of 1 - p, half a code's width and then some


def by_sorting(classes: npt.NDArray[np.uint8], confidence: F32, quantile: float, cap: float) -> list[float]:
    """The published rule in float64; its index error past the last pixel is mended."""
    out = []
    for c in range(C):
        x = np.sort(confidence[classes == c].astype(np.float64))
        out.append(min(float(x[min(int(np.round(len(x) * quantile)), len(x) - 1)]), cap) if len(x) else 0.0)
    return out


def counted(classes: npt.NDArray[np.uint8], confidence: F32) -> Histogram:
    histogram = Histogram(C)
    histogram.add(classes, confidence)
    return histogram


def kept_by_codes(classes: npt.NDArray[np.uint8], confidence: F32, thresholds: npt.NDArray[np.float64]) -> npt.NDArray:
    return apply(classes[None], encode(confidence)[None], limits(thresholds))[0]


PIXELS = st.lists(st.tuples(st.integers(0, C - 1), st.floats(0, 1, width=32)), min_size=1, max_size=80)
SHARES = st.one_of(st.sampled_from([0.0, 0.5, 0.66, 1.0]), st.floats(0, 1))


@settings(max_examples=300, deadline=None)
@given(PIXELS, SHARES, st.one_of(st.sampled_from([0.9, 1.0]), st.floats(0.01, 1)))
def test_thresholds_are_those_of_sorting(pixels: list[tuple[int, float]], quantile: float, cap: float) -> None:
    classes = np.array([c for c, _ in pixels], np.uint8)
    confidence = np.array([p for _, p in pixels], np.float32)
    histogram = counted(classes, confidence)
    found = published(histogram, quantile, cap)
    exact = by_sorting(classes, confidence, quantile, cap)
    assert found.shape == (C,) and found.dtype == np.float64
    assert np.abs(found - exact).max() <= 2.5e-4
    assert (np.abs(found - exact) <= STEP * (1 - np.array(exact)) + 2**-24).all()
    labels = kept_by_codes(classes, confidence, found)
    kept = labels != 255
    assert (labels[kept] == classes[kept]).all()
    # who is kept differs from sorting by the width of a code, and by nothing that the counts do not say
    limit = np.array(exact)[classes]
    slack = 4 * STEP * (1 - limit) + 2**-23
    assert kept[confidence >= limit + slack].all() and not kept[confidence < limit - slack].any()
    assert histogram.pixels().tolist() == np.bincount(classes, minlength=C).tolist()


def kept_of(confidence: F32, quantile: float, cap: float) -> tuple[float, int]:
    """Threshold of pixels of class 0, and how many it keeps."""
    classes = np.zeros(len(confidence), np.uint8)
    thresholds = published(counted(classes, confidence), quantile, cap)
    return float(thresholds[0]), int((kept_by_codes(classes, confidence, thresholds) == 0).sum())


def test_the_published_index_with_one_pixel_with_none_and_with_ties() -> None:
    one = counted(np.array([1], np.uint8), np.array([0.5], np.float32))
    assert published(one, 0.66, 0.9).tolist() == [0, 0.5, 0, 0, 0]
    assert kept_of(np.full(9, 0.75, np.float32), 0.66, 0.9) == (0.75, 9)
    hundred = np.linspace(0, 0.99, 100, dtype=np.float32)
    assert kept_of(hundred, 0.66, 1) == (pytest.approx(0.66, abs=2.5e-4), 34)
    assert kept_of(hundred, 0.66, 0.4) == (0.4, 60)


def test_quantile_0_keeps_all_and_every_class_may_have_its_own() -> None:
    assert kept_of(np.linspace(0.1, 0.99, 50, dtype=np.float32), 0, 0.9)[1] == 50
    rng = np.random.default_rng(0)
    classes, confidence = rng.integers(0, C, 5000).astype(np.uint8), rng.random(5000, np.float32)
    quantiles = [0, 0.25, 0.5, 0.9, 1]
    found = published(counted(classes, confidence), quantiles, 1)
    alone = [by_sorting(classes, confidence, q, 1)[c] for c, q in enumerate(quantiles)]
    assert np.abs(found - alone).max() < 1e-3


def test_a_refused_pixel_counts_for_the_threshold_and_gets_no_label() -> None:
    rng = np.random.default_rng(1)
    classes, confidence = rng.integers(0, C, 1000).astype(np.uint8), rng.random(1000, np.float32)
    refused = rng.random(1000) < 0.3
    codes = encode(confidence) | REFUSED * refused
    histogram = Histogram(C)
    histogram.add_codes(classes, codes)
    assert np.array_equal(histogram.counts, counted(classes, confidence).counts)
    thresholds = published(histogram, 0.4, 1)
    label = apply(classes[None], codes[None], limits(thresholds))[0]
    assert (label == np.where(refused, 255, kept_by_codes(classes, confidence, thresholds))).all()
    assert (apply(classes[None], codes[None], limits(np.zeros(C)))[0] == 255).tolist() == refused.tolist()


def networks(rng: np.random.Generator, number: int) -> tuple[npt.NDArray[np.uint8], F32]:
    """Predictions as networks make them: some classes unsure, most pixels so sure that float32 says 1."""
    scale = rng.choice([1.0, 4.0, 12.0, 40.0], (number, 1))
    logits = torch.from_numpy(rng.standard_normal((number, C)) * scale + np.linspace(0, 2, C)).float()
    confidence, classes = logits.softmax(1).max(1)
    return classes.numpy().astype(np.uint8), confidence.numpy()


@pytest.mark.parametrize("cap", [0.9, 1.0])
@pytest.mark.parametrize("quantile", [0.3, 0.66, 0.95])
def test_the_kept_share_is_that_of_sorting_also_without_a_cap(quantile: float, cap: float) -> None:
    classes, confidence = networks(np.random.default_rng(0), 400_000)
    histogram = counted(classes, confidence)
    found, exact = published(histogram, quantile, cap), by_sorting(classes, confidence, quantile, cap)
    assert np.abs(found - exact).max() < 1e-3
    kept = np.bincount(classes[confidence >= np.float32(np.array(exact))[classes]], minlength=C)
    ours = np.bincount(kept_by_codes(classes, confidence, found), minlength=256)[:C]
    assert np.abs(ours - kept).max() < 1e-3 * histogram.pixels().min()


def test_counts_do_not_depend_on_order_or_shards_bit_for_bit() -> None:
    classes, confidence = networks(np.random.default_rng(1), 30_000)
    whole = counted(classes, confidence)
    order = np.random.default_rng(2).permutation(len(classes))
    parts = np.array_split(order, 7)
    shards = [counted(classes[part], confidence[part]) for part in parts]
    total = shards[3] + shards[0] + shards[6] + shards[1] + shards[5] + shards[2] + shards[4]
    assert np.array_equal(total.counts, whole.counts)
    assert published(total, 0.66, 1).tobytes() == published(whole, 0.66, 1).tobytes()


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50))
@settings(deadline=None)
def test_codes_keep_the_order_and_stand_for_their_value(values: list[float]) -> None:
    confidence = np.sort(np.array(values, np.float32))
    codes = encode(confidence)
    assert (np.diff(codes.astype(int)) <= 0).all()
    assert (np.abs(decode(codes) - confidence.astype(np.float64)) <= STEP * (1 - confidence) + 2**-25).all()
    assert (encode(decode(codes)) == codes).all()
    assert (encode(torch.from_numpy(confidence)) == codes).all()


def test_near_certainty_every_float_has_a_code_of_its_own() -> None:
    sure = np.float32(1) - np.arange(0, 2**11, dtype=np.float32) * np.float32(2**-24)
    assert len(np.unique(encode(sure))) == len(np.unique(sure)) == 2**11
    assert (decode(encode(sure)) == sure).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.001, -0.001])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        encode(np.array([0.5, value], np.float32))


def test_classes_outside_the_space_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Histogram(C).add(np.array([C], np.uint8), np.array([0.5], np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        Histogram(C).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="cannot add"):
        Histogram(2) + Histogram(3)
