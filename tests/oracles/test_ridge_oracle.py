"""The closed-form head against least squares on one row a pixel, and cells of pixels against a loop over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.errors import UserError
from segue.ops.cells import cell_counts
from segue.ops.ridge import class_weights, moments, ridge_head


def pixels(seed: int, cells: int = 40, dims: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Features of cells, the last of them 1, and the pixels of each class in them: many of 0, none of the last."""
    g = torch.Generator().manual_seed(seed)
    features = torch.cat([3 * torch.randn(cells, dims, generator=g) + 1, torch.ones(cells, 1)], 1)
    counts = torch.randint(0, 3, (cells, classes), generator=g).float()
    counts[:, 0] *= 5
    counts[:, -1] = 0
    return features, counts


def rows(features: Tensor, counts: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One row a pixel: its features, its class."""
    index = [(m, c) for m in range(len(features)) for c in range(counts.shape[1]) for _ in range(int(counts[m, c]))]
    cell, label = np.array(index).T
    return features.double().numpy()[cell], label


def head(features: Tensor, counts: Tensor, ridge: float, balance: float, bias: bool) -> Tensor:
    gram, moment = moments(features, counts, balance > 0)
    weights = class_weights(counts.double().sum(0), balance)
    total = (gram * weights.view(-1, 1, 1)).sum(0) if balance else gram[0]
    return ridge_head(total, moment * weights.unsqueeze(1), ridge, bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_head_is_the_least_squares_of_all_pixels(balance: float, bias: bool) -> None:
    features, counts = pixels(0)
    features = features if bias else features[:, :-1]
    h, label = rows(features, counts)
    number = np.bincount(label, minlength=4)
    share = np.where(number > 0, (number.sum() / (number > 0).sum() / np.maximum(number, 1)) ** balance, 0)
    root = np.sqrt(share[label])[:, None]
    penalised = h.shape[1] - bias
    strength = 0.03 * ((root * h)[:, :penalised] ** 2).sum() / penalised
    below = np.sqrt(strength) * np.eye(penalised, h.shape[1])
    target = np.vstack([root * np.eye(4)[label], np.zeros((penalised, 4))])
    expected = np.linalg.lstsq(np.vstack([root * h, below]), target, rcond=None)[0].T
    np.testing.assert_allclose(head(features, counts, 0.03, balance, bias).numpy(), expected, rtol=1e-9, atol=1e-12)
    assert not expected[3].any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    parts=st.integers(1, 6),
    deal=st.integers(0, 2**31),
    balance=st.sampled_from([0.0, 0.7]),
)
def test_any_partition_of_the_pixels_gives_the_same_head(seed: int, parts: int, deal: int, balance: float) -> None:
    features, counts = pixels(seed)
    whole = head(features, counts, 1e-3, balance, True)
    rng = np.random.default_rng(deal)
    share = rng.multinomial(1, np.full(parts, 1 / parts), size=(*counts.shape, int(counts.max())))
    taken = np.arange(int(counts.max())) < counts.numpy()[..., None]
    dealt = torch.from_numpy((share * taken[..., None]).sum(2)).float()  # (cells, classes, parts)
    assert torch.equal(dealt.sum(-1), counts)
    order = rng.permutation(parts)
    sums = [moments(features, dealt[..., p], balance > 0) for p in order]
    gram, moment = sum(s[0] for s in sums), sum(s[1] for s in sums)
    weights = class_weights(sum(dealt[..., p].double().sum(0) for p in order), balance)
    total = (gram * weights.view(-1, 1, 1)).sum(0) if balance else gram[0]
    again = ridge_head(total, moment * weights.unsqueeze(1), 1e-3, True)
    torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-9)


def test_what_has_no_head_is_refused() -> None:
    features, counts = pixels(1)
    with pytest.raises(UserError, match="no labelled pixel"):
        head(features, torch.zeros_like(counts), 1e-3, 0.0, True)
    with pytest.raises(UserError, match="make it larger"):
        head(features.repeat(1, 2), counts, 1e-18, 0.0, False)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("padded", "grid"), [((40, 56), (5, 7)), ((64, 64), (64, 64)), ((36, 56), (9, 7))])
def test_pixels_count_in_the_nearest_cell(padded: tuple[int, int], grid: tuple[int, int], align: bool) -> None:
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (2, 35, 50), generator=g)
    label[label == 4] = 255
    weight = torch.rand(2, 35, 50, generator=g)
    for given_weight in (None, weight):
        found = cell_counts(label, padded, grid, 4, align_corners=align, weight=given_weight)
        expected = np.zeros((2, *grid, 5))
        for n, y, x in np.ndindex(2, *padded):
            inside = y < 35 and x < 50
            value = int(label[n, y, x]) if inside else 255
            cell = [_nearest(p, size, cells, align) for p, size, cells in zip((y, x), padded, grid, strict=True)]
            amount = 1.0 if given_weight is None else float(weight[n, y, x]) if inside else 0.0
            expected[n, cell[0], cell[1], min(value, 4)] += amount
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def _nearest(pixel: int, size: int, cells: int, align: bool) -> int:
    """The cell with the nearest centre; between two, the later one."""
    centres = np.linspace(0, size - 1, cells) if align else (np.arange(cells) + 0.5) * size / cells - 0.5
    distance = np.abs(centres - pixel)
    return int(np.flatnonzero(distance <= distance.min() + 1e-9)[-1])
