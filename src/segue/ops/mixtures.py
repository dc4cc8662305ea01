"""Gaussian mixtures with full covariances, many at a time: expectation-maximisation in float64, and a shared PCA.

EM (Dempster, Laird & Rubin, 1977) as scikit-learn's ``GaussianMixture`` runs it, its test oracle: with the same start
both make the same parameters iteration by iteration. D2ADA (Wu et al., ECCV 2022) fits one mixture a class and domain
and its facts set the defaults here. Its code fits in forked workers, which may never return, and one class without
enough regions loses all others; here every set of points is fitted in this process and has an outcome of its own.

A mixture is fitted chunk by chunk of its own points, never padded to another's, all components at once:

* E step: with L the Cholesky factor of a covariance, |L^-1 (x - m)|^2 of all components is one product with the stacked
  [-L^-1 m, L^-1]. L^-1 is triangular: it is taken in bands of rows, each only as wide as it is filled.
* M step: sums of r [1, x - m][1, x - m]^T around the old means m hold the new weights, means and covariances. Points of
  a responsibility r below the float64 rounding error of the component's share are left out; in many dimensions these
  are nearly all, and nothing is lost by it.

The new covariance is the sum around m less the square of what the mean moved: data far from the origin costs no digits.
Beside its points and result a fit needs at most :func:`working_bytes`.

Knobs that matter: ``points_per_component``, ``covariance_floor``, ``time_limit_s``, ``chunk_bytes``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from segue.errors import UserError
from segue.settings import Settings

BAND = 16
"""Rows of L^-1 taken at once: 16 needs 5/8 of the multiplications of a full matrix of 64; fewer rows gained nothing."""
BLOCK = 512
"""Points at once where a copy of them is all that is needed."""
FAINT = -200.0
"""Log-responsibilities are not lower: exp is slow where it underflows, and this is below any rounding."""
ROUNDING = torch.finfo(torch.float64).eps


class MixtureConfig(Settings):
    """How mixtures are fitted."""

    points_per_component: int = Field(100, ge=1)
    """One component for so many points of the same set, rounded down; 100 in D2ADA, there counted in the target."""
    max_components: int = Field(10, ge=1)
    """And never more than so many; 10 in D2ADA."""
    min_points: int = Field(2, ge=2)
    """Sets of fewer points are skipped; 2 in D2ADA."""
    max_iterations: int = Field(200, ge=0)
    """EM steps at most; 200 in D2ADA."""
    tolerance: float = Field(1e-3, ge=0)
    """Converged when the mean log-density moves less than this, in nats; scikit-learn's 1e-3."""
    covariance_floor: float = Field(1e-6, ge=0)
    """Added to the diagonal of covariances; scikit-learn's ``reg_covar``, 1e-6."""
    start_iterations: int = Field(20, ge=0)
    """k-means steps after k-means++ seeding at most; ours."""
    time_limit_s: float = Field(120.0, ge=0)
    """Seconds a mixture may take; checked between iterations, the best so far is kept; ours."""
    chunk_bytes: int = Field(8 << 20, ge=1)
    """Memory for the points at work; ours: what fits a processor's cache is fastest."""

    def components(self, points: int) -> int:
        """How many components a set of so many points gets: points // points_per_component, within 1 and the most."""
        return min(max(points // self.points_per_component, 1), self.max_components)


@dataclass(frozen=True)
class Mixture:
    """Gaussian mixture of K components in d dimensions, float64: save ``vars(mixture)`` as tensors."""

    weights: Tensor
    """(K,), sum 1."""
    means: Tensor
    """(K,d)."""
    covariances: Tensor
    """(K,d,d), positive definite."""

    def log_density(self, points: Tensor, chunk_bytes: int = MixtureConfig().chunk_bytes) -> Tensor:
        """log p(x) in nats of points (N,d), (N,) float64. UserError: not finite, or of another width."""
        check_points(points, "points", self.means.shape[1])
        origin = self.weights @ self.means
        factors = _factors(_moved(self, -origin))
        if factors is None:
            raise UserError("a mixture has a covariance that is not positive definite: fit it again")
        rows = _Rows(points, origin, len(self.weights), chunk_bytes)
        return torch.cat([_log_joint(block, factors, rows.band).logsumexp(0) for block in rows])


Stop = Literal["converged", "iterations", "time", "skipped"]


@dataclass(frozen=True)
class Fit:
    """What became of one set of points."""

    mixture: Mixture | None
    """None if the set was skipped."""
    stop: Stop
    """Why the fit ended; after ``iterations`` and ``time`` the mixture is the best so far, not converged."""
    reason: str
    """One sentence why the set was skipped or stopped early; empty if it converged."""
    log_likelihood: Tensor
    """(iterations,) mean log-density of the points before each EM step, float64."""


@dataclass(frozen=True)
class Projection:
    """Principal axes of points of D dimensions, float64: save ``vars(projection)`` as tensors."""

    mean: Tensor
    """(D,)."""
    axes: Tensor
    """(dims,D), unit rows, largest variance first; the entry of largest size in a row is positive."""
    variances: Tensor
    """(dims,) of the points along the axes, over N - 1."""

    def project(self, points: Tensor) -> Tensor:
        """Coordinates of points (N,D) along the axes, (N,dims) float64. UserError: not finite, or of another width."""
        check_points(points, "points", len(self.mean))
        result = self.mean.new_empty(len(points), len(self.axes))
        for to, block in zip(torch.split(result, BLOCK), torch.split(points, BLOCK), strict=True):
            torch.mm(block - self.mean, self.axes.t(), out=to)
        return result


def principal_axes(sets: Sequence[Tensor], dims: int) -> Projection:
    """The ``dims`` directions of largest variance of all points (N_i,D) of all sets together, by their covariance.

    UserError: numbers that are not finite, different widths, or fewer than ``dims`` dimensions or ``dims`` + 1 points.
    """
    for i, points in enumerate(sets):
        check_points(points, f"set {i}", sets[0].shape[-1])
    total = sum(len(points) for points in sets)
    if total <= dims or not 1 <= dims <= sets[0].shape[1]:
        have = f"not {total} points of {sets[0].shape[1]}"
        raise UserError(f"{dims} principal axes need at least {dims + 1} points of {dims} dimensions, {have}")
    blocks = [block for points in sets for block in torch.split(points, BLOCK)]
    mean = _mean(blocks)
    scatter = mean.new_zeros(len(mean), len(mean))
    for block in blocks:
        rows = block - mean
        scatter += _gram(rows)
    values, vectors = torch.linalg.eigh(scatter / (total - 1))
    axes = vectors.t().flip(0)[:dims]
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return Projection(mean, (axes * sign).contiguous(), values.flip(0)[:dims].contiguous())


def fit_mixtures(
    sets: Sequence[Tensor],
    config: MixtureConfig,
    generator: torch.Generator,
    starts: Sequence[Mixture | None] | None = None,
) -> list[Fit]:
    """A mixture for every set of points (N_i,d), N_i at will and of any float type, with one outcome each.

    ``starts`` gives the first parameters, and so the number of components, of the sets where it is not None; the others
    start from k-means, by ``generator`` and their place alone. Skipped, with the reason: too few points, all points
    equal, a covariance not positive definite, no memory. UserError, before anything is fitted: numbers that are not
    finite, points or starts of different widths.
    """
    given = [None] * len(sets) if starts is None else starts
    for i, (points, start) in enumerate(zip(sets, given, strict=True)):
        check_points(points, f"set {i}", sets[0].shape[-1])
        if start is not None and start.means.shape[1] != points.shape[1]:
            raise UserError(f"set {i}: points have {points.shape[1]} dimensions, its start {start.means.shape[1]}")
    seeds = torch.randint(2**62, (len(sets),), generator=generator, device=generator.device).tolist()
    fits = []
    for points, seed, start in zip(sets, seeds, given, strict=True):
        try:
            fits.append(_fit(points, config, torch.Generator().manual_seed(seed), start))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            fits.append(_skipped(points, "not enough memory"))
    return fits


def check_points(points: Tensor, name: str, width: int) -> None:
    """UserError unless the points are (N, ``width``), of a float type, and finite."""
    if points.ndim != 2 or points.shape[1] != width or not points.is_floating_point():
        raise UserError(f"{name}: points must be floats (N,{width}), not {points.dtype} {tuple(points.shape)}")
    bad = sum(int((~block.isfinite().all(1)).sum()) for block in torch.split(points, BLOCK))
    if bad:
        raise UserError(f"{name}: {bad} of {len(points)} points are not finite (NaN or inf); leave them out")


def working_bytes(points: int, dims: int, components: int, chunk_bytes: int) -> int:
    """At most so much memory for a fit beside its points and result: its chunk, copies of covariances, its start."""
    chunk = max(chunk_bytes, _point_bytes(dims, components))
    return chunk + 64 * components * (dims + 1) ** 2 + 64 * points + 16 * BLOCK * dims


class _Factors(NamedTuple):
    bands: list[Tensor]
    constant: Tensor


class _Rows:
    """Points as chunks of rows [1, x - origin] in float64, made again in every pass unless one chunk holds them all.

    What a chunk is worked with is allocated once: a fresh allocation of its size costs as much as the work itself.
    """

    def __init__(self, points: Tensor, origin: Tensor, components: int, chunk_bytes: int) -> None:
        self.points, self.origin = points, origin
        self.size = max(1, min(len(points), chunk_bytes // _point_bytes(len(origin), components)))
        self.band = origin.new_empty(components * BAND * self.size)
        self.chosen = origin.new_empty(self.size, len(origin) + 1)
        self.kept = list(self._made()) if len(points) <= self.size else []

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.kept) if self.kept else self._made()

    def _made(self) -> Iterator[Tensor]:
        for block in torch.split(self.points, self.size):
            rows = self.origin.new_ones(len(block), len(self.origin) + 1)
            torch.sub(block, self.origin, out=rows[:, 1:])
            yield rows


def _point_bytes(dims: int, components: int) -> int:
    # The point twice (beside a one, and weighted), a band of every component, and six numbers a component.
    return 8 * (2 * (dims + 1) + (BAND + 6) * components)


def _fit(points: Tensor, config: MixtureConfig, generator: torch.Generator, start: Mixture | None) -> Fit:
    deadline = time.monotonic() + config.time_limit_s
    components = config.components(len(points)) if start is None else len(start.weights)
    least = max(config.min_points, components)
    if len(points) < least:
        return _skipped(points, f"at least {least} are needed")
    if all(bool((block == points[:1]).all()) for block in torch.split(points, BLOCK)):
        return _skipped(points, "all are equal")
    origin = _mean([points])
    rows = _Rows(points, origin, components, config.chunk_bytes)
    moved = None if start is None else _moved(start, -origin)
    mixture = moved or _start(rows, components, config, generator, deadline)
    history: list[float] = []
    stop: Stop = "iterations"
    factors = _factors(mixture)
    while factors is not None and len(history) < config.max_iterations:
        if time.monotonic() >= deadline:
            stop = "time"
            break
        density, mixture = _step(rows, mixture, factors, config.covariance_floor)
        factors = _factors(mixture)
        history.append(density)
        if len(history) > 1 and abs(density - history[-2]) < config.tolerance:
            stop = "converged"
            break
    if factors is None:
        return _skipped(points, f"singular covariance after {len(history)} iterations; a larger covariance_floor helps")
    limit = {"time": "time_limit_s", "iterations": "max_iterations"}.get(stop)
    reason = f"{len(points)} points: not converged after {len(history)} iterations, {limit} reached" if limit else ""
    return Fit(_moved(mixture, origin), stop, reason, torch.tensor(history, dtype=torch.float64))


def _step(rows: _Rows, mixture: Mixture, factors: _Factors, floor: float) -> tuple[float, Mixture]:
    components, dims = mixture.means.shape
    sums = mixture.means.new_zeros(components, dims + 1, dims + 1)
    total = mixture.means.new_zeros(())
    for block in rows:
        joint = _log_joint(block, factors, rows.band)
        peak = joint.amax(0)
        share = joint.sub_(peak).clamp_(min=FAINT).exp_()
        likelihood = share.sum(0)
        total += (peak + likelihood.log()).sum()
        _add_sums(sums, block, share.div_(likelihood), mixture, rows.chosen)
    return float(total) / len(rows.points), _estimate(sums, mixture.means, floor)


def _log_joint(rows: Tensor, factors: _Factors, work: Tensor) -> Tensor:
    components, points = factors.constant.shape[0], rows.shape[0]
    distance = rows.new_zeros(components, points)
    for band in factors.bands:
        height, width = band.shape
        whitened = work[: height * points].view(height, points)
        torch.mm(band, rows[:, :width].t(), out=whitened)
        distance += whitened.square_().view(components, -1, points).sum(1)
    return distance.mul_(-0.5).add_(factors.constant.unsqueeze(1))


def _add_sums(sums: Tensor, rows: Tensor, responsibility: Tensor, mixture: Mixture, work: Tensor) -> None:
    counts = responsibility > (ROUNDING * mixture.weights).unsqueeze(1)
    component, point = counts.nonzero(as_tuple=True)
    shares = responsibility[counts].sqrt_().unsqueeze(1)
    means = F.pad(mixture.means, (1, 0))
    begin = 0
    for k, number in enumerate(component.bincount(minlength=sums.shape[0]).tolist()):
        end = begin + number
        chosen = work[:number]
        if number == rows.shape[0]:
            torch.sub(rows, means[k], out=chosen)
        else:
            torch.index_select(rows, 0, point[begin:end], out=chosen)
            chosen -= means[k]
        chosen *= shares[begin:end]
        sums[k] += _gram(chosen)
        begin = end


def _gram(rows: Tensor) -> Tensor:
    if rows.device.type != "cpu":
        return rows.t() @ rows
    array = rows.numpy()  # whose product with its own transpose is half the work: BLAS syrk, which torch does not call
    return torch.from_numpy(array.T @ array)


def _estimate(sums: Tensor, means: Tensor, floor: float) -> Mixture:
    # 10 epsilon as in scikit-learn: a component that lost all its points keeps its place and gets weight 0.
    share = sums[:, 0, 0] + 10 * ROUNDING
    moved = sums[:, 0, 1:] / share[:, None]
    covariances = sums[:, 1:, 1:] / share[:, None, None]
    covariances -= moved.unsqueeze(2) * moved.unsqueeze(1)
    covariances.diagonal(dim1=1, dim2=2).add_(floor)
    return Mixture(share / share.sum(), means + moved, covariances)


def _factors(mixture: Mixture) -> _Factors | None:
    lower, failed = torch.linalg.cholesky_ex(mixture.covariances)
    diagonal, dims = lower.diagonal(dim1=1, dim2=2), lower.shape[-1]
    # The variance a dimension has of its own, beside its whole; within rounding both it and the density are noise.
    own = diagonal.square() > 4 * dims * ROUNDING * mixture.covariances.diagonal(dim1=1, dim2=2)
    if bool(failed.any()) or not bool(own.all()):
        return None
    beside = torch.cat([-mixture.means.unsqueeze(2), torch.eye(dims).to(lower).expand_as(lower)], 2)
    beside = torch.linalg.solve_triangular(lower, beside, upper=False)
    ends = [min(at + BAND, dims) for at in range(0, dims, BAND)]
    bands = [beside[:, at : at + BAND, : end + 1] for at, end in zip(range(0, dims, BAND), ends, strict=True)]
    constant = mixture.weights.log() - diagonal.log().sum(1) - 0.5 * dims * math.log(2 * math.pi)
    return _Factors([band.reshape(-1, band.shape[2]) for band in bands], constant)


def _mean(sets: Sequence[Tensor]) -> Tensor:
    blocks = [block for points in sets for block in torch.split(points, BLOCK)]
    return torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0) / sum(map(len, blocks))


def _start(rows: _Rows, components: int, config: MixtureConfig, generator: torch.Generator, deadline: float) -> Mixture:
    centres = _seeds(rows, components, generator)
    labels = None
    for _ in range(config.start_iterations):
        before, (labels, sums) = labels, _assign(rows, centres)
        centres = torch.where(sums[:, :1] > 0, sums[:, 1:] / sums[:, :1], centres)
        if (before is not None and torch.equal(before, labels)) or time.monotonic() >= deadline:
            break
    labels, _ = _assign(rows, centres)
    shares = centres.new_full((len(centres),), 1 / len(centres))
    mixture = Mixture(shares, centres, centres.new_zeros(0))
    sums = centres.new_zeros(len(centres), centres.shape[1] + 1, centres.shape[1] + 1)
    kinds = torch.arange(len(centres), device=centres.device).unsqueeze(1)
    for block, mine in zip(rows, torch.split(labels, rows.size), strict=True):
        _add_sums(sums, block, (mine == kinds).to(centres), mixture, rows.chosen)
    return _estimate(sums, centres, config.covariance_floor)


def _seeds(rows: _Rows, components: int, generator: torch.Generator) -> Tensor:
    # k-means++ (Arthur & Vassilvitskii, 2007): the next centre by squared distance to the nearest so far.
    draws = torch.rand(components, generator=generator, dtype=torch.float64).tolist()
    squared = torch.ones(len(rows.points), dtype=torch.float64, device=rows.origin.device)
    centres: list[Tensor] = []
    for draw in draws:
        heap = squared.cumsum(0)
        if float(heap[-1]) == 0:
            break  # fewer distinct points than components
        pick = int(torch.searchsorted(heap, heap[-1] * draw, right=True).clamp(max=len(heap) - 1))
        centres.append(rows.points[pick] - rows.origin)
        apart = torch.cat([(block[:, 1:] - centres[-1]).square_().sum(1) for block in rows])
        squared = apart if len(centres) == 1 else torch.minimum(squared, apart)
    return torch.stack(centres)


def _assign(rows: _Rows, centres: Tensor) -> tuple[Tensor, Tensor]:
    beside = torch.cat([0.5 * centres.square().sum(1, keepdim=True), -centres], 1)
    sums = torch.zeros_like(beside)
    labels = []
    for block in rows:
        labels.append((beside @ block.t()).argmin(0))
        sums.index_add_(0, labels[-1], block)
    return torch.cat(labels), sums


def _moved(mixture: Mixture, by: Tensor) -> Mixture:
    return Mixture(mixture.weights, mixture.means + by, mixture.covariances)


def _skipped(points: Tensor, reason: str) -> Fit:
    return Fit(None, "skipped", f"{len(points)} points: {reason}", torch.zeros(0, dtype=torch.float64))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in str(error)
