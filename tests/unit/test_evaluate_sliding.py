"""Sliding windows: inside the image, flush with its border, averaged as a plain loop would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.ops.sliding import slide, starts


def _score(part: Tensor) -> Tensor:
    """Depends on the window's content and on the place inside it, so that wrong places are seen."""
    rows = torch.arange(part.shape[-2], dtype=part.dtype).view(-1, 1)
    return torch.cat([part.mean((1, 2, 3), keepdim=True) * part[:, :1], part[:, 1:2] + rows, part[:, 2:] * 2], 1)


@given(st.integers(1, 90), st.integers(1, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_windows_cover_everything_and_lie_inside(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = starts(length, window, stride)
    assert len(found) == max(length - window + stride - 1, 0) // stride + 1, "the published number of windows"
    size = min(window, length)
    covered = {pixel for start in found for pixel in range(start, start + size)}
    assert covered == set(range(length))
    assert found == sorted(set(found)) and found[0] == 0 and found[-1] == length - size


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("size", [(20, 31), (16, 16), (17, 40)])
def test_overlaps_are_averages(size: tuple[int, int], batch: int) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window, stride = (8, 16), (5, 7)
    total, seen = torch.zeros(2, 3, *size, dtype=torch.float64), torch.zeros(size)
    for i in range(-(-(size[0] - window[0]) // stride[0]) + 1):
        for j in range(-(-(size[1] - window[1]) // stride[1]) + 1):
            bottom, right = min(i * stride[0] + window[0], size[0]), min(j * stride[1] + window[1], size[1])
            part = (..., slice(bottom - window[0], bottom), slice(right - window[1], right))
            total[part] += _score(image[part])
            seen[part[1:]] += 1
    assert torch.allclose(slide(image, window, stride, _score, batch), total / seen, rtol=0, atol=1e-12)


def test_one_window_is_the_whole_image() -> None:
    image = torch.rand(1, 3, 20, 30)
    for window in ((20, 30), (50, 30), (64, 64)):
        assert torch.equal(slide(image, window, (7, 9), _score), _score(image))


def test_a_constant_stays_constant() -> None:
    found = slide(torch.rand(1, 3, 33, 47), (16, 16), (5, 3), lambda part: torch.full_like(part, 0.3))
    assert torch.allclose(found, torch.full_like(found, 0.3), rtol=0, atol=1e-6)


def test_strides_of_a_window_cut_the_image_into_independent_parts() -> None:
    image = torch.rand(1, 3, 32, 48)
    found = slide(image, (16, 16), (16, 16), _score)
    for top in range(0, 32, 16):
        for left in range(0, 48, 16):
            part = (..., slice(top, top + 16), slice(left, left + 16))
            assert torch.allclose(found[part], _score(image[part]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(8, 9), (8, 0), (0, 1)])
def test_gaps_are_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        starts(20, window, stride)
