"""Class, confidence and entropy from one softmax against the definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.ops.decision import decide


def by_definition(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As published: float64, and the logarithm of p + 1e-10."""
    return p.argmax(0), p.max(0), -(p * np.log(p + 1e-10)).sum(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 21), st.sampled_from([0.01, 1.0, 8.0, 60.0]), st.integers(0, 1000))
def test_logits_and_probabilities(classes: int, scale: float, seed: int) -> None:
    z = scale * np.random.default_rng(seed).standard_normal((classes, 7, 5)).astype(np.float32) + 100 * (seed % 3 - 1)
    e = np.exp(z.astype(np.float64) - z.max(0))
    p = e / e.sum(0)
    for scores, probabilities in ((z, False), (p.astype(np.float32), True)):
        winner, confidence, entropy = by_definition(p)
        found = decide(torch.from_numpy(scores), probabilities=probabilities)
        assert np.array_equal(found.winner, winner)
        assert np.abs(found.confidence.numpy() - confidence).max() < 1e-5
        assert np.abs(found.entropy.numpy() - entropy).max() < 1e-5
        assert found.confidence.max() <= 1 and found.entropy.min() >= 0


def test_extremes_and_ties() -> None:
    equal = decide(torch.zeros(4, 1))
    assert (equal.winner.item(), equal.confidence.item()) == (0, 0.25) and equal.entropy.item() == pytest.approx(
        np.log(4)
    )
    sure = decide(torch.tensor([[0.0], [1000.0]]))
    assert (sure.winner.item(), sure.confidence.item(), sure.entropy.item()) == (1, 1, 0)
    above = decide(torch.tensor([[1 + 1e-6], [0.0]]), probabilities=True)
    assert above.confidence.item() == 1 and above.entropy.item() == 0
