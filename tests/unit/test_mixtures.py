"""Mixtures: what is skipped and why, time, memory, chunks, starts, and that EM never goes down."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from segue.errors import UserError
from segue.ops import mixtures
from segue.ops.mixtures import Fit, Mixture, MixtureConfig, fit_mixtures, principal_axes, working_bytes

CONFIG = MixtureConfig(points_per_component=50)


def cloud(points: int, dims: int = 4, apart: float = 4.0, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(3, dims, generator=g, dtype=torch.float64)
    noise = torch.randn(points, dims, generator=g, dtype=torch.float64)
    return centres[torch.randint(3, (points,), generator=g)] + noise


def fit(*sets: Tensor, config: MixtureConfig = CONFIG, seed: int = 0) -> list[Fit]:
    return fit_mixtures(sets, config, torch.Generator().manual_seed(seed))


def fitted(fit: Fit) -> Mixture:
    assert fit.mixture is not None, fit.reason
    return fit.mixture


def assert_same(a: Fit, b: Fit, tolerance: float = 0.0) -> None:
    for name, value in vars(fitted(a)).items():
        torch.testing.assert_close(value, vars(fitted(b))[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("points", "components"), [(0, 1), (2, 1), (199, 1), (200, 2), (999, 9), (5000, 10)])
def test_components_of_a_class_as_in_d2ada(points: int, components: int) -> None:
    assert MixtureConfig().components(points) == components


def test_unfit_sets_say_why_and_cost_the_others_nothing() -> None:
    good, flat = cloud(160), cloud(90)
    flat[:, 1] = 2 * flat[:, 0]
    sets = [good, good[:1], good[:0], torch.full((80, 4), 0.1, dtype=torch.float64), flat, cloud(120, seed=1)]
    config = MixtureConfig(points_per_component=50, covariance_floor=0)
    fits = fit(*sets, config=config)
    assert [f.mixture is None for f in fits] == [False, True, True, True, True, False]
    assert [f.reason for f in fits[1:4]] == [
        "1 points: at least 2 are needed",
        "0 points: at least 2 are needed",
        "80 points: all are equal",
    ]
    assert fits[4].reason == "90 points: singular covariance after 0 iterations; a larger covariance_floor helps"
    assert {f.stop for f in fits[1:5]} == {"skipped"}
    alone = fit(*[sets[0] if i == 0 else cloud(100, seed=i) for i in range(5)], sets[5], config=config)
    assert_same(fits[0], alone[0])
    assert_same(fits[5], alone[5])


def test_a_covariance_that_collapses_on_the_way_is_skipped() -> None:
    # 3 points on a line apart from the rest: the component that takes them has no width.
    line = torch.tensor([[100.0, 0.0], [101.0, 0.0], [102.0, 0.0]], dtype=torch.float64)
    points = torch.cat([cloud(60, dims=2), line])
    start = Mixture(
        torch.tensor([0.9, 0.1], dtype=torch.float64),
        torch.tensor([[0.0, 0.0], [101.0, 0.0]], dtype=torch.float64),
        100 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1),
    )
    result = fit_mixtures([points], MixtureConfig(covariance_floor=0), torch.Generator(), [start])[0]
    assert result.mixture is None and "singular covariance after 1 iterations" in result.reason
    assert fit_mixtures([points], MixtureConfig(), torch.Generator(), [start])[0].stop == "converged"


def test_memory_that_runs_out_skips_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, message = mixtures._step, "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"

    def step(rows: Any, *rest: Any) -> Any:
        if len(rows.points) == 160:
            raise RuntimeError(message)
        return whole(rows, *rest)

    monkeypatch.setattr(mixtures, "_step", step)
    fits = fit(cloud(160), cloud(120))
    assert (fits[0].mixture, fits[0].reason) == (None, "160 points: not enough memory")
    assert fits[1].mixture is not None
    message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        fit(cloud(160), cloud(120))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    points = cloud(160)
    points[[3, 7], [0, 2]] = bad
    calls = [lambda: fit(cloud(120), points), lambda: principal_axes([cloud(120), points], 2)]
    for call in calls:
        with pytest.raises(UserError, match="set 1: 2 of 160 points are not finite"):
            call()
    with pytest.raises(UserError, match="points: 2 of 160 points are not finite"):
        fitted(fit(cloud(120))[0]).log_density(points)


def test_shapes_that_do_not_fit_are_refused() -> None:
    mixture = fitted(fit(cloud(120))[0])
    with pytest.raises(UserError, match=r"set 1: points must be floats \(N,4\), not torch.float64 \(9, 5\)"):
        fit(cloud(120), cloud(9, dims=5))
    with pytest.raises(UserError, match="must be floats"):
        fit(torch.zeros(5, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="set 0: points have 5 dimensions, its start 4"):
        fit_mixtures([cloud(120, dims=5)], CONFIG, torch.Generator(), [mixture])
    with pytest.raises(UserError, match=r"points must be floats \(N,4\)"):
        mixture.log_density(cloud(9, dims=5))
    for dims, points in ((5, 120), (4, 4), (0, 9)):
        with pytest.raises(UserError, match=f"{dims} principal axes need"):
            principal_axes([cloud(points)], dims)


def test_time_that_runs_out_leaves_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"points_per_component": 50, "tolerance": 0, "start_iterations": 0}
    full = fit(cloud(160), config=MixtureConfig(max_iterations=3, **config))[0]
    seconds = count()
    monkeypatch.setattr(mixtures.time, "monotonic", lambda: next(seconds))
    stopped = fit(cloud(160), config=MixtureConfig(time_limit_s=4, **config))[0]
    assert stopped.stop == "time"
    assert stopped.reason == "160 points: not converged after 3 iterations, time_limit_s reached"
    assert_same(stopped, full)


def test_no_time_and_no_iterations_give_the_start() -> None:
    points = cloud(150, apart=50.0)
    for stop, config in (("time", {"time_limit_s": 0}), ("iterations", {"max_iterations": 0})):
        result = fit(points, config=MixtureConfig(points_per_component=50, **config))[0]
        assert result.stop == stop and result.log_likelihood.shape == (0,)
        assert fitted(result).weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 1 << 30])
def test_chunks_change_nothing(chunk_bytes: int) -> None:
    points, others = cloud(170, dims=20), cloud(60, dims=20, seed=1)
    config = {"points_per_component": 50, "max_iterations": 6, "tolerance": 0}
    expected = fit(points, config=MixtureConfig(**config))[0]
    chunked = fit(points, config=MixtureConfig(chunk_bytes=chunk_bytes, **config))[0]
    assert_same(chunked, expected, 1e-9)
    density = fitted(expected).log_density(others, chunk_bytes)
    torch.testing.assert_close(density, fitted(expected).log_density(others), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_bytes", [100_000, 1 << 20])
def test_memory_stays_within_the_stated_bound(chunk_bytes: int) -> None:
    points = cloud(4000, dims=24)
    config = MixtureConfig(points_per_component=500, max_iterations=2, tolerance=0, chunk_bytes=chunk_bytes)
    fit(points, config=config)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        fit(points, config=config)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert chunk_bytes / 4 < peak < working_bytes(4000, 24, 8, chunk_bytes)


def test_draws_come_from_the_generator_alone() -> None:
    sets = [cloud(300, apart=0.5), cloud(200, apart=0.5)]
    torch.manual_seed(1)
    first = fit(*sets)
    torch.manual_seed(2)
    again, other = fit(*sets), fit(*sets, seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        assert_same(a, b)
        assert not torch.equal(fitted(a).means, fitted(c).means)


def test_k_means_finds_clusters_that_stand_apart() -> None:
    centres = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]], dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(torch.tensor([20, 60, 90]))
    points = centres[labels] + cloud(170, dims=2, apart=0)
    for seed in range(5):
        start = fitted(fit(points, config=MixtureConfig(points_per_component=50, max_iterations=0), seed=seed)[0])
        order = start.weights.argsort()
        torch.testing.assert_close(start.weights[order] * 170, torch.tensor([20.0, 60.0, 90.0], dtype=torch.float64))
        for k, c in zip(order.tolist(), range(3), strict=True):
            own = points[labels == c]
            torch.testing.assert_close(start.means[k], own.mean(0))
            expected = torch.cov(own.t(), correction=0) + 1e-6 * torch.eye(2, dtype=torch.float64)
            torch.testing.assert_close(start.covariances[k], expected)


def test_fewer_distinct_points_than_components() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64).repeat(100, 1)
    mixture = fitted(fit(points)[0])
    torch.testing.assert_close(mixture.weights, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert sorted(mixture.means[:, 0].tolist()) == pytest.approx([0, 2])


def test_a_component_without_points_keeps_its_place() -> None:
    points = cloud(100)
    start = fitted(fit(points)[0])
    far = Mixture(start.weights, torch.cat([start.means[:1], start.means[:1] + 1e6]), start.covariances)
    mixture = fitted(fit_mixtures([points], CONFIG, torch.Generator(), [far])[0])
    assert mixture.weights[1] < 1e-12 and mixture.weights[0] == pytest.approx(1)
    torch.testing.assert_close(mixture.means[1], far.means[1])
    assert mixture.log_density(points).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_points_of_fewer_bits_are_summed_in_float64(dtype: torch.dtype) -> None:
    points = cloud(160).to(dtype)
    assert_same(fit(points)[0], fit(points.double())[0], 1e-12)
    torch.testing.assert_close(
        principal_axes([points], 2).axes, principal_axes([points.double()], 2).axes, rtol=1e-12, atol=1e-12
    )


def test_far_from_the_origin_costs_no_digits() -> None:
    near, far = fit(cloud(160))[0], fit(cloud(160) + 1e6)[0]
    torch.testing.assert_close(fitted(near).covariances, fitted(far).covariances, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fitted(near).means + 1e6, fitted(far).means, rtol=0, atol=1e-6)


def test_results_are_tensors_that_can_be_saved(tmp_path: Path) -> None:
    result = fit(cloud(160))[0]
    for one in (fitted(result), principal_axes([cloud(160)], 2)):
        save_file(vars(one), tmp_path / "one.safetensors")
        again = type(one)(**load_file(tmp_path / "one.safetensors"))
        assert all(torch.equal(value, vars(again)[name]) for name, value in vars(one).items())


@given(st.integers(4, 90), st.integers(1, 6), st.integers(1, 5), st.floats(0, 8), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_no_iteration_makes_the_points_less_likely(
    points: int, dims: int, components: int, apart: float, seed: int
) -> None:
    config = MixtureConfig(
        points_per_component=max(1, points // components), max_iterations=12, tolerance=0, start_iterations=1
    )
    result = fit(cloud(points, dims, apart, seed), config=config, seed=seed)[0]
    # The floor under covariances is no part of the maximum that EM climbs to: components of a point or two sink to it.
    assume(float(torch.linalg.eigvalsh(fitted(result).covariances).min()) > 1e3 * config.covariance_floor)
    likelihood = result.log_likelihood
    assert likelihood.diff().min() > -1e-3 and likelihood[-1] >= likelihood[0] - 1e-3
