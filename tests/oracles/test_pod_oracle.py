"""Local POD against loops over regions, and PLOP's thresholds against numpy and a restatement of the shipped search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.models.base import Output
from segue.ops.plop import BINS, PUBLISHED_BINS, histogram, medians, published_medians, uncertainty
from segue.ops.pod import folded, local_pod, picture_share

WHOLE = torch.float64


def by_loops(a: Tensor, b: Tensor, share: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Every region of every scale one after the other; region borders may fall inside a cell."""
    _, depth, height, width = a.shape
    found = []
    for image in range(len(a)):
        total = 0.0
        for scale in scales:
            for part in range(scale):
                low, high = part * width / scale, (part + 1) * width / scale
                inside = [max(0.0, min(x + 1, high) - max(x, low)) for x in range(width)]
                total += sum(
                    mean(
                        [a[image, d, y, x] ** 2 - b[image, d, y, x] ** 2 for x in range(width)], share[image, y], inside
                    )
                    for d in range(depth)
                    for y in range(height)
                )
                low, high = part * height / scale, (part + 1) * height / scale
                inside = [max(0.0, min(y + 1, high) - max(y, low)) for y in range(height)]
                total += sum(
                    mean(
                        [a[image, d, y, x] ** 2 - b[image, d, y, x] ** 2 for y in range(height)],
                        share[image, :, x],
                        inside,
                    )
                    for d in range(depth)
                    for x in range(width)
                )
        found.append(math.sqrt(total))
    return torch.tensor(found, dtype=WHOLE)


def mean(values: list[Tensor], share: Tensor, inside: list[float]) -> float:
    """Square of the weighted mean; 0 where no weight is."""
    weight = sum(float(s) * i for s, i in zip(share, inside, strict=True))
    total = sum(float(v) * float(s) * i for v, s, i in zip(values, share, inside, strict=True))
    return (total / weight) ** 2 if weight > 0 else 0.0


def published(x: Tensor, scales: tuple[int, ...]) -> Tensor:
    """The embedding of a square map whose side every scale divides: slices, means, one long vector."""
    x, side = x.square(), x.shape[-1]
    parts = []
    for scale in scales:
        for top in range(0, side, side // scale):
            for left in range(0, side, side // scale):
                region = x[:, :, top : top + side // scale, left : left + side // scale]
                parts += [region.mean(3).flatten(1), region.mean(2).flatten(1)]
    return torch.cat(parts, 1)


def test_square_maps_give_the_published_numbers() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 8, 8, generator=g, dtype=WHOLE) for _ in range(2))
    expected = torch.linalg.vector_norm(published(a, (1, 2, 4)) - published(b, (1, 2, 4)), dim=1)
    torch.testing.assert_close(local_pod(a, b, torch.ones(2, 8, 8)), expected)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    scales=st.sampled_from([(1,), (1, 2), (1, 2, 4), (3,)]),
    seed=st.integers(0, 99),
)
def test_any_size_and_padding_against_loops(height: int, width: int, scales: tuple[int, ...], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, 2, height, width, generator=g, dtype=WHOLE) for _ in range(2))
    share = torch.rand(2, height, width, generator=g, dtype=WHOLE)
    share = torch.where(share < 0.3, 0, share)
    torch.testing.assert_close(local_pod(a, b, share, scales), by_loops(a, b, share, scales), rtol=1e-9, atol=1e-12)


def test_gradients_are_right_finite_at_equality_and_none_for_the_teacher() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(1, 2, 3, 5, generator=g, dtype=WHOLE, requires_grad=True) for _ in range(2))
    share = torch.rand(1, 3, 5, generator=g, dtype=WHOLE)
    assert torch.autograd.gradcheck(lambda x: local_pod(x, b, share), (a,))
    local_pod(a, b, share).sum().backward()
    assert b.grad is None
    same = b.detach().clone().requires_grad_()
    local_pod(same, b, share).sum().backward()
    assert same.grad is not None and not same.grad.any()


def test_padding_enters_nothing() -> None:
    g = torch.Generator().manual_seed(2)
    a, b = (torch.randn(1, 2, 4, 6, generator=g, dtype=WHOLE) for _ in range(2))
    share = torch.ones(1, 4, 6)
    share[:, :, 4:] = 0
    other = torch.where(share.bool().unsqueeze(1), a, 99.0)
    torch.testing.assert_close(local_pod(other, b, share), local_pod(a, b, share), rtol=0, atol=0)
    assert not local_pod(a, b, torch.zeros(1, 4, 6)).any()


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        local_pod(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4))


def test_share_of_the_picture_knows_the_networks_margin() -> None:
    output = Output(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), size=(40, 48), padded=(64, 64))
    pixel = torch.ones(1, 40, 48, dtype=torch.bool)
    pixel[:, :, :16] = False
    expected = torch.tensor([[[0.5, 0.5], [0.125, 0.125]]])
    torch.testing.assert_close(picture_share(output, pixel, (2, 2)), expected)


def test_folding_adds_new_logits_to_the_first() -> None:
    z = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(3))
    expected = z[:, :3].clone()
    expected[:, 0] += z[:, 3] + z[:, 4]
    torch.testing.assert_close(folded(z, 3), expected)


def test_uncertainty_and_the_shipped_form_of_it() -> None:
    z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(4), dtype=WHOLE) * 4
    p = z.softmax(1)
    torch.testing.assert_close(uncertainty(z), -(p * p.log()).sum(1) / math.log(4))
    # As shipped: mean over classes, logarithms with 1e-8, over ln K, then over ln of all classes.
    shipped = -(p * (p + 1e-8).log()).mean(1) / math.log(4 + 1e-8) / math.log(7)
    torch.testing.assert_close(uncertainty(z, 7), shipped, rtol=1e-5, atol=1e-7)
    assert float(uncertainty(torch.zeros(1, 4, 1, 1), 7)) == pytest.approx(1 / (4 * math.log(7)))
    assert not uncertainty(z[:, :1]).any()


def test_medians_are_numpys_within_a_bin() -> None:
    rng = np.random.default_rng(0)
    values = [rng.beta(0.3, 3, 4001), rng.random(4000), 1 - rng.beta(0.3, 2, 501), np.full(7, 0.2504)]
    counts = torch.stack(
        [histogram(torch.zeros(len(v), dtype=torch.int64), torch.tensor(v), 1, BINS)[0] for v in values]
    )
    expected = torch.tensor([float(np.median(v)) for v in values], dtype=WHOLE)
    torch.testing.assert_close(medians(counts), expected, rtol=0, atol=1 / BINS)
    assert medians(torch.zeros(2, BINS, dtype=torch.int64)).tolist() == [0, 0]


def test_histogram_counts_every_pixel_once_by_class() -> None:
    label = torch.tensor([0, 2, 2, 2, 0])
    u = torch.tensor([0.0, 0.26, 1.0, 0.99, 0.25])
    assert histogram(label, u, 3, 4).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 2]]


def shipped_search(row: list[int]) -> float:
    """The search as the shipped code does it, in words of Python."""
    bins, half, summed = len(row), sum(row) / 2, 0.0
    if not half:
        return 0.0
    for k in range(bins):
        border = k / bins
        n = row[int(border * bins)]
        if summed <= half <= summed + n:
            break
        summed += border * bins
    return float(border + torch.tensor(half - summed, dtype=WHOLE) / n / bins)


@settings(max_examples=60, deadline=None)
@given(
    row=st.lists(st.integers(0, 3000), min_size=PUBLISHED_BINS, max_size=PUBLISHED_BINS),
    first=st.integers(0, 300_000),
    kept=st.integers(0, PUBLISHED_BINS),
)
def test_the_shipped_search(row: list[int], first: int, kept: int) -> None:
    row = [first, *row[1:kept], *[0] * (PUBLISHED_BINS - max(kept, 1))]
    found = float(published_medians(torch.tensor([row]))[0])
    assert found == pytest.approx(shipped_search(row), nan_ok=True)


def test_what_the_shipped_search_gives() -> None:
    rows = torch.zeros(4, PUBLISHED_BINS, dtype=torch.int64)
    rows[0, 0] = 1000  # all in the first bin: half of a bin
    rows[1, 0], rows[1, 1] = 600, 400  # half / count of the first bin, of a bin's width
    rows[2, :50] = 4000  # no bin has half of the pixels: everything is accepted
    found = published_medians(rows)
    torch.testing.assert_close(found[:2], torch.tensor([0.005, 5 / 6 * 0.01], dtype=WHOLE))
    assert found[2] == math.inf and found[3] == 0
