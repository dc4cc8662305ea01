"""Fingerprints against the published definition, SciPy, NumPy and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from segue.gap.distances import emd, frechet_distance, image_distances, normal_distance, outlying
from segue.gap.fingerprint import Gaussian, Histogram, count, gaussian
from segue.gap.layers import Probe
from segue.gap.ranges import Ranges, measure
from segue.ops import fingerprint as ops

WHOLE = torch.float64
# Distances of the 33 residual blocks in the figure of the vDNA project, and the blocks that it fine-tuned.
BARS = {
    1: "25.5 23.4 22.6",
    2: "24.0 18.8 17.0 16.4",
    3: "19.0 20.5 19.6 18.5 16.8 15.4 14.4 12.7 11.8 11.2 10.4 10.0 9.6 9.1 9.0 8.8 8.6 8.3 7.9 7.5 7.2 6.9 6.8",
    4: "10.4 12.1 12.8",
}


def counted(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    counts = torch.zeros(len(low), bins, dtype=torch.int64)
    ops.add_counts(counts, values, low, high)
    return counts


def published(values: Tensor, minima: Tensor, maxima: Tensor, bins: int) -> Tensor:
    """The published definition: normalise by the scaled limits, clamp, torch.histc neuron by neuron."""
    middle = 1.2 * (minima + maxima) / 2
    half = 1.2 * (maxima - minima) / 2 + 1e-8
    normal = ((values.double() - middle[:, None]) / half[:, None]).clamp(-1, 1)
    return torch.stack([torch.histc(normal[:, c], bins, -1, 1) for c in range(len(minima))]).long()


def histogram(*tables: Tensor) -> Histogram:
    return Histogram("made", 1, {str(n): table for n, table in enumerate(tables)})


def normal(mean: Tensor, scatter: Tensor, images: int = 2) -> Gaussian:
    return Gaussian("made", images, {"a": mean.double()}, {"a": scatter.double()})


@pytest.mark.parametrize("bins", [1, 7, 64, 1000])
@pytest.mark.parametrize(("images", "neurons", "positions"), [(3, 40, 300), (1, 5, 1), (2, 300, 2), (1, 2, 70_000)])
def test_counts_are_those_of_the_published_loop(bins: int, images: int, neurons: int, positions: int) -> None:
    g = torch.Generator().manual_seed(bins)
    values = torch.randn(images, neurons, positions, generator=g) * torch.rand(neurons, 1, generator=g) * 5
    values[:, ::2] = values[:, ::2].relu()  # with many equal values
    seen = torch.randn(neurons, 50, generator=g).mul_(2).double()
    ranges = Ranges("made", 1, {"a": seen.amin(1)}, {"a": seen.amax(1)}, "published")
    expected = published(values, seen.amin(1), seen.amax(1), bins)
    assert expected.sum(1).eq(images * positions).all()
    torch.testing.assert_close(counted(values, *ranges.limits("a"), bins), expected, rtol=0, atol=0)
    tokens = values.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(counted(tokens, *ranges.limits("a"), bins), expected, rtol=0, atol=0)


def test_ends_and_edges_of_the_range() -> None:
    low, high = torch.tensor([-1.0], dtype=WHOLE), torch.tensor([1.0], dtype=WHOLE)

    def bin_of(value: float) -> int:
        return int(counted(torch.tensor([[[value]]]), low, high, 4).argmax())

    assert [bin_of(x) for x in (-1, -0.5, 0, 0.5, 1)] == [0, 1, 2, 3, 3]
    assert [bin_of(x) for x in (-0.5000001, -1e-9, 0.4999999, -9e30, 9e30)] == [0, 1, 2, 0, 3]
    edges = torch.linspace(-1, 1, 5).repeat(3, 1, 2)
    assert int(counted(edges, low, high, 4).sum()) == edges.numel()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_earth_mover_is_scipys(bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, (2, 3, bins)) * rng.integers(0, 2, (2, 3, bins))
    a[:, 0] += 1
    b[:, -1] += 1
    distance = emd(histogram(torch.tensor(a)), histogram(torch.tensor(b)))
    expected = [wasserstein_distance(range(bins), range(bins), x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(distance.neurons["0"], expected, rtol=0, atol=1e-9)
    assert distance.number == pytest.approx(np.mean(expected), abs=1e-9)


def test_earth_mover_from_kept_shares_equals_that_from_counts() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 1000, (300, 1000), generator=g) for _ in range(2))
    x, y = (c.double() / c.sum(1, keepdim=True) for c in (a, b))
    expected = (x - y).cumsum(1).abs().sum(1)
    torch.testing.assert_close(emd(histogram(a), histogram(b)).neurons["0"], expected, rtol=0, atol=1e-6)


def test_what_earth_mover_must_be() -> None:
    table = torch.zeros(2, 10, dtype=torch.int64)
    table[0, 1], table[1, 2], table[1, 3] = 7, 4, 2
    moved = table.roll(5, 1)
    a, b = histogram(table), histogram(moved)
    assert emd(a, b).neurons["0"].tolist() == pytest.approx([5, 5])
    assert emd(a, a).number == 0
    assert emd(a, b).number == emd(b, a).number
    assert emd(histogram(10 * table), b).number == emd(a, b).number
    # A number is the mean over neurons, not over layers.
    both = emd(histogram(table, table[:1]), histogram(moved, table[:1]))
    assert both.layers == pytest.approx({"0": 5, "1": 0}) and both.number == pytest.approx(10 / 3)
    assert emd(histogram(table, table[:1]), histogram(moved, table[:1]), ["1"]).number == 0


def test_normal_distances_by_hand() -> None:
    a, b = normal(torch.tensor([0.0]), torch.tensor([1.0])), normal(torch.tensor([2.0]), torch.tensor([4.0]))
    assert normal_distance(a, b).number == pytest.approx(4 + 1 + 4 - 4)
    # Of covariances that commute FD is the sum of the neurons' own distances, and NFD takes the diagonal.
    full = [normal(g.means["a"].repeat(2), torch.diag(g.scatter["a"].repeat(2))) for g in (a, b)]
    assert frechet_distance(*full).number == pytest.approx(10)
    assert normal_distance(*full).number == pytest.approx(5)
    assert frechet_distance(full[0], full[0]).number == 0


@pytest.mark.parametrize("images", [3, 200])  # fewer than neurons: singular covariances
def test_frechet_is_the_root_of_the_product(images: int) -> None:
    rng = np.random.default_rng(images)
    sets = [rng.normal(size=(images, 12)) @ rng.normal(size=(12, 12)) + shift for shift in (0, 0.3)]
    means, covariances = [x.mean(0) for x in sets], [np.cov(x.T) for x in sets]
    small = 1e-10 * np.eye(12)
    root = sqrtm((covariances[0] + small) @ (covariances[1] + small)).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    prints = [
        normal(torch.tensor(m), torch.tensor(c) * (images - 1), images) for m, c in zip(means, covariances, strict=True)
    ]
    assert frechet_distance(*prints).number == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(prints[0], prints[0]).number == pytest.approx(0, abs=1e-10)


def test_normal_forms_are_numpys_mean_and_covariance() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh())
    probe = Probe(network, ["1"])
    images = [torch.rand(n, 3, 12, 12) for n in (2, 5, 1)]
    with torch.no_grad():
        by_image = torch.cat([network(x).double().mean((2, 3)) for x in images]).numpy()
    full, diagonal = gaussian(probe, images, full=True), gaussian(probe, images)
    np.testing.assert_allclose(full.means["1"], by_image.mean(0), rtol=1e-10)
    np.testing.assert_allclose(full.spread("1"), np.cov(by_image.T), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(diagonal.variance("1"), by_image.var(0, ddof=1), rtol=1e-10)
    torch.testing.assert_close(full.variance("1"), diagonal.variance("1"), rtol=1e-10, atol=0)
    assert not gaussian(probe, [images[2]]).variance("1").any()


def test_merging_far_from_zero_loses_nothing() -> None:
    """Sums of squares would: deviations of 1e-3 around 1e4."""
    rng = np.random.default_rng(0)
    values = 1e4 + 1e-3 * rng.normal(size=(90, 4))
    parts = [
        normal(torch.tensor(x.mean(0)), torch.tensor(((x - x.mean(0)) ** 2).sum(0)), len(x))
        for x in np.split(values, [7, 50])
    ]
    merged = parts[0].merge(*parts[1:])
    np.testing.assert_allclose(merged.means["a"], values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.variance("a"), values.var(0, ddof=1), rtol=1e-8)


def test_an_images_distance_is_that_of_its_own_fingerprint() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 130, 3, 2), nn.ReLU(), nn.Conv2d(130, 9, 3, 2))
    probe = Probe(network, ["1", "2"])
    batches = [torch.rand(3, 3, 16, 20), torch.rand(2, 3, 16, 20)]
    ranges = measure(probe, batches)
    reference = count(probe, ranges, batches, 1000)
    found = image_distances(probe, reference, [2 * batch for batch in batches])
    for n, image in enumerate(torch.cat(batches).mul(2)):
        own = emd(count(probe, ranges, [image[None]], 1000), reference)
        assert float(found.numbers[n]) == pytest.approx(own.number, rel=1e-9)
        assert {k: float(v[n]) for k, v in found.layers.items()} == pytest.approx(own.layers, rel=1e-9)


def test_layers_that_the_project_fine_tuned() -> None:
    bars = {f"layer{k}.{n}": float(v) for k, row in BARS.items() for n, v in enumerate(row.split())}
    assert len(bars) == 33
    assert set(outlying(bars)) == {"layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer3.1", "layer3.2"}
    # Standard deviations are those of a population: 1/3 + 1.3 sqrt(2)/3 is below 1.
    assert outlying({"a": 0.0, "b": 0.0, "c": 1.0}, 1.3) == ("c",)
