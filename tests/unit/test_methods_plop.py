"""PLOP as a method: thresholds from one pass, pseudo-labels and their factor, both treatments, splits of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.steps import (
    ALL,
    OLD,
    TREATMENTS,
    Shown,
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
from segue.labels import LabelSpace
from segue.ops.pod import folded, local_pod, picture_share

pytestmark = pytest.mark.parametrize("treatment", TREATMENTS)


def step(treatment: str, norm: str = "train", **settings: Any) -> Any:
    teacher = earlier(norm=norm)
    return build("plop", TREATMENTS[treatment], teacher, grown(teacher), **settings)


def unlabelled(given: Batch, labels: LabelSpace) -> Tensor:
    return (given.label == (255 if labels.background is None else 0)) & given.pixel


def old_predictions(built: Any, given: Batch) -> tuple[Tensor, Tensor]:
    """Class and entropy / ln K of the teacher at every pixel, in float64."""
    output = built.references["teacher"](given.image)
    p = output.upsample(output.logits.double()).softmax(1)
    return p.argmax(1), -(p * p.log()).sum(1) / math.log(OLD)


def test_thresholds_are_medians_over_one_pass_of_unlabelled_pixels(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment, min_threshold=0.0)
    stream = Shown(labels)
    built.prepare({"source": stream})
    assert stream.read == 3
    found: dict[int, list[Tensor]] = {}
    for given in stream.batches:
        given = replace(given, image=(given.image * 255).round() / 255)
        label, u = old_predictions(built, given)
        for c in range(OLD):
            found.setdefault(c, []).append(u[unlabelled(given, labels) & (label == c)])
    for c, parts in found.items():
        values = torch.cat(parts)
        expected = float(values.median()) if len(values) else 0.0
        assert float(built.thresholds[c]) == pytest.approx(expected, abs=2e-3)
    assert len([c for c, parts in found.items() if len(torch.cat(parts))]) >= 2


class OfRank(Shown):
    """What one of two devices reads."""

    rank = 0

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        return (micro[self.rank : self.rank + 1] for micro in super().iterate(start))


def test_two_devices_find_the_thresholds_of_one(treatment: str) -> None:
    labels, one = TREATMENTS[treatment], step(treatment)
    one.prepare({"source": Shown(labels)})
    counts: list[Tensor] = []
    for rank in range(2):
        built, stream = step(treatment), OfRank(labels)
        stream.rank = rank
        built.gather = lambda rows: counts.append(rows) or torch.cat(counts)
        built.prepare({"source": stream})
    assert torch.equal(built.thresholds, one.thresholds)  # of the second: the first has heard of nobody yet


def test_published_thresholds_and_the_floor(treatment: str) -> None:
    built = step(treatment, published=True)
    assert built.thresholds.tolist() == pytest.approx([0.001] * OLD)
    built.prepare({"source": Shown(TREATMENTS[treatment])})
    # u is at most 1 / (3 ln 5) = 0.207: 20 bins, none with half of the pixels, or nearly all in one.
    assert bool((built.thresholds >= 0.001).all())
    assert not torch.equal(built.thresholds, torch.full((OLD,), 0.001))


def test_certain_pixels_are_taught_the_old_class_and_the_rest_nothing(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment)
    given = shown(5, labels)
    given.label[1] = torch.where(given.pixel[1], ALL - 1, 255)  # nothing of this image is unlabelled
    label, u = old_predictions(built, given)
    tau = float(u[unlabelled(given, labels)].median())
    built.thresholds.fill_(tau)
    taught, logs = built.pseudo_labelled(given, built.remembered(given))
    here = unlabelled(given, labels)
    sure = here & (u < tau)
    assert 0.3 < float(sure[0].sum() / here[0].sum()) < 0.7
    same = (taught.label == torch.where(here, torch.where(sure, label, 255), given.label)) | ((u - tau).abs() < 1e-6)
    assert bool(same.all())
    assert taught.weight is not None
    factor = sure[0].sum() / here[0].sum()
    assert float(taught.weight[0].amin()) == pytest.approx(float(factor), abs=1e-3)
    assert torch.equal(taught.weight[1], torch.ones_like(taught.weight[1]))
    assert float(logs["share_certain"]) == pytest.approx((float(factor) + 1) / 2, abs=1e-3)


def test_cross_entropy_is_a_mean_over_the_picture_times_the_factor(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment, norm="frozen")
    built.thresholds.fill_(0.97)
    built.model.eval()  # no heads
    given = shown(5, labels)
    taught, _ = built.pseudo_labelled(given, built.remembered(given))
    output = built.model(given.image)
    log_p = output.upsample(output.logits.double()).log_softmax(1)
    expected = 0.0
    for image in range(2):
        here = given.pixel[image] & (taught.label[image] != 255)
        picked = log_p[image].gather(0, taught.label[image].clamp(max=ALL - 1).unsqueeze(0))[0]
        assert taught.weight is not None
        factor = taught.weight[image].amin()
        assert 0 < float(factor) < 1
        expected -= float((factor * picked[here].sum() / given.pixel[image].sum()).detach()) / 2
    found = next(built.losses({"source": given}, 0))["source"]
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_void_is_never_a_pseudo_label(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment)
    built.thresholds.fill_(math.inf)
    given = shown(6, labels)
    taught, _ = built.pseudo_labelled(given, built.remembered(given))
    corner = taught.label[:, :4, :4]
    assert bool((corner == 255).all()) == (treatment == "background")
    assert bool((taught.label[:, :, 80:] == 255).all())


def test_distillation_is_the_weighted_mean_over_all_maps(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment, weight=0.3, logits_weight=0.2)
    given = shown(3, labels)
    output, remembered = built.model(given.image), built.remembered(given)
    z = folded(output.logits, OLD) if labels.background else output.logits[:, :OLD]
    pairs = [*zip(output.stages, remembered.stages, strict=True), (output.embedding, remembered.embedding)]
    values = [
        weight * local_pod(a, b, picture_share(output, given.pixel, tuple(a.shape[-2:]))).mean()
        for a, b, weight in [*((a, b, 0.3) for a, b in pairs), (z, remembered.logits, 0.2)]
    ]
    assert len(values) == 7 and all(float(v.detach()) > 0 for v in values)
    terms = next(step(treatment, weight=0.3, logits_weight=0.2).losses({"source": given}, 0))
    expected = math.sqrt(ALL / (ALL - OLD)) * torch.stack(values).mean()
    torch.testing.assert_close(terms["pod"], expected)


def test_three_iterations_move_the_student_alone_and_resume(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment)
    built.prepare({"source": Shown(labels)})
    teacher = {k: v.clone() for k, v in built.references["teacher"].state_dict().items()}
    start = {k: v.clone() for k, v in built.state_dict().items()}
    losses = train(built, labels)
    assert all(map(math.isfinite, losses))
    after = built.references["teacher"].state_dict()
    assert all(torch.equal(v, after[k]) for k, v in teacher.items())
    assert all(p.grad is None for p in built.references["teacher"].parameters())
    assert not any(k.startswith("references") for k in start)
    again = step(treatment)
    again.load_state_dict(start)  # thresholds travel: prepare does not run on resume
    assert train(again, labels) == losses


def test_padding_and_the_split_of_a_batch_change_nothing(treatment: str) -> None:
    labels, built = TREATMENTS[treatment], step(treatment, norm="frozen")
    built.prepare({"source": Shown(labels)})
    with torch.no_grad():  # where maps are equal but for rounding, the direction of their difference is anything
        for p in built.model.parameters():
            p.mul_(1.1)
    given = shown(4, labels)
    whole = backward(built, {"source": given})
    expected = gradients(built)
    split = sum(backward(built, {"source": part(given, slice(k, k + 1), 0.5)}, share=0.5) for k in range(2))
    assert split == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients(built).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert backward(built, {"source": in_padding(given)}) == whole


def test_a_teacher_is_needed_and_must_have_the_same_maps(treatment: str) -> None:
    labels, teacher = TREATMENTS[treatment], earlier()
    with pytest.raises(UserError, match="references"):
        build("plop", labels, None, grown(teacher))
    with pytest.raises(UserError, match="alike"):
        build("plop", labels, teacher, grown(earlier(width=0.25)))


def test_a_new_domain_has_no_new_class(treatment: str) -> None:
    labels, teacher = TREATMENTS[treatment], grown(earlier()).eval()
    built = build("plop", labels, teacher, grown(earlier()))
    terms = next(built.losses({"source": shown(1, labels)}, 0))
    assert all(bool(t.isfinite()) for t in terms.values())
