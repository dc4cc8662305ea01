"""SSUL as a method: what trains and what is bit for bit as it was, targets in both treatments, splits of a batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from helpers.steps import (
    ALL,
    OLD,
    TREATMENTS,
    backward,
    build,
    earlier,
    gradients,
    grown,
    in_padding,
    part,
    shown,
    train,
)
from segue.data.batch import Batch
from segue.errors import UserError
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.ops.binary import binary_losses

both = pytest.mark.parametrize("treatment", TREATMENTS)


def later(treatment: str, model: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A later step."""
    teacher = earlier(unknown=True, **(model or {}))
    with torch.no_grad():  # some old class is certain somewhere, and uncertain elsewhere
        teacher.head.classifier.weight[1:OLD].mul_(-1.2)
    built = build("ssul", TREATMENTS[treatment], teacher, grown(teacher, "unknown"), **settings)
    built.prepare({})
    return built


def first(treatment: str, **settings: Any) -> Any:
    """A first step with all classes."""
    built = build("ssul", TREATMENTS[treatment], None, grown(earlier(**settings)))
    built.prepare({})
    return built


@limits(max_examples=20, deadline=None)
@drawn(seed=st.integers(0, 99), outputs=st.integers(2, 6))
def test_binary_losses_against_torchs(seed: int, outputs: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, outputs, 3, 4, generator=g, dtype=torch.float64) * 5
    one = torch.randint(0, outputs - 1, (2, 3, 4), generator=g)
    one[torch.rand(2, 3, 4, generator=g) < 0.3] = 255
    other = torch.where(torch.rand(2, 3, 4, generator=g) < 0.5, outputs - 1, 255)
    target = torch.zeros_like(z)
    for index in (one, other):
        target += torch.nn.functional.one_hot(index.clamp(max=outputs), outputs + 1).movedim(-1, 1)[:, :outputs]
    expected = binary_cross_entropy_with_logits(z, target, reduction="none").sum(1)
    torch.testing.assert_close(binary_losses(z, [one, other]), expected)


def reference(model: SegModel, given: Batch, treatment: str, old: int, threshold: float = 0.7) -> Tensor:
    """The loss of one output map of all classes and unknown, restated with masks; those that train are summed."""
    background = treatment == "background"
    output = model(given.image)
    z = output.upsample(output.logits).double()
    first_class = 1 if background else 0
    target = torch.zeros_like(z)
    rest = given.label == (0 if background else 255)
    if old > first_class:
        rest = rest & (z[:, first_class:old].sigmoid().amax(1) < threshold)
    for c in range(first_class, ALL):
        target[:, c] = (given.label == c).double()
    target[:, ALL] = rest.double()
    trained = [*range(old, ALL + 1)]
    if background:
        target[:, 0] = rest.double()
        trained = sorted({0, *trained})
    loss = binary_cross_entropy_with_logits(z[:, trained], target[:, trained], reduction="none").sum(1)
    taught = given.pixel & ((given.label != 255) | torch.tensor(not background))
    return ((loss * taught).sum((1, 2)) / given.pixel.sum((1, 2))).mean()


@both
def test_the_loss_of_a_later_step(treatment: str) -> None:
    built, given = later(treatment), shown(3, TREATMENTS[treatment])
    terms = next(built.losses({"source": given}, 0))
    assert terms["source"].item() == pytest.approx(reference(built.model, given, treatment, OLD).item(), rel=1e-5)
    share = float(terms.logs["share_unknown"])
    everything = later(treatment, threshold=0.9999)
    more = float(next(everything.losses({"source": given}, 0)).logs["share_unknown"])
    assert 0 < share < more


@both
def test_the_first_step_trains_everything_heads_included(treatment: str) -> None:
    built, given = first(treatment), shown(3, TREATMENTS[treatment])
    before = {n: p.detach().clone() for n, p in built.model.named_parameters()}
    assert all(map(math.isfinite, train(built, TREATMENTS[treatment])))
    assert all(not torch.equal(p, before[n]) for n, p in built.model.named_parameters())
    assert built.model.extra == "unknown"
    built.model.eval()  # no heads: the main logits alone
    terms = next(built.losses({"source": given}, 0))
    assert terms["source"].item() == pytest.approx(reference(built.model, given, treatment, 0).item(), rel=1e-5)


@both
@pytest.mark.parametrize("name", ["bisenet", "erfnet"])
def test_a_later_step_leaves_all_but_new_and_unknown_rows_bit_for_bit(treatment: str, name: str) -> None:
    teacher = earlier(unknown=True) if name == "bisenet" else with_dropout_and_bias()
    built = build("ssul", TREATMENTS[treatment], teacher, grown(teacher, "unknown"))
    built.prepare({})
    before = {k: v.clone() for k, v in built.model.state_dict().items()}
    train(built, TREATMENTS[treatment])
    rows = {f"{path}.{kind}" for path in built.model.classifiers() for kind in ("weight", "bias")}
    main = next(iter(built.model.classifiers()))
    free = [0, OLD, OLD + 1, ALL] if treatment == "background" else [OLD, OLD + 1, ALL]
    for key, value in built.model.state_dict().items():
        if key not in rows:
            assert torch.equal(value, before[key]), key
            continue
        dim = 1 if name == "erfnet" and key.endswith("weight") else 0
        changed = [not torch.equal(a, b) for a, b in zip(value.unbind(dim), before[key].unbind(dim), strict=True)]
        assert changed == [r in free and key.startswith(main) for r in range(ALL + 1)], key
    assert not built.model.training


def with_dropout_and_bias() -> SegModel:
    """ERFNet, whose classifier is transposed."""
    torch.manual_seed(0)
    model = build_model({"name": "erfnet"}, OLD)
    model.add_unknown()
    return model


def test_backgrounds_row_moves_by_its_factor() -> None:
    start = later("background").model.head.classifier.weight.detach().clone()
    moved = []
    for factor in (1.0, 0.25, 0.0):
        built = later("background", background_lr_factor=factor)
        train(built, TREATMENTS["background"], iterations=1)
        moved.append((built.model.head.classifier.weight.detach() - start)[0])
    torch.testing.assert_close(moved[1], moved[0] * 0.25)
    assert moved[0].any() and not moved[2].any()


@both
def test_unknown_is_no_prediction_and_new_rows_start_from_it(treatment: str) -> None:
    built = later(treatment)
    output = built.model(shown(1, TREATMENTS[treatment]).image)
    assert output.logits.shape[1] == ALL + 1 and output.to_classes().shape[1] == ALL
    for new in range(OLD, ALL):
        assert torch.equal(output.logits[:, new], output.logits[:, ALL])


@both
def test_a_resumed_step_ends_with_the_same_bytes(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], later(treatment)
    train(built, labels, 2)
    again = later(treatment)
    again.load_state_dict(built.state_dict())
    assert train(again, labels, 2, start=2) == train(built, labels, 2, start=2)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built.parameters(), strict=True))


@both
@pytest.mark.parametrize("make", [later, lambda treatment: first(treatment, norm="frozen")], ids=["later", "first"])
def test_padding_and_the_split_of_a_batch_change_nothing(treatment: str, make: Any) -> None:
    built, given = make(treatment), shown(4, TREATMENTS[treatment])
    whole = backward(built, {"source": given})
    expected = gradients(built)
    split = sum(backward(built, {"source": part(given, slice(k, k + 1), 0.5)}, share=0.5) for k in range(2))
    assert split == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients(built).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert backward(built, {"source": in_padding(given)}) == whole


def test_both_steps_must_be_its_own() -> None:
    labels, teacher = TREATMENTS["ignore"], earlier()
    other = build("ssul", labels, teacher, grown(teacher))
    with pytest.raises(UserError, match="by 'ssul' as well"):
        other.prepare({})
    forgotten = build("ssul", labels, None, grown(earlier(unknown=True), "unknown"))
    with pytest.raises(UserError, match="references"):
        forgotten.prepare({})
