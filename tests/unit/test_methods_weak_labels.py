"""Weak labels with distillation: both sums by hand in float64, ours and the published, however a batch is split."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.memory import SPACE, batch, model
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import METHODS
from segue.models.base import SegModel
from segue.presets import fragment
from segue.settings import check

CLASSES = len(SPACE)
PUBLISHED = fragment("vdna")["method"]


def build(student: SegModel, source: SegModel | None, **settings: Any) -> Any:
    cls = METHODS.get("weak_labels")
    references = {} if source is None else {"source": source.requires_grad_(False)}
    return cls(check(cls.Config, {"name": "weak_labels", **settings}, "method"), student, SPACE, references).train()


def networks() -> tuple[SegModel, SegModel]:
    """A student and a source model that disagree; their norms do not look at the batch."""
    student = model(norm="frozen").double()
    torch.manual_seed(5)
    source = copy.deepcopy(student)
    for parameter in source.parameters():
        parameter.data.mul_(1 + 0.3 * torch.randn_like(parameter))
    return student, source


def weak(masked: bool = True, trust: bool = False) -> Batch:
    """Labels of which a part is masked; the last columns are no picture."""
    given = batch(3)
    label, pixel = given.label.clone(), given.pixel.clone()
    if masked:
        label[0, :40] = 255
    pixel[:, :, 80:] = False
    label[:, :, 80:] = 255
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)) if trust else None
    count = (label != 255).sum().float()
    return replace(given, image=given.image.double(), label=label, pixel=pixel, weight=weight, label_count=count)


def upsampled(network: SegModel, given: Batch) -> Tensor:
    output = network(given.image)
    size = given.label.shape[-2:]
    return torch.nn.functional.interpolate(output.logits, size, mode="bilinear", align_corners=output.align_corners)


@torch.no_grad()
def by_hand(student: SegModel, source: SegModel, given: Batch, alpha: float = 1.0) -> tuple[float, float, int, int]:
    """Sum of weighted cross-entropy, sum of soft cross-entropy, labelled pixels, pixels."""
    log_p = upsampled(student.eval(), given).log_softmax(1)
    q = (alpha * upsampled(source.eval(), given)).softmax(1)
    labelled = (given.label != 255) & given.pixel
    picked = log_p.gather(1, given.label.clamp(max=CLASSES - 1)[:, None])[:, 0]
    trust = torch.ones_like(picked) if given.weight is None else given.weight
    hard = -(picked * trust)[labelled].sum()
    soft = -(q * log_p).sum(1)[given.pixel].sum()
    return float(hard), float(soft), int(labelled.sum()), int(given.pixel.sum())


def terms(built: Any, given: Batch) -> dict[str, float]:
    built.eval()  # without the heads that serve training
    (found,) = built.losses({"target": given}, 0)
    return {name: float(value.detach()) for name, value in found.items()}


@pytest.mark.parametrize("trust", [False, True])
def test_ours_is_the_mean_over_labelled_and_over_all_pixels(trust: bool) -> None:
    student, source = networks()
    given = weak(trust=trust)
    hard, soft, labelled, pixels = by_hand(student, source, given)
    found = terms(build(student, source, distillation=2.5), given)
    assert found == pytest.approx({"weak": hard / labelled, "distillation": 2.5 * soft / pixels}, rel=1e-9)
    assert labelled < pixels < given.label.numel()


def test_the_published_form_divides_by_all_pixels_and_by_classes() -> None:
    student, source = networks()
    given = weak()
    hard, soft, labelled, pixels = by_hand(student, source, given)
    found = terms(build(student, source, **{k: v for k, v in PUBLISHED.items() if k != "name"}), given)
    assert found == pytest.approx({"weak": hard / pixels, "distillation": soft / pixels / CLASSES}, rel=1e-9)
    ours = terms(build(student, source), given)
    assert found["distillation"] == pytest.approx(ours["distillation"] / CLASSES, rel=1e-12)
    assert found["weak"] == pytest.approx(ours["weak"] * labelled / pixels, rel=1e-12)


def test_the_factor_is_of_the_source_model_s_logits_alone() -> None:
    student, source = networks()
    given = weak()
    found = terms(build(student, source, teacher_scale=3.0), given)["distillation"]
    _, sharp, _, pixels = by_hand(student, source, given, alpha=3.0)
    _, plain, _, _ = by_hand(student, source, given)
    assert found == pytest.approx(sharp / pixels, rel=1e-9)
    assert abs(sharp - plain) > 1e-3 * plain


def test_a_student_that_is_the_source_pays_the_entropy_alone_and_stays() -> None:
    student, _ = networks()
    built = build(student, copy.deepcopy(student)).eval()
    given = weak()
    (found,) = built.losses({"target": given}, 0)
    found["distillation"].backward()
    assert 0 < float(found["distillation"].detach()) <= math.log(CLASSES)
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-12


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    student, source = networks()
    given = weak()
    plain = terms(build(student, source), given)["weak"]
    assert terms(build(student, source, criterion={"name": "focal", "gamma": 0}), given)["weak"] == pytest.approx(plain)
    assert terms(build(student, source, criterion={"name": "focal", "gamma": 2}), given)["weak"] < plain


@pytest.mark.parametrize("settings", [{}, {k: v for k, v in PUBLISHED.items() if k != "name"}])
def test_a_split_batch_trains_as_the_whole(settings: dict[str, Any]) -> None:
    student, source = networks()
    built = build(student, source, **settings)
    whole = weak(trust=True)
    whole = replace(whole, counts=whole.tally() / 2)
    halves = [replace(slice_of(whole, k), label_count=whole.label_count / 2) for k in range(2)]
    rows = [gradient(built, [replace(whole, counts=whole.counts * 2)]), gradient(built, halves)]  # type: ignore[operator]
    assert rows[0].abs().max() > 1e-3
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-9, atol=1e-12)


def slice_of(whole: Batch, index: int) -> Batch:
    at = slice(index, index + 1)
    assert whole.weight is not None
    return replace(
        whole, image=whole.image[at], label=whole.label[at], pixel=whole.pixel[at], weight=whole.weight[at], meta=()
    )


def gradient(built: Any, micro: list[Batch]) -> Tensor:
    built.zero_grad(set_to_none=True)
    for given in micro:
        for found in built.losses({"target": given}, 0):
            (sum(found.values()) / len(micro)).backward()
    return torch.cat([p.grad.flatten() for p in built.model.parameters() if p.grad is not None])


def test_nothing_labelled_leaves_distillation() -> None:
    student, source = networks()
    given = weak()
    given = replace(given, label=torch.full_like(given.label, 255), label_count=torch.tensor(0.0))
    found = terms(build(student, source), given)
    assert found["weak"] == 0 and found["distillation"] > 0


def test_the_source_model_is_needed_for_distillation_only() -> None:
    student, _ = networks()
    with pytest.raises(UserError, match=r"references: \{source: .*distillation: 0"):
        build(student, None)
    assert terms(build(student, None, distillation=0), weak()).keys() == {"weak"}


def test_a_source_model_of_other_classes_is_refused() -> None:
    from segue.models.build import build_model

    student, _ = networks()
    with pytest.raises(UserError, match="5 classes into one of 7"):
        build(student, build_model({"name": "bisenet", "width": 0.125}, 5))


def test_the_source_model_is_not_trained_stored_or_moved() -> None:
    student, source = networks()
    source.train()
    built = build(student, source)
    before = {k: v.clone() for k, v in source.state_dict().items()}
    gradient(built, [weak()])
    assert not any(k.startswith(("source", "references")) for k in built.state_dict())
    assert all(p.grad is None for p in source.parameters()) and not source.training
    assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())
