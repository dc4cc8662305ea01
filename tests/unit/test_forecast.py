"""The gain of the next round: curves that are known, and what must hold for any scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.acquire.forecast import ForecastError, expected_gain, fit, sentence

ROUNDS = st.lists(st.floats(0.1, 5.0), min_size=3, max_size=7).map(np.cumsum)


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.floats(40, 90), st.floats(2, 30), st.floats(0.1, 2.5), st.sampled_from([1.0, 1e-2, 3e7]))
def test_an_exact_curve_is_recovered(b: np.ndarray, a: float, c: float, k: float, unit: float) -> None:
    truth = a - c * (b / b[0]) ** -k
    following = 1.5 * b[-1]
    found = expected_gain(unit * b, truth.tolist(), unit * following)
    assert np.allclose([found.curve(unit * x) for x in b], truth, atol=1e-3)
    assert found.gain == pytest.approx(c * ((b[-1] / b[0]) ** -k - (following / b[0]) ** -k), abs=2e-2)


def test_its_parameters_are_the_curves() -> None:
    b = np.arange(1, 6) * 1e6
    curve = fit(b, 61 - 14 * (b / 1e6) ** -0.7)
    assert (curve.a, curve.c, curve.k) == (pytest.approx(61), pytest.approx(14), pytest.approx(0.7))


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.data())
def test_gains_are_never_negative_and_grow_with_the_budget(b: np.ndarray, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.floats(0, 100), min_size=len(b), max_size=len(b)))
    near, far = (expected_gain(b, scores, factor * b[-1], 50 * b[-1]) for factor in (1.2, 2.0))
    assert 0 <= near.gain <= far.gain
    assert near.curve(1e9 * b[-1]) <= 100 + 1e-9
    if near.low is not None and near.high is not None:
        assert 0 <= near.low <= near.high
    if near.full is not None:
        assert min(scores) - 1e-9 <= near.full <= 100


@pytest.mark.parametrize("scores", [[50.0] * 5, [52.0, 51.0, 50.5, 50.0, 49.0]])
def test_scores_that_do_not_rise_promise_nothing(scores: list[float]) -> None:
    found = expected_gain(range(1, 6), scores, 6, 100)
    assert (found.gain, found.low, found.high, found.full) == (0, 0, 0, None)
    assert sentence(found, "round 6", 0.06).endswith("the scores do not rise")


def test_one_failed_round_counts_less_than_by_least_squares() -> None:
    b = np.arange(1.0, 8.0)
    truth = 60 - 12 * b**-0.6
    failed = truth.copy()
    failed[3] -= 6
    powers = [np.stack([np.ones(7), -(b**-k)], 1) for k in np.linspace(0.05, 3, 300)]
    fits = [np.linalg.lstsq(x, failed, rcond=None) for x in powers]
    best = int(np.argmin([f[1][0] for f in fits]))
    squares = powers[best] @ fits[best][0]
    ours = np.array([fit(b, failed)(x) for x in b])
    assert np.abs(ours - truth).max() < 0.5 * np.abs(squares - truth).max()


def test_the_sentence_says_no_more_than_the_rounds_support() -> None:
    b = np.arange(1.0, 6.0)
    settled = sentence(expected_gain(b, 60 - 12 * b**-0.6, 6, 100), "round 6", 0.06)
    assert settled.startswith("round 6 (6 % of the pool): expected +0.5 mIoU (+0.5 to +0.5 leaving out one round each)")
    assert settled.endswith("all labels: about 59.2")
    straight = sentence(expected_gain(b, [50, 52, 54, 56, 58], 6, 100), "round 6", 0.06)
    assert "all labels" not in straight  # the curve's end is at the bound, not seen
    three = sentence(expected_gain(b[:3], [50, 54, 55.5], 4, 100), "round 4", 0.04)
    assert "leaving out" not in three and "all labels" not in three


@pytest.mark.parametrize(
    ("budgets", "scores", "following", "words"),
    [
        ([1, 2], [50, 51], 3, "3 rounds, there are 2"),
        ([1, 2, 3], [50, 51], 4, "3 budgets but 2 scores"),
        ([1, 3, 2], [50, 51, 52], 4, "rising"),
        ([0, 1, 2], [50, 51, 52], 4, "above 0"),
        ([1, 2, 3], [50, float("nan"), 52], 4, "numbers"),
        ([1, 2, 3], [50, 51, 152], 4, "percent"),
        ([1, 2, 3], [50, 51, 52], 3, "larger than the last"),
    ],
)
def test_what_cannot_be_fitted_is_told(budgets: list[int], scores: list[float], following: int, words: str) -> None:
    with pytest.raises(ForecastError, match=words):
        expected_gain(budgets, scores, following)
