"""Pooling over regions against upsampling and loops over regions, in numpy or float64."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.toys import Toy
from segue.errors import UserError
from segue.models.base import Output
from segue.ops.regions import Pooling, class_counts, pixel_sums, pooling

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
ALIGNMENTS = pytest.mark.parametrize("align_corners", [False, True])


def blocks(size: tuple[int, int], number: int, seed: int = 0) -> Tensor:
    """(H,W) ids of pieces that are not rectangles: nearest of ``number`` random points."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in size), indexing="ij")
    points = torch.rand(number, 2, generator=g, dtype=torch.float64) * torch.tensor(size)
    return torch.cdist(torch.stack([y, x], -1).view(-1, 2), points).argmin(1).view(size)


def brute_force(maps: Tensor, regions: Tensor, number: int) -> Tensor:
    """Means of full-size maps (D,H,W), one region after the other; 0 where there is no pixel."""
    out = torch.zeros(number, len(maps), dtype=torch.float64)
    for r in range(number):
        inside = maps[:, regions == r].double()
        out[r] = inside.mean(1) if inside.shape[1] else 0
    return out


def output(grid: tuple[int, int], size: tuple[int, int], padded: tuple[int, int], align_corners: bool) -> Output:
    """What a model says about its grid."""
    nothing = torch.empty(1, 1, *grid)
    return Output(logits=nothing, embedding=nothing, size=size, padded=padded, align_corners=align_corners)


@ALIGNMENTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [(13, 20), (26, 40), (104, 160), (1, 1), (3, 160), (120, 200)])
def test_means_equal_upsample_and_mean(grid: tuple[int, int], dtype: torch.dtype, align_corners: bool) -> None:
    regions, number = blocks((104, 160), 17), 17
    maps = torch.randn(9, *grid, generator=torch.Generator().manual_seed(1), dtype=dtype)
    full = F.interpolate(maps[None], regions.shape, mode="bilinear", align_corners=align_corners)[0]
    made = pooling(regions, number, grid, align_corners=align_corners, dtype=dtype)
    expected = brute_force(full, regions, number)
    tolerance = TOLERANCE[dtype]
    means = made.means(maps)
    assert means.dtype == dtype
    torch.testing.assert_close(means.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(made.area_px, torch.bincount(regions.flatten(), minlength=number))
    sums = expected * made.area_px.unsqueeze(1)
    torch.testing.assert_close(made.sums(maps).double(), sums, rtol=tolerance, atol=tolerance * float(sums.abs().max()))


@ALIGNMENTS
def test_the_margin_of_a_padded_image_is_cut_off(align_corners: bool) -> None:
    """227x320 as IDD-lite, padded to 256x320; and regions of the file where the network saw a smaller image."""
    grid, size, padded = (16, 20), (227, 320), (256, 320)
    maps = torch.randn(5, *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = output(grid, size, padded, align_corners)
    regions = blocks(size, 30)
    made = pooling(regions, 30, grid, padded, align_corners, torch.float64)
    expected = brute_force(held.upsample(maps[None])[0], regions, 30)
    torch.testing.assert_close(made.means(maps), expected, rtol=1e-9, atol=1e-9)
    uncut = pooling(regions, 30, grid, None, align_corners, torch.float64)
    assert (uncut.means(maps) - expected).abs().max() > 0.01, "the margin does matter here"
    larger = (454, 640)
    regions = blocks(larger, 30)
    made = pooling(regions, 30, grid, held.covered(larger), align_corners, torch.float64)
    expected = brute_force(held.upsample(maps[None], larger)[0], regions, 30)
    torch.testing.assert_close(made.means(maps), expected, rtol=1e-9, atol=1e-9)


@ALIGNMENTS
def test_of_a_network(align_corners: bool) -> None:
    model = Toy(align_corners=align_corners).eval()
    image = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(image)
        expected = brute_force(found.upsample(found.embedding)[0], blocks((45, 70), 6), 6)
        grid = (found.embedding.shape[-2], found.embedding.shape[-1])
        made = pooling(blocks((45, 70), 6), 6, grid, found.padded, found.align_corners)
        means = made.means(found.embedding[0])
    assert found.padded != found.size
    torch.testing.assert_close(means.double(), expected, rtol=1e-5, atol=1e-5)


SIDE = st.integers(1, 24)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.integers(1, 9), st.booleans(), SIDE)
def test_pooling_of_any_sizes(
    size: tuple[int, int], grid: tuple[int, int], margin: tuple[int, int], number: int, align: bool, seed: int
) -> None:
    """Rows add up to one, means are bounded by the map, sums are linear, ids outside and empty regions are left out."""
    g = torch.Generator().manual_seed(seed)
    covered = (size[0] + margin[0], size[1] + margin[1])
    regions = torch.randint(-2, number + 3, size, generator=g)
    made = pooling(regions, number, grid, covered, align, torch.float64)
    maps = torch.randn(4, *grid, generator=g, dtype=torch.float64)
    full = F.interpolate(maps[None], covered, mode="bilinear", align_corners=align)[0, :, : size[0], : size[1]]
    means = made.means(maps)
    torch.testing.assert_close(means, brute_force(full, regions, number), rtol=1e-9, atol=1e-9)
    present = made.area_px > 0
    ones = made.means(torch.ones(1, *grid, dtype=torch.float64))[:, 0]
    torch.testing.assert_close(ones, present.double(), rtol=1e-12, atol=1e-12)
    assert (means[present] <= maps.amax((1, 2)) + 1e-9).all()
    torch.testing.assert_close(made.means(2 * maps[:2] - maps[2:]), 2 * means[:, :2] - means[:, 2:])
    assert (made.matrix.values() > 0).all(), "no zero is stored"


def test_many_strips_and_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    regions, maps = blocks((64, 48), 11), torch.randn(7, 16, 12, generator=torch.Generator().manual_seed(0))
    whole = pooling(regions, 11, (16, 12))
    expected = whole.means(maps)
    monkeypatch.setattr("segue.ops.regions._ROWS_VALUES", 2 * 48 * 5)
    monkeypatch.setattr("segue.ops.regions._PRODUCT_VALUES", 16 * 12 * 2)
    parts = pooling(regions, 11, (16, 12))
    assert torch.equal(parts.matrix.col_indices(), whole.matrix.col_indices())
    torch.testing.assert_close(parts.matrix.values(), whole.matrix.values(), rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.means(maps), expected)


def test_half_precision_maps_are_pooled_in_float32() -> None:
    regions, maps = blocks((32, 32), 5), torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    made = pooling(regions, 5, (8, 8))
    assert torch.equal(made.means(maps), made.means(maps.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.means(maps), made.means(maps.float()))


def test_a_map_on_another_grid_is_refused() -> None:
    made = pooling(blocks((32, 32), 5), 5, (8, 8))
    for shape in ((3, 8, 9), (3, 4, 16), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"grid \(8, 8\)"):
            made.means(torch.zeros(shape))


def test_pixel_sums_and_class_counts_are_those_of_loops() -> None:
    g = torch.Generator().manual_seed(0)
    regions, values = torch.randint(-1, 8, (40, 56), generator=g), torch.rand(3, 40, 56, generator=g)
    predicted = torch.randint(0, 6, (40, 56), generator=g)
    predicted[predicted == 5] = 255
    ids, classes = regions.numpy(), predicted.numpy()
    sums, counts = pixel_sums(values, regions, 7), class_counts(predicted, regions, 7, 5)
    for r in range(7):
        np.testing.assert_allclose(sums[r], values.numpy()[:, ids == r].astype(np.float64).sum(1), rtol=1e-12)
        for c in range(5):
            assert counts[r, c] == ((ids == r) & (classes == c)).sum()
    assert (classes == 255).any() and counts.sum() < 40 * 56
    small = predicted.to(torch.uint8), regions.to(torch.int16)
    assert torch.equal(class_counts(*small, 7, 5), counts)
    assert torch.equal(pixel_sums(values, small[1], 7), sums)
    assert pixel_sums(values[:0], regions, 7).shape == (7, 0)


def test_large_regions_lose_no_digits() -> None:
    """One region of a million pixels: float32 would stop counting ones at 2^24 and drift long before."""
    values = torch.full((1, 1024, 1024), 0.1)
    zeros = torch.zeros(1024, 1024, dtype=torch.int64)
    expected = float(values[0, 0, 0].double()) * 2**20
    assert abs(float(pixel_sums(values, zeros, 1)) / expected - 1) < 1e-12


def test_sixteen_bit_ids_are_told_apart() -> None:
    regions = torch.arange(2**16).view(256, 256)
    maps = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    made = pooling(torch.from_numpy(regions.numpy().astype(np.uint16)), 2**16, (256, 256))
    assert torch.equal(made.means(maps)[:, 0], maps.flatten())


def test_a_kept_matrix_is_the_same(tmp_path: Path) -> None:
    regions, maps = blocks((64, 48), 11), torch.randn(7, 16, 12, generator=torch.Generator().manual_seed(0))
    made = pooling(regions, 11, (16, 12))
    path = tmp_path / "kept/a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.save(path)
        held = Pooling.load(path)
    assert held.grid == made.grid and torch.equal(held.area_px, made.area_px)
    assert torch.equal(held.means(maps), made.means(maps))
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]
    with pytest.raises(FileNotFoundError):
        Pooling.load(tmp_path / "none.pt")


def test_a_damaged_matrix_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    made = pooling(blocks((32, 32), 5), 5, (8, 8))
    made.save(path)
    data = path.read_bytes()
    for bad in (b"", data[: len(data) // 2], b"x" * 500):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"a\.pt is damaged"):
            Pooling.load(path)
    columns = made.matrix.col_indices()
    columns[3] = 64  # behind the grid: reading there would be a crash, or silence
    made.save(path)
    with pytest.raises(UserError, match=r"a\.pt is damaged"):
        Pooling.load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"no pooling matrix"):
        Pooling.load(path)
