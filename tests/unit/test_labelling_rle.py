"""Brush masks against the bytes of the two programs that define the format, and against a slow restatement."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helpers.labelling_jobs import browser_rle, unpack
from segue.labelling import LabellingError
from segue.labelling.rle import decode_mask, encode_mask

# label-studio-sdk 2.1.2: converter.brush.mask2rle of the two masks below (which ends with 0 to 8 bits of padding)
SDK_SMALL = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 255, 252, 96, 17, 255, 198, 1, 127, 255, 15, 128, 0]
# fmt: off
SDK_LARGE = [0, 4, 194, 192, 57, 27, 255, 255, 255, 0, 242, 202, 96, 23, 255, 248, 31, 248, 5, 255, 255, 255, 254, 1,
             255, 255, 192, 63, 255, 248, 7, 40, 75, 0, 0]
# @thi.ng/rle-pack (npm): encode(rgba), (255, 0, 10, 255) where the small mask is, and alpha 40 at row 0, column 6
BROWSER_SMALL = [0, 0, 0, 140, 57, 27, 254, 23, 0, 15, 252, 0, 40, 162, 112, 0, 191, 192, 2, 161, 255, 4, 0, 42, 31,
                 240, 64, 2, 161, 255, 8, 0, 43, 254, 216, 0, 95, 224, 1, 80, 255, 130, 0, 21, 15, 248, 32, 1, 80, 255,
                 132, 0, 21, 255, 24, 0, 127, 224, 1, 95, 241, 128, 5, 254, 0, 21, 15, 248, 32, 1, 80, 255, 130, 0, 21,
                 15, 248, 64, 1, 95, 248, 124, 0]
# fmt: on


def small() -> np.ndarray:
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    mask[3, 0] = True
    return mask


def large() -> np.ndarray:
    mask = np.zeros((300, 260), bool)
    mask[100:102, 5:9] = True
    return mask


@pytest.mark.parametrize(("mask", "golden"), [(small(), SDK_SMALL), (large(), SDK_LARGE)], ids=["small", "large"])
def test_bytes_are_those_of_the_sdk(mask: np.ndarray, golden: list[int]) -> None:
    ours = encode_mask(mask)
    assert ours == golden[: len(ours)]
    assert not any(golden[len(ours) :]) and len(golden) - len(ours) <= 1
    np.testing.assert_array_equal(decode_mask(golden, mask.shape), mask)


def test_browsers_write_literals_and_soft_edges() -> None:
    np.testing.assert_array_equal(decode_mask(BROWSER_SMALL, (5, 7)), small())  # the pixel of alpha 40 does not count


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 40))))
def test_any_mask_survives(mask: np.ndarray) -> None:
    numbers = encode_mask(mask)
    np.testing.assert_array_equal(unpack(numbers), np.repeat(mask.ravel(), 4) * 255)
    np.testing.assert_array_equal(decode_mask(numbers, mask.shape), mask)


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 9), st.just(4))))
def test_any_canvas_is_read(rgba: np.ndarray) -> None:
    alpha = rgba[..., 3].astype(int)
    np.testing.assert_array_equal(
        decode_mask(browser_rle(rgba), rgba.shape[:2]), (2 * alpha >= alpha.max()) & (alpha > 0)
    )


def test_brushes_of_half_opacity_and_of_ones_count() -> None:
    for opacity in (1, 127):
        rgba = np.zeros((5, 7, 4), np.uint8)
        rgba[small()] = opacity
        np.testing.assert_array_equal(decode_mask(browser_rle(rgba), (5, 7)), small())


@pytest.mark.parametrize("runs", [65536, 65540, 131072, 200000])
def test_runs_longer_than_a_length_field(runs: int) -> None:
    mask = np.zeros((1, runs // 4 + 3), bool)
    mask[0, 1:-2] = True
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), mask.shape), mask)


@pytest.mark.parametrize("numbers", [None, 10**12, [], [1, 2], [300] * 20, ["a"], [-1] * 9, {"a": 1}, "abc"])
def test_what_is_no_mask_is_told(numbers: object) -> None:
    with pytest.raises(LabellingError, match="mask that can be read"):
        decode_mask(numbers, (5, 7))  # type: ignore[arg-type]


def test_a_mask_of_another_image_is_told_before_memory_is_asked_for() -> None:
    bomb = [255, 255, 255, 255, *SDK_SMALL[4:]]
    for numbers in (SDK_LARGE, bomb):
        with pytest.raises(LabellingError, match="another image"):
            decode_mask(numbers, (5, 7))


@given(st.integers(7, len(SDK_SMALL) - 3))
def test_a_mask_that_ends_early_is_told(length: int) -> None:
    with pytest.raises(LabellingError, match="ends early"):
        decode_mask(SDK_SMALL[:length], (5, 7))


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes_end_in_a_mask_or_in_one_message(tail: list[int]) -> None:
    with contextlib.suppress(LabellingError):
        assert decode_mask([*SDK_SMALL[:7], *tail], (5, 7)).shape == (5, 7)
