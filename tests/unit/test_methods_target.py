"""What direct entropy minimisation, pseudo-label rounds, FDA's switch and evaluation promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.memory import SPACE, batch, method, model
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import METHODS, Method, MethodConfig
from segue.models.base import Output
from segue.ops.fourier import exchange

BOTH = {"main": 0.001, "out32": 0.0002}


def value(term: Tensor) -> float:
    return float(term.detach())


def entropy_of(logits: Tensor, pixel: Tensor) -> float:
    """Mean over each picture of the normalised entropy of upsampled predictions, then over images, in float64."""
    z = F.interpolate(logits.detach().double(), pixel.shape[-2:], mode="bilinear", align_corners=True)
    p = z.softmax(1).numpy()
    e = -(p * np.log(p)).sum(1) / np.log(p.shape[1])
    return float(np.mean([e[i][pixel[i].numpy()].mean() for i in range(len(e))]))


def heads(output: Output) -> dict[str, Tensor]:
    return {"main": output.logits} | {head.name: head.logits for head in output.heads}


def test_minent_is_the_mean_entropy_of_every_level() -> None:
    built = method("minent", model(norm="frozen"), levels=BOTH)
    batches = {"source": batch(1), "target": batch(2)}
    batches["target"].pixel[0, :, 50:] = False
    _, terms = built.losses(batches, 0)
    found = heads(built.model(batches["target"].image))
    assert list(terms) == ["entropy_main", "entropy_out32"]
    for name, weight in BOTH.items():
        want = weight * entropy_of(found[name], batches["target"].pixel)
        assert value(terms[f"entropy_{name}"]) == pytest.approx(want, rel=1e-4)


def test_fda_can_start_its_entropy_later() -> None:
    built = method("fda", entropy_from_iteration=3)
    batches = {"source": batch(1), "target": batch(2)}
    assert [len(list(built.losses(batches, i))) for i in (0, 2, 3, 4)] == [1, 1, 2, 2]


@pytest.mark.parametrize("name", ["fda", "pseudo_labels"])
def test_images_of_two_sizes_cannot_exchange_and_are_told_so(name: str) -> None:
    batches = {"source": batch(1), "target": batch(2, height=96)}
    with pytest.raises(UserError, match="64x96 and 96x96"):
        list(method(name).losses(batches, 0))


def pseudo(kept: Tensor) -> dict[str, Batch]:
    target = batch(2)
    target = replace(target, label=target.label.masked_fill(~kept, 255), label_count=kept.sum().float())
    return {"source": batch(1), "target": target}


def cross_entropy(net: torch.nn.Module, image: Tensor, label: Tensor) -> float:
    """Mean over labelled pixels, main output and every head, in float64."""
    total = 0.0
    for logits in heads(net(image)).values():
        z = F.interpolate(logits.detach().double(), label.shape[-2:], mode="bilinear", align_corners=True)
        p = z.softmax(1).numpy()
        n, y, x = np.nonzero(label.numpy() != 255)
        total -= float(np.log(p[n, label.numpy()[n, y, x], y, x]).mean())
    return total


def test_a_round_is_source_in_target_style_plus_pseudo_labels_plus_robust_entropy() -> None:
    kept = torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(0)) > 0.66
    batches = pseudo(kept)
    source, target = batches["source"], batches["target"]
    built = method("pseudo_labels", model(norm="frozen"), beta=0.05, pseudo_weight=0.5, eta=1.5)
    first, second = built.losses(batches, 0)
    styled = exchange(source.image, target.image, 0.05)
    assert value(first["source"]) == pytest.approx(cross_entropy(built.model, styled, source.label), rel=1e-4)
    assert value(second["pseudo"]) == pytest.approx(
        0.5 * cross_entropy(built.model, target.image, target.label), rel=1e-4
    )
    p = built.model(target.image).logits.detach().double().softmax(1).numpy()
    e = -(p * np.log(p)).sum(1) / np.log(7)
    assert value(second["entropy"]) == pytest.approx(0.005 * ((e**2 + 1e-8) ** 1.5).mean(), rel=1e-4)


def test_a_round_without_style_or_entropy_leaves_them_out() -> None:
    batches = pseudo(torch.ones(2, 64, 96, dtype=torch.bool))
    built = method("pseudo_labels", model(norm="frozen"), beta=None, entropy_weight=0)
    first, second = built.losses(batches, 0)
    plain = cross_entropy(built.model, batches["source"].image, batches["source"].label)
    assert value(first["source"]) == pytest.approx(plain, rel=1e-4)
    assert list(second) == ["pseudo"]


def test_nothing_kept_is_zero_and_finite() -> None:
    built = method("pseudo_labels", entropy_weight=0)
    _, second = built.losses(pseudo(torch.zeros(2, 64, 96, dtype=torch.bool)), 0)
    second["pseudo"].backward()
    assert value(second["pseudo"]) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())


def test_evaluation_scores_its_references_and_trains_nothing() -> None:
    cls = METHODS.get("evaluation")
    config, net = MethodConfig(name="evaluation"), model()
    given = {"b": model(), "a": model()}
    built = cls(config, net, SPACE, given)
    assert built.scored() == (given["b"], given["a"])
    assert (cls.trains, cls.needs, cls.uses_labels) == (False, (), ())
    with pytest.raises(UserError, match="references"):
        cls(config, net, SPACE, {})
    given["b"].grow_head(1)
    with pytest.raises(UserError, match="'b' has 8 classes"):
        cls(config, net, SPACE, given)


def test_a_method_that_trains_is_scored_by_its_predictor() -> None:
    built: Method = method("self_training", predict_with="teacher")
    assert built.scored() == (built.predictor(),)
    assert built.predictor() is not built.model
