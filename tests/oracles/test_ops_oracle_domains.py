"""Domain losses, self-information and entropy against their equations, written out in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.base import Output
from segue.ops.domains import CHANCE, SOURCE, TARGET, DomainLoss, balanced_accuracy, discriminator_loss, domain_loss
from segue.ops.entropy import entropy, mean_entropy, self_information
from segue.ops.picture import picture_mean

F64 = npt.NDArray[np.float64]


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def softmax(z: F64) -> F64:
    p: F64 = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def by_hand(z: F64, label: float, kind: str) -> F64:
    """-y ln s(z) - (1 - y) ln(1 - s(z)), or (z - y)^2."""
    p = 1 / (1 + np.exp(-z))
    out: F64 = (z - label) ** 2 if kind == "least_squares" else -(label * np.log(p) + (1 - label) * np.log(1 - p))
    return out


@pytest.mark.parametrize("kind", ["vanilla", "least_squares"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_domain_loss_is_the_mean_over_the_picture_of_each_image(kind: DomainLoss, label: float) -> None:
    z = logits(2, 1, 2, 3)
    pixel = torch.ones(2, 64, 96, dtype=torch.bool)
    pixel[0, :, 48:] = False  # one and a half of three columns of cells
    cells = by_hand(z[:, 0].double().numpy(), label, kind)
    share = np.array([1, 0.5, 0])
    want = ((cells[0] * share).sum() / 3 + cells[1].mean()) / 2
    assert domain_loss(z, label, pixel, kind).item() == pytest.approx(want, rel=1e-6)
    assert domain_loss(z, label, torch.zeros_like(pixel), kind).item() == 0


def test_the_labels_are_zero_for_source_and_one_for_target() -> None:
    assert (SOURCE, TARGET) == (0, 1)


@pytest.mark.parametrize("k", [-3.0, 0.0, 0.5, 4.0])
def test_a_discriminator_that_always_says_k(k: float) -> None:
    z, pixel = torch.full((2, 1, 2, 3), k), torch.ones(2, 64, 96, dtype=torch.bool)
    vanilla = 0.5 * math.log1p(math.exp(k)) + 0.5 * math.log1p(math.exp(-k))
    assert discriminator_loss(z, z, (pixel, pixel)).item() == pytest.approx(vanilla, rel=1e-6)
    squares = 0.5 * k**2 + 0.5 * (k - 1) ** 2
    assert discriminator_loss(z, z, (pixel, pixel), "least_squares").item() == pytest.approx(squares, rel=1e-6)
    assert balanced_accuracy(z, z, (pixel, pixel)).item() == 0.5
    assert balanced_accuracy(z, z, (pixel, pixel), "least_squares").item() == 0.5


@pytest.mark.parametrize(("kind", "undecided"), [("vanilla", 0.0), ("least_squares", 0.5)])
def test_chance_is_the_loss_of_the_undecided_and_nothing_constant_is_better(kind: DomainLoss, undecided: float) -> None:
    pixel = torch.ones(1, 32, 32, dtype=torch.bool)

    def loss(k: float) -> float:
        z = torch.full((1, 1, 1, 1), k)
        return discriminator_loss(z, z, (pixel, pixel), kind).item()

    assert loss(undecided) == pytest.approx(CHANCE[kind])
    assert loss(undecided) < min(loss(undecided - 0.1), loss(undecided + 0.1))


def test_balanced_accuracy_counts_cells_of_the_picture() -> None:
    pixel = torch.ones(1, 32, 128, dtype=torch.bool)
    narrow = pixel.clone()
    narrow[..., 64:] = False
    source, target = torch.tensor([-1.0, 2, 9, 9]), torch.tensor([3.0, 1, 2, -4])
    found = balanced_accuracy(source.view(1, 1, 1, 4), target.view(1, 1, 1, 4), (narrow, pixel))
    assert found.item() == pytest.approx((1 / 2 + 3 / 4) / 2)


@pytest.mark.parametrize("classes", [2, 7, 19])
def test_self_information_equals_the_published_form_and_sums_to_the_entropy(classes: int) -> None:
    z = logits(2, classes, 4, 5)
    p = softmax(z.double().numpy())
    want = -p * np.log2(p + 1e-30) / np.log2(classes)
    np.testing.assert_allclose(self_information(z).numpy(), want, atol=1e-6)
    np.testing.assert_allclose(entropy(z).numpy(), want.sum(1), atol=1e-6)


def test_self_information_has_a_finite_gradient_where_a_class_is_certain() -> None:
    z = torch.tensor([[200.0, -200.0, -150.0], [0.0, 0.0, 0.0]]).view(2, 3, 1, 1).requires_grad_()
    assert z.softmax(1).min() == 0 and z.softmax(1).max() == 1
    shown = self_information(z)
    assert torch.equal(shown[0], torch.zeros(3, 1, 1))
    shown.square().sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_self_information_gradient_equals_that_of_the_published_form() -> None:
    z = logits(1, 5, 2, 2).double().requires_grad_()
    weight = logits(1, 5, 2, 2, seed=1).double()
    p = z.softmax(1)
    published = -p * torch.log2(p + 1e-30) / math.log2(5)
    pairs = [torch.autograd.grad((x * weight).sum(), z)[0] for x in (self_information(z), published)]
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("align", [False, True])
def test_mean_entropy_is_about_upsampled_predictions_inside_the_picture(align: bool) -> None:
    z = logits(2, 19, 4, 6)
    output = Output(z, z, size=(27, 43), padded=(32, 48), align_corners=align, num_classes=19)
    pixel = torch.ones(2, 27, 43, dtype=torch.bool)
    pixel[0, :, 30:] = False
    p = softmax(F.interpolate(z.double(), (32, 48), mode="bilinear", align_corners=align)[..., :27, :43].numpy())
    e = -(p * np.log2(p + 1e-30)).sum(1) / np.log2(19)
    want = (e[0, :, :30].mean() + e[1].mean()) / 2
    assert mean_entropy(output, z, pixel).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", ["vanilla", "least_squares"])
def test_losses_are_at_least_32_bits_under_autocast(kind: DomainLoss) -> None:
    z, pixel = logits(2, 1, 2, 3), torch.ones(2, 64, 96, dtype=torch.bool)
    half = z.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = domain_loss(half, TARGET, pixel, kind)
        assert self_information(logits(1, 3, 2, 2).bfloat16()).dtype == torch.float32
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, domain_loss(half.float(), TARGET, pixel, kind))
    assert domain_loss(z.double(), TARGET, pixel, kind).dtype == torch.float64


def test_picture_mean_of_the_same_grid_is_a_masked_mean() -> None:
    values = logits(2, 4, 6).double()
    pixel = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2)) > 0.4
    want = np.mean([values[i].numpy()[pixel[i].numpy()].mean() for i in range(2)])
    assert picture_mean(values, pixel).item() == pytest.approx(want, rel=1e-12)
