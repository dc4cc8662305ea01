"""EWC as a method: what is gathered, handed over and penalised, against restatements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.steps import OLD, PLAIN, backward, build, earlier, gradients, grown, part, shown, train
from segue.errors import UserError

CLASSIFIER = "head.classifier.weight"


def first(**model: Any) -> Any:
    """The step before, trained for two iterations."""
    built = build("ewc", PLAIN, None, grown(earlier(**model)))
    built.prepare({})
    train(built, PLAIN, 2)
    return built


def chain(**settings: Any) -> tuple[Any, dict[str, Tensor]]:
    """A step of three classes, then one of five; the second method, and the state it has taken over."""
    before = build("ewc", PLAIN, None, earlier().train())
    given = shown(1, PLAIN)
    given.label[given.label != 255] -= OLD  # the first step's own classes, 0 and 1
    for iteration in range(2):
        backward(before, {"source": given}, iteration)
        before.before_step(iteration)
        before.zero_grad(set_to_none=True)
    state = before.state_dict()
    built = build("ewc", PLAIN, None, grown(before.model), **settings)
    built.take_over(state)
    built.prepare({})
    return built, state


def test_gathering_is_the_moving_average_of_squared_gradients() -> None:
    built = build("ewc", PLAIN, None, grown(earlier(detail=True)))
    name = "head.classifier.weight"
    expected = torch.ones_like(built.model.get_parameter(name))
    for iteration in range(2):
        backward(built, {"source": shown(iteration, PLAIN)}, iteration)
        gradient = built.model.get_parameter(name).grad.clone()
        expected = 0.9 * gradient**2 + 0.1 * expected
        built.before_step(iteration)
        torch.testing.assert_close(built.model.get_parameter(name).grad, gradient, rtol=0, atol=0)  # nothing penalised
        built.zero_grad(set_to_none=True)
    torch.testing.assert_close(dict(built.gathered.named_buffers())[name.replace(".", "/")], expected)
    built.before_step(2)  # no parameter has a gradient
    torch.testing.assert_close(dict(built.gathered.named_buffers())[name.replace(".", "/")], 0.1 * expected)


def test_importance_is_scaled_to_one_in_each_tensor_and_new_rows_are_free() -> None:
    built, state = chain()
    for name, importance in built.importance.named_buffers():
        gathered = state[f"gathered.{name}"]
        scaled = (gathered - gathered.min()) / (gathered.max() - gathered.min() + 1e-8)
        old = importance[: len(gathered)]
        torch.testing.assert_close(old, scaled)
        assert not importance[len(gathered) :].any()
    assert built.importance.get_buffer(CLASSIFIER.replace(".", "/")).shape[0] == 5


def test_the_penalty_and_its_gradient() -> None:
    built, _ = chain(weight=7.0)
    with torch.no_grad():
        for p in built.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.01)
    importance = list(built.importance.buffers())
    rows = list(zip(built.model.named_parameters(), importance, built.start.buffers(), strict=True))
    expected = 7.0 * sum((f * (p - old) ** 2).sum() for (_, p), f, old in rows)
    torch.testing.assert_close(built.penalty(), expected.detach())
    of_penalty = torch.autograd.grad(expected, [p for (_, p), _, _ in rows])
    backward(built, {"source": shown(2, PLAIN)})
    own = {n: p.grad.clone() for n, p in built.model.named_parameters() if p.grad is not None}
    gathered = {n: f.clone() for n, f in built.gathered.named_buffers()}
    built.before_step(0)
    for ((name, p), _, _), extra in zip(rows, of_penalty, strict=True):
        if name in own:
            torch.testing.assert_close(p.grad, own[name] + extra)
        seen = own[name] ** 2 if name in own else torch.zeros_like(p)
        flat = name.replace(".", "/")
        torch.testing.assert_close(built.gathered.get_buffer(flat), 0.9 * seen + 0.1 * gathered[flat])


def test_what_mattered_moves_less() -> None:
    distances = []
    for weight in (0.0, 20.0):
        built, _ = chain(weight=weight)
        train(built, PLAIN, 4)
        rows = zip(built.model.parameters(), built.importance, built.start, strict=True)
        distances.append(sum(float((f * (p.detach() - old) ** 2).sum()) for p, f, old in rows))
    assert 0 < distances[1] < distances[0] / 2


def test_a_resumed_step_ends_with_the_same_bytes() -> None:
    built, _ = chain()
    train(built, PLAIN, 2)
    again = build("ewc", PLAIN, None, grown(earlier()))
    again.load_state_dict(built.state_dict())
    assert train(again, PLAIN, 2, start=2) == train(built, PLAIN, 2, start=2)
    for (name, a), b in zip(again.state_dict().items(), built.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_split_of_a_batch_changes_nothing() -> None:
    sums = []
    for split in (False, True):
        built = build("ewc", PLAIN, None, grown(earlier(norm="frozen")))
        given = shown(4, PLAIN)
        pieces = [part(given, slice(k, k + 1), 0.5) for k in range(2)] if split else [given]
        for piece in pieces:
            backward(built, {"source": piece}, share=1 / len(pieces))
        built.before_step(0)
        sums.append([f.clone() for f in built.gathered])
        gradients(built)
    for a, b in zip(*sums, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_frozen_parameters_are_neither_gathered_nor_stored() -> None:
    model = earlier(freeze=["^backbone"], norm="frozen")
    built = build("ewc", PLAIN, None, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(model.parameters()))
    assert built.stored_bytes() == 4 * sum(p.numel() for p in trained)
    assert first().stored_bytes() == 4 * sum(p.numel() for p in first().model.parameters())


def test_another_method_or_model_before_is_told() -> None:
    built = build("ewc", PLAIN, None, grown(earlier()))
    with pytest.raises(UserError, match="by 'ewc' as well"):
        built.take_over(grown(earlier()).state_dict())
    wide = build("ewc", PLAIN, None, grown(earlier(width=0.25)))
    with pytest.raises(UserError, match="take the model of that stage"):
        built.take_over(wide.state_dict())
