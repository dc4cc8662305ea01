"""The teacher's schedule and norm policies; what self-training, FDA and batch statistics promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.memory import batch, in_place, method, model
from helpers.recipes import trained_methods
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import METHODS, Method, frozen
from segue.methods.teacher import Teacher
from segue.models.trained import BATCH_NORM


@pytest.mark.parametrize(("step", "alpha", "expected"), [(1, 0.999, 0.5), (9, 0.999, 0.9), (5000, 0.999, 0.999)])
def test_teacher_momentum(step: int, alpha: float, expected: float) -> None:
    student = model()
    teacher = Teacher(student, alpha, "batch")
    before = [p.clone() for p in teacher.network.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    teacher.update(student, step)
    for old, new in zip(before, teacher.network.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 1 - expected), rtol=1e-3, atol=1e-5)


def statistics(net: torch.nn.Module) -> Tensor:
    return torch.cat(
        [m.running_mean for m in net.modules() if isinstance(m, BATCH_NORM) and m.running_mean is not None]
    )


@pytest.mark.parametrize("policy", ["batch", "copy", "average"])
def test_teacher_norm_policies(policy: Any) -> None:
    student = model()
    teacher = Teacher(student, 0.9, policy)
    student.train()
    for seed in range(3):
        student(batch(seed).image)
    old = statistics(teacher.network)
    teacher.update(student, 1)  # rate 0.5
    now, theirs = statistics(teacher.network), statistics(student)
    expected = {"batch": old, "copy": theirs, "average": (old + theirs) / 2}[policy]
    torch.testing.assert_close(now, expected)
    teacher(batch(9).image)
    assert torch.equal(statistics(teacher.network), now) == (policy != "batch")


def test_teacher_predicts_without_graph_dropout_or_heads() -> None:
    teacher = Teacher(model().train(), 0.9, "copy").train()
    output = teacher(batch(0).image)
    assert not output.logits.requires_grad
    assert output.heads == ()
    assert not any(p.requires_grad for p in teacher.parameters())


def test_frozen_passes_gradients_through_and_keeps_none() -> None:
    net = torch.nn.Linear(2, 1)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen(net):
        net(x).sum().backward()
    assert x.grad is not None
    assert net.weight.grad is None
    assert net.weight.requires_grad


def test_pseudo_labels_are_the_teachers_and_margins_are_dropped() -> None:
    built = method("self_training", threshold=0.0, margin={"top": 3 / 64, "bottom": 5 / 64})
    target, seen, logs = built.pseudo_label(in_place(batch(1)), 0)
    assert target.weight is not None
    assert float(target.weight[:, :3].sum() + target.weight[:, -5:].sum()) == 0
    assert torch.equal(target.weight[:, 3:-5], torch.ones(2, 56, 96))
    assert torch.equal(target.label, seen.upsample(seen.to_classes()).argmax(1))
    assert torch.equal(target.image, batch(1).image)
    assert float(logs["share_kept"]) == 1
    assert float(logs["pseudo_histogram"].sum()) == pytest.approx(1)


def test_the_teacher_sees_the_weak_view_and_the_student_never() -> None:
    built = method("self_training", weak={"jitter_probability": 1, "blur_probability": 1})
    shown: list[Tensor] = []
    built.teacher.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    target, _, _ = built.pseudo_label(batch(1), 4)
    again, _, _ = built.pseudo_label(batch(1), 4)
    built.pseudo_label(batch(1), 5)
    assert torch.equal(target.image, batch(1).image)
    assert torch.equal(shown[0], shown[1]) and torch.equal(again.label, target.label)
    assert not torch.equal(shown[0], target.image) and not torch.equal(shown[0], shown[2])


def test_mixing_pastes_source_pixels_with_their_labels_and_nothing_else() -> None:
    built = method("self_training", strong={"jitter_probability": 0, "blur_probability": 0})
    source, target = batch(1), batch(2)
    source.label[0, :16] = 255
    pseudo = torch.full_like(target.label, 6)
    target = Batch(
        target.image, pseudo, target.pixel, torch.full(target.label.shape, 0.25), target.label_count, target.meta
    )
    mixed, pasted = built.mixed(source, target, 0)
    assert torch.equal(pasted, (mixed.image == source.image).all(1))
    assert 0 < float(pasted.float().mean()) < 1
    assert torch.equal(mixed.image.permute(0, 2, 3, 1)[~pasted], target.image.permute(0, 2, 3, 1)[~pasted])
    assert torch.equal(mixed.label[pasted], source.label[pasted])
    assert (mixed.label[~pasted] == 6).all()
    assert (mixed.weight[pasted] == 1).all() and (mixed.weight[~pasted] == 0.25).all()
    assert not pasted[0, :16].any()
    trusted, _ = built.mixed(replace(source, weight=torch.full(source.label.shape, 0.5)), target, 0)
    assert trusted.weight is not None and (trusted.weight[pasted] == 0.5).all(), "source labels have their own trust"
    again, _ = built.mixed(source, target, 0)
    assert torch.equal(again.image, mixed.image)
    assert not torch.equal(built.mixed(source, target, 1)[0].image, mixed.image)


@pytest.mark.parametrize("paste", ["image", "batch"])
def test_unlabelled_source_is_pasted_in_the_published_form_alone(paste: str) -> None:
    built = method("self_training", paste=paste)
    source, (target, _, _) = batch(1), built.pseudo_label(batch(2), 0)
    source.label[:, :32] = 255
    unlabelled = 0
    for iteration in range(12):
        mixed, pasted = built.mixed(source, target, iteration)
        unlabelled += int(pasted[:, :32].sum())
        for label, chosen in zip(source.label, pasted, strict=True):
            n = len((source.label if paste == "batch" else label[label != 255]).unique())
            found = len(label[chosen].unique())
            assert found <= (n + 1) // 2 and (paste == "batch" or found == (n + 1) // 2)
        assert bool((mixed.label[pasted] == source.label[pasted]).all())
    assert bool(unlabelled) == (paste == "batch")


def test_nothing_is_pasted_from_where_source_has_no_picture() -> None:
    built = method("self_training", paste="batch")
    source, (target, _, _) = batch(1), built.pseudo_label(batch(2), 0)
    source.pixel[:, 40:] = False
    target.pixel[:, :, 80:] = False
    for iteration in range(4):
        mixed, pasted = built.mixed(source, target, iteration)
        assert not pasted[:, 40:].any()
        assert torch.equal(mixed.pixel, pasted | target.pixel)
        assert (mixed.label[~mixed.pixel] == 255).all()


def test_an_images_mixture_does_not_depend_on_the_batch_around_it() -> None:
    built = method("self_training")
    source, (whole, _, _) = batch(1), built.pseudo_label(batch(2), 5)

    def part(b: Batch) -> Batch:
        w = None if b.weight is None else b.weight[1:]
        return Batch(b.image[1:], b.label[1:], b.pixel[1:], w, b.label_count, b.meta[1:])

    alone, together = built.mixed(part(source), part(whole), 5)[0], built.mixed(source, whole, 5)[0]
    torch.testing.assert_close(alone.image, together.image[1:])
    assert alone.weight is not None and together.weight is not None
    assert torch.equal(alone.label, together.label[1:]) and torch.equal(alone.weight, together.weight[1:])


def test_fda_leaves_the_target_alone_when_the_entropy_is_off() -> None:
    batches = {"source": batch(1), "target": batch(2)}
    assert [list(t) for t in method("fda").losses(batches, 0)] == [["source"], ["entropy"]]
    assert [list(t) for t in method("fda", entropy_weight=0).losses(batches, 0)] == [["source"]]


def test_batch_statistics_are_the_cumulative_mean_and_weights_stay() -> None:
    built = method("batch_statistics")
    before = [p.clone() for p in built.parameters()]
    for seed in range(3):
        list(built.losses({"target": batch(seed)}, seed))
    assert all(torch.equal(a, b) for a, b in zip(before, built.parameters(), strict=True))
    first = next(m for m in built.model.modules() if isinstance(m, BATCH_NORM))
    means: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, x: means.append(x[0].mean((0, 2, 3))))
    for seed in range(3):
        built.model(batch(seed).image)
    hook.remove()
    reference = method("batch_statistics")
    for seed in range(3):
        list(reference.losses({"target": batch(seed)}, seed))
    norm = next(m for m in reference.model.modules() if isinstance(m, BATCH_NORM))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))


def test_batch_statistics_needs_batch_norm() -> None:
    net = model()
    for name, module in list(net.named_modules()):
        if isinstance(module, BATCH_NORM):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, torch.nn.Identity())
    with pytest.raises(UserError, match="batch norm"):
        method("batch_statistics", net)


@pytest.mark.parametrize("name", trained_methods())
def test_losses_are_finite_and_no_method_touches_the_global_generator(name: str) -> None:
    built: Method = method(name)
    batches = {stream: batch(i) for i, stream in enumerate(built.needs)}
    state = torch.get_rng_state()
    for terms in built.losses(batches, 3):
        assert all(bool(v.isfinite()) and v.ndim == 0 for v in terms.values())
        if terms:
            torch.stack(list(terms.values())).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert METHODS.get(name).__doc__


STORED = {
    "supervised": [6.19565, 6.36087, 6.09186],
    "fda": [6.16824, 0.00369, 6.28803, 0.00367, 6.26109, 0.0037],
    "adversarial": [6.19565, 0.000691, 0.693156, 6.36086, 0.000691, 0.693109, 6.0983, 0.000691, 0.69303],
    "minent": [6.19565, 0.000942, 6.36018, 0.000945, 6.25992, 0.000941],
    "pseudo_labels": [6.16824, 6.04166, 6.46904, 6.09692, 6.18318, 6.33879],
    "self_training": [6.19565, 3.58455, 6.23789, 3.44825, 6.31273, 3.52628],
}


@pytest.mark.parametrize("name", STORED)
def test_stored_losses_of_three_iterations(name: str) -> None:
    built: Method = method(name)
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.01)
    found = []
    for iteration in range(3):
        batches = {stream: batch(10 * i + iteration) for i, stream in enumerate(built.needs)}
        for terms in built.losses(batches, iteration):
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            found.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
        built.after_step(iteration)
    assert found == pytest.approx(STORED[name], rel=2e-3)
