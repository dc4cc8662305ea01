"""Instance loss, gathering and bank against the direct full-resolution computation and loops over pixels, float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.ops import upsampling
from segue.ops.bank import (
    Bank,
    boundary_pixels,
    class_means,
    fill,
    momentum_update,
    one_boundary_pixel,
    replace_balanced,
    replace_oldest,
)
from segue.ops.instance import SimilarityConfig, gather_instances, instance_loss

PUBLISHED = SimilarityConfig(published=True, smoothing=0.7)
OURS = SimilarityConfig(weak_temperature=0.2, strong_temperature=0.3, smoothing=0.7)
EPSILON = 1e-10


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "CACHED_VALUES", 150)


def enlarge(x: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=corners)


def ratio(values: Tensor) -> Tensor:
    """Over the sum of dim 1; 0, without a gradient, where that is 0."""
    total = values.sum(1, keepdim=True)
    return torch.where(total == 0, 0, values / torch.where(total == 0, 1, total))


def unit(x: Tensor) -> Tensor:
    norm = x.pow(2).sum(1, keepdim=True)
    return torch.where(norm == 0, x, x / torch.where(norm == 0, 1, norm).sqrt())


def direct_similarities(embedding: Tensor, bank: Bank, size: tuple[int, int], corners: bool, ours: bool) -> Tensor:
    """K maps at full resolution: upsample all channels, then one product for every pixel and instance."""
    vectors = unit(bank.vectors) if ours else bank.vectors
    return torch.einsum("ndhw,kd->nkhw", enlarge(unit(embedding) if ours else embedding, size, corners), vectors)


def direct_loss(case: Case, ours: bool) -> Tensor:
    size = (case.pixel.shape[-2], case.pixel.shape[-1])
    f = direct_similarities(case.weak, case.bank, size, case.corners, ours)
    s = direct_similarities(case.strong, case.bank, size, case.corners, ours)
    if ours:
        f, log_p = (f / 0.2).softmax(1), (s / 0.3).log_softmax(1)
    else:
        log_p = (ratio(s) + EPSILON).log()
    if case.scores is not None:
        f = f * enlarge(case.scores, size, case.corners)[:, case.bank.labels]
    per_pixel = -(ratio(f) * log_p).sum(1)
    if case.weight is not None:
        per_pixel = per_pixel * case.weight
    images = [(one * real).sum() / max(1, int(real.sum())) for one, real in zip(per_pixel, case.pixel, strict=True)]
    return torch.stack(images).mean()


class Case:
    """Two views, a bank, and what counts; ``dead``: cells without any similarity."""

    def __init__(self, seed: int, grid: tuple[int, int], size: tuple[int, int], corners: bool, **how: object) -> None:
        g = torch.Generator().manual_seed(seed)
        n, d, k, c = 2, 4, int(how.get("k", 7)), 3  # type: ignore[call-overload]
        draw = {"generator": g, "dtype": torch.float64}
        self.strong, self.weak = (torch.rand(n, d, *grid, **draw) for _ in range(2))
        self.bank = Bank(torch.rand(k, d, **draw) + 0.01, torch.randint(0, c, (k,), generator=g))
        self.scores = torch.randn(n, c, *grid, **draw) if how.get("scatter", True) else None
        if self.scores is not None and how.get("ours"):
            self.scores = self.scores.softmax(1)
        self.pixel = torch.rand(n, *size, generator=g) < 0.8
        self.weight = torch.rand(n, *size, **draw) if how.get("weighted") else None
        dead = how.get("dead", 0.0)
        self.strong *= torch.rand(n, 1, *grid, generator=g) >= dead
        self.weak *= torch.rand(n, 1, *grid, generator=g) >= dead
        self.corners = corners
        self.strong.requires_grad_()

    def ours(self, similarity: SimilarityConfig) -> Tensor:
        return instance_loss(
            self.strong,
            self.weak,
            self.bank,
            self.scores,
            similarity,
            pixel=self.pixel,
            weight=self.weight,
            align_corners=self.corners,
        )


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, float(b.detach().abs().max())))


sides = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    sides,
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.booleans(),
    st.sampled_from([1, 7, 200]),
)
def test_loss_and_gradient_equal_the_direct_ones(
    seed: int,
    grid: tuple[int, int],
    size: tuple[int, int],
    corners: bool,
    published: bool,
    scatter: bool,
    dead: float,
    weighted: bool,
    k: int,
) -> None:
    case = Case(seed, grid, size, corners, scatter=scatter, dead=dead, weighted=weighted, k=k, ours=not published)
    expected = direct_loss(case, ours=not published)
    (expected_gradient,) = torch.autograd.grad(expected, case.strong)
    loss = case.ours(PUBLISHED if published else OURS)
    (gradient,) = torch.autograd.grad(3 * loss, case.strong)
    assert_same(loss, expected)
    assert_same(gradient, 3 * expected_gradient)


def test_no_similarity_at_all_costs_the_published_constant_and_passes_nothing() -> None:
    case = Case(0, (3, 4), (9, 11), False, scatter=False)
    case.pixel[:] = True
    case.strong.data.zero_()
    loss = case.ours(PUBLISHED)
    (gradient,) = torch.autograd.grad(loss, case.strong)
    assert loss.item() == pytest.approx(-math.log(EPSILON), abs=1e-9) and not gradient.any()
    case.weak.zero_()
    assert case.ours(PUBLISHED).item() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), sides, st.tuples(st.integers(1, 13), st.integers(1, 13)), st.booleans(), st.booleans())
def test_gathering_equals_the_direct_one(
    seed: int, grid: tuple[int, int], size: tuple[int, int], corners: bool, published: bool
) -> None:
    case = Case(seed, grid, size, corners, dead=0.3)
    g = torch.Generator().manual_seed(seed)
    prob = torch.randn(2, 3, *size, generator=g, dtype=torch.float64).softmax(1)
    f = direct_similarities(case.weak, case.bank, size, corners, ours=not published)
    f = ratio(f) if published else (f / 0.2).softmax(1)
    summed = torch.zeros_like(prob)
    for i, c in enumerate(case.bank.labels.tolist()):
        summed[:, c] += f[:, i]
    expected = 0.7 * prob + 0.3 * (prob + summed if published else summed)
    result = gather_instances(prob, case.weak, case.bank, PUBLISHED if published else OURS, corners)
    assert_same(result, expected)
    if not published:
        assert_same(result.sum(1), torch.ones(2, *size, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), sides, st.tuples(st.integers(1, 11), st.integers(1, 11)), st.booleans())
def test_class_means_equal_a_loop_over_pixels(
    seed: int, grid: tuple[int, int], size: tuple[int, int], corners: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2, 4, *grid, generator=g, dtype=torch.float64)
    label = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, *size), generator=g)]
    large = enlarge(embedding, size, corners)
    means, pixels = class_means(embedding, label, 5, corners)
    for n in range(2):
        for c in range(5):
            members = [large[n, :, y, x] for y in range(size[0]) for x in range(size[1]) if label[n, y, x] == c]
            assert pixels[n, c] == len(members)
            assert_same(means[n, c], torch.stack(members).mean(0) if members else torch.zeros(4, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(2, 3))
def test_boundary_pixels_equal_a_loop_over_neighbours(seed: int, size: tuple[int, int], distinct: int) -> None:
    g = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 0, 0, 1, 2, 255])[torch.randint(0, 6, (2, *size), generator=g)]
    noise = torch.rand(2, *size, generator=g)
    found = boundary_pixels(label, 3, distinct)
    chosen = one_boundary_pixel(label, 3, noise, distinct)
    expected = torch.full_like(label, 255)
    for n in range(2):
        best = [-1.0] * 3
        for y in range(size[0]):
            for x in range(size[1]):
                near = set(label[n, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].flatten().tolist()) - {255}
                own = int(label[n, y, x])
                assert found[n, y, x] == (own != 255 and len(near) >= distinct)
                if found[n, y, x] and float(noise[n, y, x]) > best[own]:
                    best[own] = float(noise[n, y, x])
                    expected[n][(expected[n] == own)] = 255
                    expected[n, y, x] = own
    assert torch.equal(chosen, expected)


def bank_of(labels: list[int]) -> Bank:
    return Bank(torch.arange(len(labels) * 2, dtype=torch.float64).view(-1, 2), torch.tensor(labels))


presences = st.lists(st.booleans(), min_size=4, max_size=4)
label_lists = st.lists(st.integers(0, 3), min_size=4, max_size=9)
MEANS = 100 + torch.arange(8, dtype=torch.float64).view(4, 2)


@settings(max_examples=40, deadline=None)
@given(label_lists, st.lists(presences, min_size=1, max_size=4), st.integers(0, 4), st.booleans())
def test_fill_and_momentum_equal_loops(labels: list[int], images: list[list[bool]], used: int, published: bool) -> None:
    bank, slot = bank_of(labels), torch.tensor(used)
    vectors, names, place = bank.vectors.clone(), list(labels), used
    for image in images:
        bank, slot = fill(bank, slot, MEANS, torch.arange(4), torch.tensor(image))
        for c in range(4):
            if image[c] and place < len(names):
                vectors[place], names[place], place = MEANS[c], c, place + 1
    assert torch.equal(bank.vectors, vectors) and bank.labels.tolist() == names and int(slot) == place
    moved = momentum_update(bank, MEANS, torch.tensor(images[0]), 0.75, published)
    for i, c in enumerate(names):
        target = MEANS[c] if images[0][c] else 0 * MEANS[c]
        if images[0][c] or published:
            vectors[i] = 0.75 * vectors[i] + 0.25 * target
    assert_same(moved.vectors, vectors)
    assert moved.labels.tolist() == names


@settings(max_examples=40, deadline=None)
@given(label_lists, st.lists(presences, min_size=1, max_size=6), st.permutations(range(4)), st.integers(1, 4))
def test_replacement_equals_loops(labels: list[int], images: list[list[bool]], order: list[int], stride: int) -> None:
    bank, turn = bank_of(labels), torch.zeros(4, dtype=torch.long)
    balanced, pointer = bank_of(labels), torch.tensor(1)
    queues = {c: [i for i, name in enumerate(labels) if name == c] for c in range(4)}
    vectors, place = bank.vectors.clone(), 1
    other, names = bank.vectors.clone(), list(labels)
    for step, image in enumerate(images):
        means, present = MEANS + 10 * step, torch.tensor(image)
        bank, turn = replace_oldest(bank, turn, means, present)
        for c in range(4):
            if image[c] and queues[c]:
                slot = queues[c].pop(0)
                queues[c].append(slot)
                vectors[slot] = means[c]
        assert torch.equal(bank.vectors, vectors) and bank.labels.tolist() == labels

        balanced, pointer = replace_balanced(balanced, pointer, means, present, torch.tensor(order), stride)
        here = [c for c in order if image[c]]
        short = [c for c in here if names.count(c) < len(names) / 4 - 1]
        for c in short or here[:stride]:
            other[place], names[place] = means[c], c
            place = (place + 1) % len(names)
        assert torch.equal(balanced.vectors, other) and balanced.labels.tolist() == names and int(pointer) == place
