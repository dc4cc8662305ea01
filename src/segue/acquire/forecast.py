"""Whether another round pays: a saturating curve through the scores so far, and what it gains next.

mIoU(b) = a - c b^(-k), with b the pixels labelled so far: the power law of learning curves (Hestness et al., "Deep
Learning Scaling is Predictable, Empirically", 2017; Figueroa et al., 2012, fit it for active learning). Bounded:
c >= 0, a <= 100 and ``EXPONENTS``, so that a gain is never negative and no score passes 100. For a fixed k the fit is
linear with two unknowns; k is searched. A round far off the others counts less (Huber's weights).

Three unknowns and a handful of rounds: read the spread with the gain. It is the range over fits that leave out one
round each, not a confidence interval, and it knows nothing of the luck of a seed that all rounds share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segue.errors import UserError

MIN_ROUNDS = 3
EXPONENTS = (0.05, 3.0)
"""Bounds of k. Learning curves lie between 0.07 and 0.35 (Hestness et al.), those near saturation above."""
GRID, ZOOMS = 64, 4
FLAT = 1e-9
REWEIGHTED = 8
"""Fits with weights from the residuals of the one before."""
HUBER = 1.345
MAD_TO_SD = 1.4826
MIN_SCALE = 0.1
"""Points of mIoU: with three unknowns and few rounds most residuals vanish."""
TOTAL = 100.0

F64 = npt.NDArray[np.float64]


class ForecastError(UserError):
    """Too few rounds, or numbers that no curve fits."""


@dataclass(frozen=True)
class Curve:
    """mIoU(b) = a - c (b / unit)^(-k), in percent."""

    a: float
    """Where it ends."""
    c: float
    """0: no round was seen to gain."""
    k: float
    unit: float
    """The smallest budget that was fitted."""

    def __call__(self, budget: float) -> float:
        """mIoU in percent at a budget above 0."""
        return float(self.a - self.c * (budget / self.unit) ** -self.k)

    @property
    def inside(self) -> bool:
        """Whether the rounds, and no bound, settled every parameter."""
        low, high = EXPONENTS
        return self.c > 0 and self.a < TOTAL and 1.02 * low < self.k < high / 1.02


@dataclass(frozen=True)
class Forecast:
    """What the next budget is expected to gain over the last one, in points of mIoU."""

    gain: float
    low: float | None
    """Least gain of the fits without one round; None where there are too few to leave one out."""
    high: float | None
    curve: Curve
    full: float | None = None
    """mIoU in percent with all labels, where the rounds agree on it."""


def fit(budgets: Sequence[float], scores: Sequence[float]) -> Curve:
    """The curve through mIoU ``scores`` (percent) at ``budgets`` (pixels or shares); ``ForecastError`` if it cannot."""
    b, y = np.asarray(budgets, np.float64), np.asarray(scores, np.float64)
    _check(b, y)
    unit = float(b.min())
    x, weight = b / unit, np.ones(len(b))
    curve = _best(x, y, weight)
    for _ in range(REWEIGHTED if len(b) > MIN_ROUNDS else 0):
        residual = np.abs(y - _at(curve, x))
        scale = max(MAD_TO_SD * float(np.median(residual)), MIN_SCALE)
        weight = np.minimum(1.0, HUBER * scale / np.maximum(residual, 1e-12))
        curve = _best(x, y, weight)
    a, c, k = curve
    return Curve(a, c, k, unit)


def expected_gain(
    budgets: Sequence[float], scores: Sequence[float], next_budget: float, full_budget: float | None = None
) -> Forecast:
    """Points of mIoU that ``next_budget`` is expected to add to the last of ``budgets``, never negative.

    ``budgets`` are cumulative, in pixels or shares, and rising; ``scores`` mIoU in percent after each; ``full_budget``
    all that could be bought. ``ForecastError`` for fewer than three rounds, and for a next budget that is not larger
    than the last.
    """
    curve, last = fit(budgets, scores), budgets[-1]
    if not next_budget > last:
        raise ForecastError(f"the next budget, {next_budget:g}, must be larger than the last, {last:g}")
    without = _without_one(budgets, scores)
    gains = [_gain(one, last, next_budget) for one in without]
    full = None if full_budget is None else _agreed([curve, *without], scores, full_budget)
    return Forecast(
        _gain(curve, last, next_budget),
        min(gains, default=None),
        max(gains, default=None),
        curve,
        full if gains else None,
    )


def sentence(found: Forecast, what: str, share: float) -> str:
    """One line for a person: ``what`` ("round 6") would bring the labels to ``share`` of the pool."""
    text = f"{what} ({100 * share:.2g} % of the pool): expected {found.gain:+.1f} mIoU"
    if found.low is not None:
        text += f" ({found.low:+.1f} to {found.high:+.1f} leaving out one round each)"
    if found.curve.c == 0:
        text += "; the scores do not rise"
    return text if found.full is None else f"{text}; all labels: about {found.full:.1f}"


def _gain(curve: Curve, last: float, following: float) -> float:
    return max(curve(following) - curve(last), 0.0)


def _without_one(budgets: Sequence[float], scores: Sequence[float]) -> list[Curve]:
    if len(budgets) <= MIN_ROUNDS:
        return []
    pairs = list(zip(budgets, scores, strict=True))
    return [fit(*zip(*(p for p in pairs if p is not out), strict=True)) for out in pairs]


def _agreed(curves: Sequence[Curve], scores: Sequence[float], budget: float) -> float | None:
    """The first curve's value far out, where all are settled and lie closer together than the scores so far."""
    values = [curve(budget) for curve in curves]
    agree = max(values) - min(values) <= max(scores) - min(scores)
    return values[0] if agree and all(curve.inside for curve in curves) else None


def _check(b: F64, y: F64) -> None:
    if len(b) != len(y):
        raise ForecastError(f"{len(b)} budgets but {len(y)} scores")
    if len(b) < MIN_ROUNDS:
        raise ForecastError(f"a forecast needs the scores of {MIN_ROUNDS} rounds, there are {len(b)}")
    if not (np.isfinite(b).all() and np.isfinite(y).all() and b[0] > 0 and (np.diff(b) > 0).all()):
        raise ForecastError("budgets must be above 0 and rising, scores must be numbers")
    if y.max() > TOTAL or y.min() < 0:
        raise ForecastError("scores are mIoU in percent, 0 to 100")


def _at(curve: tuple[float, float, float], x: F64) -> F64:
    a, c, k = curve
    return a - c * x**-k


def _best(x: F64, y: F64, weight: F64) -> tuple[float, float, float]:
    """Least squares over a, c and k: a grid of exponents, then finer ones round the best."""
    low, high = np.log(EXPONENTS)
    for _ in range(ZOOMS):
        grid = np.linspace(low, high, GRID)
        u = x ** -np.exp(grid)[:, None]
        a, c = _lines(u, y, weight)
        at = int(np.argmin((weight * (y - a[:, None] + c[:, None] * u) ** 2).sum(1)))
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, GRID - 1)]
    return float(a[at]), float(c[at]), float(np.exp(grid[at]))


def _lines(u: F64, y: F64, weight: F64) -> tuple[F64, F64]:
    """Weighted least squares of y = a - c u for each row of ``u``, with c >= 0 and a <= 100."""
    share = weight / weight.sum()
    mean_u, mean_y = u @ share, float(y @ share)
    off = u - mean_u[:, None]
    c = np.maximum(-((off * (y - mean_y)) @ share) / ((off**2) @ share), 0.0)
    c[c < FLAT] = 0.0
    over = mean_y + c * mean_u > TOTAL
    c = np.where(over, (u @ (share * (TOTAL - y))) / ((u**2) @ share), c)
    return np.where(over, TOTAL, mean_y + c * mean_u), c
