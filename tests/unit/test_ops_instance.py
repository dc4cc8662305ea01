"""The instance loss: what it never makes, who gets a gradient, how it is averaged, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segue.ops import upsampling
from segue.ops.bank import Bank, class_means, random_bank
from segue.ops.instance import SimilarityConfig, gather_instances, instance_loss

FORMS = [SimilarityConfig(smoothing=0.9), SimilarityConfig(published=True, smoothing=0.9)]
forms = pytest.mark.parametrize("similarity", FORMS, ids=["ours", "published"])
SIZE = (48, 64)


def views(seed: int = 0, n: int = 2, d: int = 8) -> tuple[Tensor, Tensor, Bank, Tensor]:
    g = torch.Generator().manual_seed(seed)
    strong, weak = (torch.rand(n, d, 12, 16, generator=g) for _ in range(2))
    prob = torch.randn(n, 5, *SIZE, generator=g).softmax(1)
    return strong.requires_grad_(), weak, random_bank(40, d, 5, g, nonnegative=True), prob


def everywhere(n: int = 2) -> Tensor:
    return torch.ones(n, *SIZE, dtype=torch.bool)


class Largest(TorchDispatchMode):
    """Size of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.values = max(self.values, one.untyped_storage().nbytes() // one.element_size())
        return result


@forms
def test_no_tensor_of_all_instances_at_all_pixels(
    similarity: SimilarityConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsampling, "CACHED_VALUES", 40 * 100)
    strong, weak, bank, prob = views()
    with Largest() as largest:
        instance_loss(strong, weak, bank, prob, similarity, pixel=everywhere()).backward()
        gather_instances(prob, weak, bank, similarity)
        class_means(weak, prob.argmax(1), 5)
    assert strong.grad is not None and strong.grad.abs().max() > 0
    assert largest.values < 40 * SIZE[0] * SIZE[1] / 3, "the class scores are the largest"
    with Largest() as largest:
        torch.nn.functional.interpolate(torch.zeros(1, 40, 12, 16), SIZE)
    assert largest.values == 40 * SIZE[0] * SIZE[1]


@forms
def test_only_the_strong_view_learns(similarity: SimilarityConfig) -> None:
    strong, weak, bank, prob = views()
    leaves = [weak, bank.vectors, prob]
    for leaf in leaves:
        leaf.requires_grad_()
    instance_loss(strong, weak, bank, prob, similarity, pixel=everywhere()).backward()
    assert strong.grad is not None and all(leaf.grad is None for leaf in leaves)


@forms
def test_padding_and_batch_split_change_nothing(similarity: SimilarityConfig) -> None:
    strong, weak, bank, prob = views()
    pixel, weight = everywhere(), torch.rand(2, *SIZE)
    pixel[0, :, 40:] = False
    whole = instance_loss(strong, weak, bank, prob, similarity, pixel=pixel, weight=weight)
    parts = [
        instance_loss(strong[i], weak[i], bank, prob[i], similarity, pixel=pixel[i], weight=weight[i])
        for i in (slice(0, 1), slice(1, 2))
    ]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    weight[0, :, 40:] = 1e6
    again = instance_loss(strong, weak, bank, prob, similarity, pixel=pixel, weight=weight)
    assert float(again) == float(whole)
    assert float(instance_loss(strong, weak, bank, prob, similarity, pixel=torch.zeros_like(pixel))) == 0


def test_agreement_costs_least() -> None:
    strong, weak, bank, _ = views()
    agree, differ = (instance_loss(view, weak, bank, None, FORMS[0], pixel=everywhere()) for view in (weak, strong))
    assert float(agree) < float(differ)


@forms
def test_descent_brings_the_views_together(similarity: SimilarityConfig) -> None:
    strong, weak, bank, prob = views()
    first = instance_loss(strong, weak, bank, prob, similarity, pixel=everywhere())
    (gradient,) = torch.autograd.grad(first, strong)
    moved = (strong - 1e-2 * gradient / gradient.abs().max()).detach()
    assert float(instance_loss(moved, weak, bank, prob, similarity, pixel=everywhere())) < float(first)


@forms
def test_half_precision_is_summed_in_full(similarity: SimilarityConfig) -> None:
    strong, weak, bank, prob = views()
    half = strong.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = instance_loss(half, weak.bfloat16(), bank, prob, similarity, pixel=everywhere())
    loss.backward()
    full = instance_loss(half.float(), weak.bfloat16().float(), bank, prob, similarity, pixel=everywhere())
    assert loss.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.bfloat16
    assert float(loss) == pytest.approx(float(full), rel=1e-6)


def test_zero_embeddings_keep_gradients_finite_and_small() -> None:
    _, weak, bank, prob = views()
    zero = torch.zeros_like(weak).requires_grad_()
    instance_loss(zero, weak, bank, prob, SimilarityConfig(), pixel=everywhere()).backward()
    assert zero.grad is not None and 0 < zero.grad.abs().max() < 1


def test_smoothing_of_one_gathers_nothing() -> None:
    _, weak, bank, prob = views()
    assert torch.equal(gather_instances(prob, weak, bank, SimilarityConfig(smoothing=1)), prob)


def test_random_banks_are_unit_vectors_of_all_classes() -> None:
    bank = random_bank(300, 64, 19, torch.Generator().manual_seed(3))
    torch.testing.assert_close(bank.vectors.norm(dim=1), torch.ones(300))
    assert bank.vectors.mean().abs() < 0.01 and set(torch.bincount(bank.labels).tolist()) == {15, 16}
    again = random_bank(300, 64, 19, torch.Generator().manual_seed(3), nonnegative=True)
    assert torch.equal(again.vectors, bank.vectors.abs())


def test_what_does_not_fit_is_refused() -> None:
    strong, weak, bank, prob = views()
    pixel = everywhere()
    with pytest.raises(ValueError, match="strong is"):
        instance_loss(strong, weak[:1], bank, prob, FORMS[0], pixel=pixel)
    with pytest.raises(ValueError, match="8 channels"):
        instance_loss(strong, weak, bank._replace(vectors=bank.vectors[:, :4]), prob, FORMS[0], pixel=pixel)
    with pytest.raises(ValueError, match="bool"):
        instance_loss(strong, weak, bank, prob, FORMS[0], pixel=pixel.float())
    with pytest.raises(ValueError, match="weight is"):
        instance_loss(strong, weak, bank, prob, FORMS[0], pixel=pixel, weight=torch.ones(2, 3, 3))
