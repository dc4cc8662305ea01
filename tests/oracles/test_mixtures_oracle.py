"""Mixtures, their log-density and the PCA against scikit-learn and scipy, float64."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from segue.ops.mixtures import Fit, Mixture, MixtureConfig, fit_mixtures, principal_axes

CASES = {
    "apart": (400, 5, 3, 6.0, 0.0),
    "overlapping": (300, 18, 4, 0.3, 0.0),
    "one component": (90, 33, 1, 0.0, 0.0),
    "fewer points than dimensions": (60, 40, 3, 2.0, 0.0),
    "far from the origin": (300, 6, 3, 2.0, 1e4),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def cloud(points: int, dims: int, components: int, apart: float, offset: float, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(components, dims, generator=g, dtype=torch.float64)
    noise = torch.randn(points, dims, generator=g, dtype=torch.float64)
    noise = noise @ torch.randn(dims, dims, generator=g, dtype=torch.float64) / dims**0.5
    return offset + centres[torch.randint(components, (points,), generator=g)] + noise


def rough_start(points: Tensor, components: int) -> Mixture:
    g = torch.Generator().manual_seed(5)
    weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.5
    covariance = torch.cov(points.t()) + 0.5 * torch.eye(points.shape[1], dtype=torch.float64)
    covariances = covariance * torch.linspace(0.5, 1.5, components, dtype=torch.float64)[:, None, None]
    means = points[torch.randperm(len(points), generator=g)[:components]]
    return Mixture(weights / weights.sum(), means, covariances)


def foreign(points: Tensor, start: Mixture, **settings: Any) -> GaussianMixture:
    precisions = np.linalg.inv(start.covariances.numpy())
    fitted = GaussianMixture(
        len(start.weights),
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=(precisions + precisions.transpose(0, 2, 1)) / 2,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fitted.fit(points.numpy())


def ours(points: Tensor, start: Mixture, **settings: Any) -> Fit:
    return fit_mixtures([points], MixtureConfig(**settings), torch.Generator(), [start])[0]


def assert_same(fit: Fit, expected: GaussianMixture) -> None:
    mixture = fit.mixture
    assert mixture is not None
    np.testing.assert_allclose(mixture.weights, expected.weights_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(mixture.means, expected.means_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixture.covariances, expected.covariances_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fit.log_likelihood, expected.lower_bounds_, rtol=1e-6, atol=1e-6)


@cases
@pytest.mark.parametrize("iterations", [1, 8])
def test_same_start_and_iterations_same_parameters(case: tuple[Any, ...], iterations: int) -> None:
    points = cloud(*case)
    start = rough_start(points, case[2])
    expected = foreign(points, start, max_iter=iterations, tol=0, reg_covar=1e-3)
    fit = ours(points, start, max_iterations=iterations, tolerance=0, covariance_floor=1e-3)
    assert_same(fit, expected)
    assert fit.stop == "iterations"


@cases
def test_stops_where_scikit_learn_stops(case: tuple[Any, ...]) -> None:
    points = cloud(*case)
    start = rough_start(points, case[2])
    expected = foreign(points, start, max_iter=200)
    fit = ours(points, start)
    assert_same(fit, expected)
    assert (len(fit.log_likelihood), fit.stop) == (expected.n_iter_, "converged")


@cases
def test_log_density_is_scikit_learns_and_scipys(case: tuple[Any, ...]) -> None:
    points, others = cloud(*case), cloud(*case, seed=1)
    start = rough_start(points, case[2])
    expected = foreign(points, start, max_iter=3, tol=0, reg_covar=1e-2)
    mixture = Mixture(*(torch.from_numpy(v) for v in (expected.weights_, expected.means_, expected.covariances_)))
    density = mixture.log_density(others)
    np.testing.assert_allclose(density, expected.score_samples(others.numpy()), rtol=1e-6, atol=1e-6)
    each = [
        multivariate_normal(m, c).logpdf(others) for m, c in zip(expected.means_, expected.covariances_, strict=True)
    ]
    joint = np.stack(each) + np.log(expected.weights_)[:, None]
    np.testing.assert_allclose(density, logsumexp(joint, axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_principal_axes_are_scikit_learns_up_to_sign(dtype: torch.dtype) -> None:
    sets = [cloud(300, 30, 3, 2.0, 5.0, seed).to(dtype) for seed in (0, 1)]
    together = torch.cat(sets).double().numpy()
    expected = PCA(8, svd_solver="full").fit(together)
    axes = principal_axes(sets, 8)
    sign = np.sign((axes.axes.numpy() * expected.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(axes.axes.numpy() * sign, expected.components_, atol=1e-9)
    np.testing.assert_allclose(axes.variances, expected.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(axes.project(sets[1]).numpy() * sign.T, expected.transform(together[300:]), atol=1e-9)
