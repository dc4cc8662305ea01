"""Densities of regions: against the closed form of one Gaussian, and when a class cannot be fitted."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.region_tables import table
from segue.acquire import RegionTable, TableError, build_acquisition
from segue.acquire.table import LOG_DENSITIES
from segue.errors import UserError
from segue.ops.mixtures import Fit, MixtureConfig
from segue.survey import DensitiesConfig, Mixtures, densities, fill_densities
from segue.survey.densities import MIXTURES, estimate

CONFIG = DensitiesConfig(dimensions=3)
NO_DENSITIES = dict.fromkeys(LOG_DENSITIES)


def regions(rows: int, seed: int = 0) -> RegionTable:
    """Without densities."""
    return table(rows, seed, **NO_DENSITIES)


def only(full: RegionTable, kept: Callable[[RegionTable], Any]) -> RegionTable:
    return full.take(kept(full))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(target: RegionTable, source: RegionTable, config: DensitiesConfig = CONFIG, seed: int = 0) -> Any:
    return estimate(target, source, config, draws(seed))


def gaussian(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Log-density of the Gaussian that is fitted to points, with scikit-learn's floor."""
    covariance = np.cov(points.T, bias=True) + 1e-6 * np.eye(points.shape[1])
    apart = at - points.mean(0)
    distance = np.einsum("nd,de,ne->n", apart, np.linalg.inv(covariance), apart)
    return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])


@pytest.mark.parametrize("dimensions", [3, 8, 64])
def test_a_small_class_is_one_gaussian_of_the_shared_axes(dimensions: int) -> None:
    target, source = regions(300, 1), regions(200, 2)
    x, y = target.statistic("embedding").astype(float), source.statistic("embedding").astype(float)
    both = np.concatenate([y, x])
    axes = np.linalg.eigh(np.cov(both.T))[1][:, ::-1][:, :dimensions]
    _, found = run(target, source, DensitiesConfig(dimensions=dimensions))
    for given, kinds, values in ((y, source.predicted, found[0]), (x, target.predicted, found[1])):
        assert values.dtype == np.float32
        for c in range(5):
            assert 10 < (kinds == c).sum() < 100
            expected = gaussian((given - both.mean(0))[kinds == c] @ axes, (x - both.mean(0)) @ axes)
            mine = target.predicted == c
            np.testing.assert_allclose(values[mine], expected[mine], rtol=1e-4, atol=1e-4)


def test_components_follow_each_domains_own_number() -> None:
    mixtures, _ = run(regions(2500, 1), regions(900, 2))
    for c, pair in mixtures.of_class.items():
        numbers = [int((regions(n, s).predicted == c).sum()) for n, s in ((900, 2), (2500, 1))]
        assert [len(m.weights) for m in pair] == [n // 100 for n in numbers]


def test_large_classes_are_drawn_from_by_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = densities.fit_mixtures, []

    def fit(sets: Any, *more: Any) -> Any:
        sizes.extend(len(points) for points in sets)
        return real(sets, *more)

    monkeypatch.setattr(densities, "fit_mixtures", fit)
    target, source, config = regions(600, 1), regions(400, 2), DensitiesConfig(dimensions=3, most_points=50)
    first, again, other = (run(target, source, config, seed)[1] for seed in (0, 0, 1))
    assert set(sizes) == {50}
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert not np.allclose(first, other)


def _without_class_1(t: RegionTable) -> Any:
    return t.predicted != 1


def _one_of_class_1(t: RegionTable) -> Any:
    rows = np.flatnonzero(t.predicted == 1)
    return (t.predicted != 1) | (np.arange(len(t)) == rows[0])


@pytest.mark.parametrize(
    ("of_target", "of_source", "words"),
    [
        (_without_class_1, None, "no region of the target"),
        (_one_of_class_1, None, "target: 1 points: at least 2"),
        (None, _without_class_1, "source: 0 points"),
        (None, _one_of_class_1, "source: 1 points"),
    ],
)
def test_a_class_without_enough_regions_is_skipped(of_target: Any, of_source: Any, words: str) -> None:
    target, source = regions(300, 1), regions(200, 2)
    target = only(target, of_target) if of_target else target
    source = only(source, of_source) if of_source else source
    mixtures, found = run(target, source)
    assert list(mixtures.skipped) == [1] and words in mixtures.skipped[1]
    assert sorted(mixtures.of_class) == [0, 2, 3, 4]
    for values in found:
        np.testing.assert_array_equal(np.isnan(values), target.predicted == 1)


def test_fewer_regions_than_components_are_asked_for() -> None:
    config = DensitiesConfig(dimensions=3, mixtures=MixtureConfig(points_per_component=1, min_points=2))
    mixtures, found = run(regions(40, 1), regions(30, 2), config)
    assert not mixtures.skipped.keys() & mixtures.of_class.keys()
    assert len(mixtures.skipped) + len(mixtures.of_class) == 5
    for c in mixtures.of_class:
        assert np.isfinite(np.array(found)[:, regions(40, 1).predicted == c]).all()


def raising(error: Exception) -> Callable[..., Any]:
    def fit(*_: Any) -> Any:
        raise error

    return fit


def timed_out(sets: Any, *_: Any) -> list[Fit]:
    return [Fit(None, "skipped", "5 points: not enough memory", torch.zeros(0)) for _ in sets]


@pytest.mark.parametrize("domain", [0, 1])
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (raising(MemoryError()), "not enough memory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "not enough memory"),
        (raising(RuntimeError("DefaultCPUAllocator: can't allocate memory")), "not enough memory"),
        (raising(torch.linalg.LinAlgError("cholesky: not positive-definite")), "LinAlgError: cholesky"),
        (raising(FloatingPointError("underflow")), "FloatingPointError: underflow"),
        (raising(UserError("a mixture has a covariance that is not positive definite")), "covariance"),
        (timed_out, "not enough memory"),
    ],
)
def test_a_fit_that_fails_costs_its_class_alone(
    broken: Any, words: str, domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, source = regions(300, 1), regions(200, 2)
    _, whole = run(target, source)
    real, calls = densities.fit_mixtures, iter(range(100))

    def fit(*given: Any) -> Any:
        return (broken if next(calls) == 2 * 2 + domain else real)(*given)

    monkeypatch.setattr(densities, "fit_mixtures", fit)
    mixtures, found = run(target, source)
    # source and target of classes 0 and 1, then those of class 2; after a failing source its target is not tried
    assert list(mixtures.skipped) == [2] and words in mixtures.skipped[2]
    assert sorted(mixtures.of_class) == [0, 1, 3, 4]
    for values, before in zip(found, whole, strict=True):
        np.testing.assert_array_equal(np.isnan(values), target.predicted == 2)
        np.testing.assert_array_equal(values[target.predicted != 2], before[target.predicted != 2])


def test_densities_that_cannot_be_evaluated_cost_their_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = regions(300, 1), regions(200, 2)
    real, calls = densities.Mixture.log_density, iter(range(100))

    def log_density(self: Any, points: Any) -> Any:
        if next(calls) == 1:
            raise MemoryError
        return real(self, points)

    monkeypatch.setattr(densities.Mixture, "log_density", log_density)
    mixtures, found = run(target, source)
    assert mixtures.skipped == {0: "not enough memory"}
    for values in found:
        np.testing.assert_array_equal(np.isnan(values), target.predicted == 0)


def test_when_time_is_over_the_classes_that_are_left_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1, 2, 3, 4, *[2000.0] * 100])
    monkeypatch.setattr(densities, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    mixtures, found = run(regions(300, 1), regions(200, 2), CONFIG.model_copy(update={"time_limit_s": 1800}))
    assert mixtures.skipped == dict.fromkeys([2, 3, 4], "no time left of 1800 s (time_limit_s)")
    assert list(mixtures.of_class) == [0, 1]
    assert np.isnan(found[0]).any() and np.isfinite(found[0]).any()


def test_a_mixture_without_an_iteration_is_none_and_one_that_was_stopped_is_told() -> None:
    target, source = regions(900, 1), regions(700, 2)
    none, _ = run(target, source, DensitiesConfig(dimensions=3, mixtures=MixtureConfig(time_limit_s=0)))
    assert len(none.skipped) == 5 and "time_limit_s reached" in none.skipped[0]
    short, found = run(target, source, DensitiesConfig(dimensions=3, mixtures=MixtureConfig(max_iterations=1)))
    assert not short.skipped and np.isfinite(found).all()
    assert set(short.unfinished) == set(range(5)) and "max_iterations reached" in short.unfinished[0]


@pytest.mark.parametrize(
    ("target", "source"),
    [(regions(2, 1), regions(1, 2)), (regions(300, 1), regions(9, 2).take([]))],
)
def test_without_any_density_there_is_an_order_at_random(
    target: RegionTable, source: RegionTable, tmp_path: Path
) -> None:
    target.save(tmp_path)
    filled, skipped = fill_densities(tmp_path, source, CONFIG, draws())
    assert set(skipped) == set(range(5))
    assert np.isnan(filled.statistic("source_log_density")).all()
    orders = [
        list(build_acquisition({"name": "density"}).rank(filled, filled.take([]), source, 9, np.random.default_rng(s)))
        for s in (0, 0, 1)
    ]
    assert sorted(orders[0]) == list(range(len(target)))
    assert orders[0] == orders[1]
    if len(target) > 9:
        assert orders[0] != orders[2] and orders[0] != sorted(orders[0])


def test_they_are_stored_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions(300, 1).save(tmp_path)
    source = only(regions(200, 2), _without_class_1)
    filled, skipped = fill_densities(tmp_path, source, CONFIG, draws())
    assert list(skipped) == [1]
    mixtures, columns = run(regions(300, 1), source)
    for name, values in zip(LOG_DENSITIES, columns, strict=True):
        np.testing.assert_array_equal(filled.statistic(name), values)
    stored = Mixtures.load(tmp_path / MIXTURES)
    assert (stored.skipped, stored.unfinished) == (mixtures.skipped, mixtures.unfinished)
    assert stored.of_class.keys() == mixtures.of_class.keys()
    assert stored.projection is not None
    points = stored.projection.project(torch.from_numpy(filled.statistic("embedding")))
    for c, pair in stored.of_class.items():
        mine = filled.predicted == c
        for values, mixture in zip(columns, pair, strict=True):
            np.testing.assert_allclose(mixture.log_density(points).numpy()[mine], values[mine], rtol=1e-6)

    def fitted(*_: Any) -> Any:
        raise AssertionError("fitted again")

    monkeypatch.setattr(densities, "fit_mixtures", fitted)
    again, told = fill_densities(tmp_path, source, CONFIG, draws())
    assert told == skipped
    np.testing.assert_array_equal(again.statistic(LOG_DENSITIES[0]), columns[0])
    changed = [
        (source, CONFIG, draws(1)),
        (source.take([0, 1, 2]), CONFIG, draws()),
        (source, DensitiesConfig(), draws()),
    ]
    for given in changed:
        with pytest.raises(AssertionError, match="fitted again"):
            fill_densities(tmp_path, *given)
    assert not (tmp_path / MIXTURES).exists()


@pytest.mark.parametrize("damage", ["deleted", "cut", "other"])
def test_mixtures_that_are_damaged_or_gone_are_fitted_again(damage: str, tmp_path: Path) -> None:
    regions(300, 1).save(tmp_path)
    path = tmp_path / MIXTURES
    first, _ = fill_densities(tmp_path, regions(200, 2), CONFIG, draws())
    whole = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(whole[:99] if damage == "cut" else b"something else")
        with pytest.raises(UserError, match="damaged, or holds no mixtures"):
            Mixtures.load(path)
    again, _ = fill_densities(tmp_path, regions(200, 2), CONFIG, draws())
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(again.statistic(LOG_DENSITIES[1]), first.statistic(LOG_DENSITIES[1]))


@pytest.mark.parametrize("what", ["append_column", "replacing"])
def test_a_full_disk_is_one_message(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions(300, 1).save(tmp_path)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(densities, what, full)
        with pytest.raises(UserError, match="the disk is full"):
            fill_densities(tmp_path, regions(200, 2), CONFIG, draws())
    filled, _ = fill_densities(tmp_path, regions(200, 2), CONFIG, draws())
    assert set(LOG_DENSITIES) < set(filled.names)


def test_tables_without_embeddings_are_told(tmp_path: Path) -> None:
    bare = table(30, embedding=None)
    for target, source in ((bare, regions(30)), (regions(30), bare)):
        target.save(tmp_path)
        with pytest.raises(TableError, match="no statistic 'embedding'"):
            fill_densities(tmp_path, source, CONFIG, draws())


def test_what_is_dense_in_the_target_only_comes_first() -> None:
    """Two classes; along the first axis the target lies 2 beside the source."""
    kinds = np.repeat([0, 1], 300)

    def domain(shift: float, seed: int) -> RegionTable:
        points = np.random.default_rng(seed).standard_normal((600, 3)) + 5 * kinds[:, None]
        points[:, 0] += shift
        keys = {"image": np.zeros(600, int), "region": np.arange(600), "area_px": np.ones(600, int)}
        return RegionTable.build(["a"], 2, **keys, predicted=kinds, statistics={"embedding": points})

    target = domain(2.0, 1)
    _, (source_density, target_density) = run(target, domain(0.0, 0))
    difference = source_density - target_density
    assert difference.mean() < 0
    moved = target.statistic("embedding")[:, 0]
    for c in (0, 1):
        mine = np.flatnonzero(kinds == c)
        first = mine[np.argsort(difference[mine])[:20]]
        assert moved[first].mean() > moved[mine].mean() + 1
