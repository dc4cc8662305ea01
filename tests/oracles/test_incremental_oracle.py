"""Losses that keep old classes against loops over pixels in float64, their gradients against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.models.base import Head, Output
from segue.ops.incremental import Among, at_pixels, distillation, mean_over, merged_old, old_as_one
from segue.ops.losses import segmentation
from segue.ops.resize import bilinear

FORMS: tuple[Among, ...] = ("all", "old", "background")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def one_pixel(z: np.ndarray, t: np.ndarray, among: Among, temperature: float, weight: float) -> float:
    """From the definitions, probabilities first."""
    k = len(t)
    q = softmax(t / temperature)
    p = softmax(z / temperature)
    if among == "old":
        r = p[:k] / p[:k].sum()
    elif among == "all":
        r = p[:k]
    else:
        r = np.array([p[0] + p[k:].sum(), *p[1:k]])
    bits = -sum(x * math.log2(x) for x in q if x > 0)
    return (1 + weight * bits) * -sum(q[c] * math.log(r[c]) for c in range(k))


def logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(FORMS),
    st.sampled_from([0.5, 1.0, 2.5]),
    st.sampled_from([0.0, 1.0, 0.3]),
)
def test_distillation_is_the_definition(
    seed: int, shape: tuple[int, int, int], old: int, new: int, among: Among, temperature: float, weight: float
) -> None:
    n, h, w = shape
    z, t = logits(seed, n, old + new, h, w), logits(seed + 1, n, old, h, w)
    found = distillation(z, t, among, temperature, weight)
    assert found.shape == (n, h, w)
    for i, y, x in np.ndindex(n, h, w):
        expected = one_pixel(z[i, :, y, x].numpy(), t[i, :, y, x].numpy(), among, temperature, weight)
        assert float(found[i, y, x]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("among", FORMS)
@pytest.mark.parametrize("new", [0, 2])
def test_gradient_of_distillation_reaches_the_student_alone(among: Among, new: int) -> None:
    z, t = logits(0, 2, 3 + new, 2, 2).requires_grad_(), logits(1, 2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distillation(x, t, among, 1.7, 0.8), z)
    distillation(z, t, among, 1.7, 0.8).sum().backward()
    assert t.grad is None and z.grad is not None


@pytest.mark.parametrize("among", FORMS)
def test_a_certain_teacher_has_weight_one_and_no_nan(among: Among) -> None:
    z = logits(2, 1, 5, 1, 1).requires_grad_()
    for certain in ([0.0, -math.inf, -math.inf], [0.0, -900.0, -900.0]):
        t = torch.tensor(certain, dtype=torch.float64).view(1, 3, 1, 1)
        weighted, plain = distillation(z, t, among, 1.0, 1.0), distillation(z, t, among)
        assert float(weighted.detach()) == float(plain.detach()) and math.isfinite(float(plain.detach()))
        (gradient,) = torch.autograd.grad(weighted.sum(), z)
        assert bool(gradient.isfinite().all())


def test_golden_numbers_of_one_pixel() -> None:
    """Two old and two new classes, teacher (0.5, 0.5), student uniform."""
    z, t = torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 1, 1)
    assert float(distillation(z, t, "all", 1.0, 1.0)) == pytest.approx(2.7726, abs=5e-5)
    assert float(distillation(z, t, "all", 1.0, 0.0)) == pytest.approx(1.3863, abs=5e-5)
    assert float(distillation(z, t, "old")) == pytest.approx(math.log(2))
    assert float(distillation(z, t, "background")) == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))


def test_float32_keeps_up_with_large_logits() -> None:
    z, t = logits(3, 2, 6, 8, 8, scale=30), logits(4, 2, 4, 8, 8, scale=30)
    for among in FORMS:
        found, exact = (distillation(z.to(d), t.to(d), among, 1.0, 1.0) for d in (torch.float32, torch.float64))
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_teacher_of_more_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="4 outputs"):
        distillation(torch.zeros(1, 3, 1, 1), torch.zeros(1, 4, 1, 1), "all")


def test_merged_outputs_have_the_sum_of_the_old_probabilities() -> None:
    z = logits(5, 2, 5, 3, 4)
    p, merged = z.softmax(1), merged_old(z, 3).softmax(1)
    torch.testing.assert_close(merged, torch.cat([p[:, :3].sum(1, keepdim=True), p[:, 3:]], 1))


def test_unbiased_terms_without_background_add_up_to_cil() -> None:
    z, t = logits(6, 2, 5, 3, 4), logits(7, 2, 3, 3, 4)
    one_of_old = -merged_old(z, 3).log_softmax(1)[:, 0]
    torch.testing.assert_close(one_of_old + distillation(z, t, "old"), distillation(z, t, "all"))


def test_mean_over_ignores_what_is_not_chosen() -> None:
    values = torch.tensor([[[2.0, torch.inf], [5.0, torch.nan]]], requires_grad=True)
    chosen = torch.tensor([[[True, False], [True, False]]])
    mean = mean_over(values, chosen, chosen.sum())
    mean.backward()
    assert float(mean.detach()) == 3.5
    assert values.grad is not None and values.grad.tolist() == [[[0.5, 0], [0.5, 0]]]
    assert float(mean_over(values, ~chosen & chosen, torch.tensor(0.0)).detach()) == 0


def make_output(seed: int, classes: int, size: tuple[int, int] = (30, 44), grid: tuple[int, int] = (4, 6)) -> Output:
    """Logits at stride 8 of a picture that was padded from 30x44 to 32x48."""
    z = logits(seed, 2, classes, *grid)
    head = Head("aux", logits(seed + 50, 2, classes, *grid), weight=0.4)
    window = Head("window", logits(seed + 60, 2, classes, 2, 3), weight=0.2, window=(0, 0, 16, 24))
    edge = Head("edge", logits(seed + 70, 2, 1, *grid), target="boundary")
    return Output(z, z, heads=(head, window, edge), size=size, padded=(32, 48), num_classes=classes)


def test_upsampled_loss_is_that_of_the_whole_picture() -> None:
    student, teacher = make_output(0, 5), make_output(10, 4)
    teacher = replace(teacher, num_classes=3)  # its last output is "unknown" and is no class
    found = at_pixels(student, teacher, (30, 44), lambda z, t: distillation(z, t, "all"))
    z, t = (bilinear(o, (32, 48))[..., :30, :44] for o in (student.logits, teacher.logits[:, :3]))
    torch.testing.assert_close(found, distillation(z, t, "all"))


@pytest.mark.parametrize("n_old", [1, 3])
def test_unbiased_cross_entropy_is_the_definition_for_logits_and_heads(n_old: int) -> None:
    output = replace(make_output(20, 5), heads=make_output(20, 5).heads[:1])
    label = torch.randint(0, 6 - n_old, (2, 30, 44), generator=torch.Generator().manual_seed(1))
    label[:, :3] = 255
    pixel = torch.ones_like(label, dtype=torch.bool)
    pixel[:, :, 40:] = False
    count = torch.tensor(77.0)
    found = segmentation(old_as_one(output, n_old, (30, 44)), label, pixel=pixel, denominator=count)
    total = 0.0
    for weight, z in ((1.0, output.logits), (0.4, output.heads[0].logits)):
        p = bilinear(z, (32, 48))[..., :30, :44].softmax(1).numpy()
        for i, y, x in np.ndindex(2, 30, 44):
            if label[i, y, x] == 255 or not pixel[i, y, x]:
                continue
            c = int(label[i, y, x])
            total -= weight * math.log(p[i, :n_old, y, x].sum() if c == 0 else p[i, n_old - 1 + c, y, x])
    assert float(found) == pytest.approx(total / 77, rel=1e-9)


def test_merging_leaves_boundary_heads_alone_and_windows_on_their_grid() -> None:
    output = make_output(30, 5)
    merged = old_as_one(output, 3, (30, 44))
    assert [h.logits.shape[1:] for h in merged.heads] == [(3, 32, 48), (3, 2, 3), (1, 4, 6)]
    assert torch.equal(merged.heads[1].logits, merged_old(output.heads[1].logits, 3))
    assert merged.heads[2] is output.heads[2]


def test_gradient_of_unbiased_cross_entropy() -> None:
    label = torch.tensor([[[0, 1, 2], [255, 0, 1]]])
    pixel = torch.ones_like(label, dtype=torch.bool)

    def loss(z: Tensor) -> Tensor:
        output = Output(z, z, size=(2, 3), padded=(2, 3), num_classes=4)
        return segmentation(old_as_one(output, 2, (2, 3)), label, pixel=pixel, denominator=torch.tensor(5.0))

    assert torch.autograd.gradcheck(loss, logits(8, 1, 4, 2, 3).requires_grad_())
