"""Instance similarity as a part: both forms against full-resolution restatements in float64, and what may change it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.instances import CLASSES, DOUBLE, PADDED, SIZE, WIDTH, Net, host, part, picture, step
from helpers.memory import method
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.parts.base import View


def large(x: Tensor) -> Tensor:
    """Upsampled to the padded image, and the margin cut off."""
    return F.interpolate(x, PADDED, mode="bilinear", align_corners=False)[..., : SIZE[0], : SIZE[1]]


def ratio(x: Tensor, total: Tensor) -> Tensor:
    """0, without a gradient, where the total is 0: there are cells that the ReLU silences."""
    return torch.where(total == 0, 0, x / torch.where(total == 0, 1, total))


def unit(x: Tensor) -> Tensor:
    square = x.pow(2).sum(1, keepdim=True)
    return ratio(x, torch.where(square == 0, 1, square).sqrt())


def published_loss(view: View, vectors: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Section 14.6 of the facts: sum-normalised dot products at every pixel, the student's raw logits."""
    assert view.teacher is not None
    f = torch.einsum("ndyx,kd->nkyx", large(view.teacher.embedding), vectors)
    s = torch.einsum("ndyx,kd->nkyx", large(view.output.embedding), vectors)
    q = f * large(view.output.logits.detach())[:, labels]
    q, p = (ratio(x, x.sum(1, keepdim=True)) for x in (q, s))
    values = -(q * (p + 1e-10).log()).sum(1)
    return weight * torch.stack([v[here].mean() for v, here in zip(values, view.batch.pixel, strict=True)]).mean()


def corrected_loss(view: View, vectors: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Softmax of cosines, the teacher's probabilities, target pixels of classes in the bank alone."""
    assert view.teacher is not None and view.pasted is not None and view.batch.weight is not None
    f, s = (
        torch.einsum("ndyx,kd->nkyx", large(unit(one.embedding)), unit(vectors)) / temperature
        for one, temperature in ((view.teacher, 0.2), (view.output, 0.3))
    )
    q = f.softmax(1) * large(view.teacher.logits.softmax(1))[:, labels]
    q = q / q.sum(1, keepdim=True)
    values = -(q * s.log_softmax(1)).sum(1)
    total = torch.zeros((), **DOUBLE)
    for n in range(len(values)):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                counts = view.batch.pixel[n, y, x] and not view.pasted[n, y, x]
                if counts and int(view.batch.label[n, y, x]) in labels.tolist():
                    share = view.batch.weight[n, y, x] / view.batch.pixel[n].sum()
                    total = total + share * values[n, y, x] / len(values)
    return weight * total


def means(built: Any, batch: Batch) -> list[dict[int, Tensor]]:
    """Of each image, class -> mean of the upsampled source embedding."""
    embedding = large(built.model(batch.image).embedding.detach())
    out = []
    for e, label, pixel in zip(embedding, batch.label, batch.pixel, strict=True):
        inside = {c: (label == c) & pixel for c in range(CLASSES)}
        out.append({c: e[:, mask].mean(1) for c, mask in inside.items() if mask.any()})
    return out


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def assert_loss(view: View, found: Tensor, expected: Tensor) -> None:
    """Values, and gradients by the student's embedding."""
    assert_same(found, expected)
    slope, wanted = (torch.autograd.grad(x, view.output.embedding, retain_graph=True)[0] for x in (found, expected))
    assert wanted.abs().max() > 1e-6
    assert_same(slope, wanted)


def test_published_form_is_the_direct_one() -> None:
    built = host(published=True, smoothing=0.7)
    own = part(built)
    vectors, labels = own.vectors.clone(), own.labels.clone()
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3] and (vectors >= 0).all()
    for iteration in range(3):
        ((view, found),) = step(built, iteration)
        assert_loss(view, found, published_loss(view, vectors, labels, 0.5))
        if iteration % 2 == 0:
            present = means(built, picture(iteration))[0]
            for i, c in enumerate(labels.tolist()):
                vectors[i] = 0.999 * vectors[i] + 0.001 * present.get(c, torch.zeros(WIDTH, **DOUBLE))
            assert len(present) < CLASSES
        assert_same(own.vectors, vectors)
        assert view.teacher is not None
        probability = torch.randn(2, CLASSES, *SIZE, **DOUBLE).softmax(1)
        f = torch.einsum("ndyx,kd->nkyx", large(view.teacher.embedding), vectors)
        aggregate = probability.clone()
        for i, c in enumerate(labels.tolist()):
            aggregate[:, c] += ratio(f[:, i], f.sum(1))
        assert_same(own.calibrate(probability, view.teacher, built), 0.7 * probability + 0.3 * aggregate)


SETTINGS = {"weak_temperature": 0.2, "strong_temperature": 0.3, "smoothing": 0.7, "weight": 0.8}


@pytest.mark.parametrize("update", ["momentum", "oldest", "balanced", "none"])
def test_corrected_form_is_the_direct_one(update: str) -> None:
    built = host(update=update, start="random", momentum=0.75, size=9, stride=2, **SETTINGS)
    own = part(built)
    vectors, labels = own.vectors.clone(), own.labels.tolist()
    turns = {c: [i for i, label in enumerate(labels) if label == c] for c in range(CLASSES)}
    seen, place = [0] * CLASSES, 0
    for iteration in range(3):
        ((view, found),) = step(built, iteration)
        assert_loss(view, found, corrected_loss(view, vectors, torch.tensor(labels), 0.8))
        for present in means(built, picture(iteration)) if iteration % 2 == 0 and update != "none" else ():
            seen = [n + (c in present) for c, n in enumerate(seen)]
            if update == "momentum":
                for i, c in enumerate(labels):
                    vectors[i] = 0.75 * vectors[i] + 0.25 * present.get(c, vectors[i])
            elif update == "oldest":
                for c, mean in present.items():
                    turns[c].append(turns[c].pop(0))
                    vectors[turns[c][-1]] = mean
            else:
                short = [c for c in present if labels.count(c) < 9 / CLASSES - 1]
                order = sorted(short or present, key=lambda c: (seen[c], c))
                for c in order if short else order[:2]:
                    vectors[place], labels[place], place = present[c], c, (place + 1) % 9
        assert_same(own.vectors, vectors)
        assert own.labels.tolist() == labels


def test_gathering_keeps_a_distribution() -> None:
    built = host(start="random", **SETTINGS)
    own = part(built)
    with torch.no_grad():
        output = built.teacher(picture(1).image)
    probability = torch.randn(2, CLASSES, *SIZE, **DOUBLE).softmax(1)
    f = torch.einsum("ndyx,kd->nkyx", large(unit(output.embedding)), unit(own.vectors))
    share, aggregate = (f / 0.2).softmax(1), torch.zeros_like(probability)
    for i, c in enumerate(own.labels.tolist()):
        aggregate[:, c] += share[:, i]
    found = own.calibrate(probability, output, built)
    assert_same(found, 0.7 * probability + 0.3 * aggregate)
    assert_same(found.sum(1), torch.ones(2, *SIZE, **DOUBLE))


def test_it_fills_image_by_image_and_starts_then() -> None:
    built = host(size=13)
    own = part(built)
    expected = [pair for image in means(built, picture(0)) + means(built, picture(1)) for pair in image.items()]
    filled = len(expected) - sum(len(image) for image in means(built, picture(1)))
    assert filled < 13 <= len(expected)
    for iteration, share in enumerate((0, filled / 13, 1)):
        probability = torch.rand(2, CLASSES, *SIZE, **DOUBLE)
        if iteration < 2:
            assert own.calibrate(probability, built.teacher(picture(0).image), built) is probability
        assert int(own.used) / 13 == pytest.approx(share)
        ((_, found),) = step(built, iteration)
        assert (float(found.detach()) > 0) == (iteration == 2)
        if iteration == 1:
            assert own.labels.tolist() == [c for c, _ in expected[:13]]
            assert_same(own.vectors, torch.stack([mean for _, mean in expected[:13]]))


def test_classes_that_are_absent_do_not_move_and_pull_nothing() -> None:
    built = host(start="random", update="momentum", size=14)
    own, before = part(built), part(built).vectors.clone()
    step(built, 0)
    moved = (own.vectors != before).any(1)
    here = set().union(*(image.keys() for image in means(built, picture(0))))
    assert {c for c, m in zip(own.labels.tolist(), moved.tolist(), strict=True) if m} == here
    assert {c for c, m in zip(own.labels.tolist(), moved.tolist(), strict=True) if not m} >= {4}
    own.labels.fill_(4)  # an instance of no class that a label has
    ((view, found),) = step(built, 1)
    assert 4 not in view.batch.label[~view.pasted & view.batch.pixel] and float(found.detach()) == 0


def test_nothing_happens_outside_the_iterations_of_updates() -> None:
    built = host(start="random", every_iterations=3, from_iteration=2)
    own, changed = part(built), []
    for iteration in range(7):
        before = own.vectors.clone()
        step(built, iteration)
        changed.append(not torch.equal(own.vectors, before))
    assert changed == [False, False, False, True, False, False, True]


def test_a_skipped_step_leaves_nothing_behind() -> None:
    built, other = host(), host()
    for _ in built.losses({"source": picture(0), "target": picture(100)}, 0):
        pass  # no after_step: the gradients were not finite
    for iteration in (1, 2):
        step(built, iteration)
        step(other, iteration)
    assert torch.equal(part(built).vectors, part(other).vectors)


def test_only_the_student_learns() -> None:
    built = host(start="random")
    ((view, found),) = step(built, 0)
    assert part(built).vectors.grad_fn is None and not part(built).vectors.requires_grad
    found.backward()
    assert built.model.backbone.weight.grad.abs().max() > 0
    assert built.model.classifier.weight.grad is None
    assert all(p.grad is None for p in built.teacher.parameters())
    assert view.teacher is not None and view.teacher.embedding.grad_fn is None


def split(batch: Batch, rows: list[int]) -> Batch:
    return replace(
        batch,
        image=batch.image[rows],
        label=batch.label[rows],
        pixel=batch.pixel[rows],
        meta=tuple(batch.meta[i] for i in rows),
    )


def on_devices(hosts: list[Any], iteration: int, given: list[tuple[Batch, Batch]]) -> None:
    """An iteration of processes that meet in ``gather``, threads here."""
    barrier, rows = threading.Barrier(len(hosts)), [Tensor()] * len(hosts)

    def gather(rank: int) -> Callable[[Tensor], Tensor]:
        def call(own: Tensor) -> Tensor:
            rows[rank] = own
            barrier.wait(60)
            found = torch.cat(rows)
            barrier.wait(60)
            return found

        return call

    def run(rank: int) -> None:
        hosts[rank].gather = gather(rank)
        hosts[rank].after_step(iteration)

    for one, micro in zip(hosts, given, strict=True):
        one.after_step, real = (lambda _: None), one.after_step
        step(one, iteration, micro)
        one.after_step = real
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("how", [{}, {"update": "oldest"}, {"published": True}, {"instance": "boundary"}], ids=str)
def test_the_split_of_a_batch_changes_nothing(how: dict[str, Any]) -> None:
    whole, halves, devices = host(**how), host(**how), [host(**how), host(**how)]
    for iteration in range(5):
        source, target = picture(iteration, 4), picture(100 + iteration, 4)
        ((_, expected),) = step(whole, iteration, (source, target))
        micro = [(split(source, rows), split(target, rows)) for rows in ([0, 1], [2, 3])]
        found = step(halves, iteration, *micro)
        assert_same(sum(loss for _, loss in found) / 2, expected)
        apart = [(split(source, rows), split(target, rows)) for rows in ([0, 2], [1, 3])]
        on_devices(devices, iteration, apart)
        for other in (halves, *devices):
            assert_same(part(other).vectors, part(whole).vectors)
            assert torch.equal(part(other).labels, part(whole).labels)
            assert all(
                torch.equal(getattr(part(other), k), getattr(part(whole), k)) for k in ("seen", "turn", "pointer")
            )
    assert int(part(whole).seen.sum()) > 0


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("update", ["balanced", "oldest", "momentum"])
def test_its_state_is_all_that_a_resume_needs(update: str, stop: int) -> None:
    def follow(built: Any, first: int, last: int) -> Iterator[Tensor]:
        for iteration in range(first, last):
            yield from (loss.detach() for _, loss in step(built, iteration))

    whole, stopped, resumed = (host(update=update, size=13, instance="boundary") for _ in range(3))
    expected = list(follow(whole, 0, 6))
    list(follow(stopped, 0, stop))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(expected[stop:], follow(resumed, stop, 6), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("published", [False, True])
def test_nothing_that_counts_costs_nothing(published: bool) -> None:
    built = host(start="random", published=published)
    blank = picture(7)
    blank = replace(blank, pixel=torch.zeros_like(blank.pixel))
    ((view, found),) = step(built, 0, (blank, blank))
    assert float(found.detach()) == 0
    (slope,) = torch.autograd.grad(found, view.output.embedding)
    assert not slope.any()
    unlabelled = replace(picture(7), label=torch.full_like(blank.label, 255))
    before = part(built).vectors.clone()
    step(built, 2, (unlabelled, picture(8)))
    changed = not torch.equal(part(built).vectors, before)
    assert changed == published, "as published, classes that are absent shrink"


def test_half_precision_channels_last_and_negative_embeddings() -> None:
    for settings in ({}, {"published": True}):
        built = host(Net(relu=False), start="random", **settings).float()
        source, target = (replace(one, image=one.image.float()) for one in (picture(3), picture(4)))
        ((_, plain),) = step(built, 0, (source, target))
        last = [replace(b, image=b.image.contiguous(memory_format=torch.channels_last)) for b in (source, target)]
        ((_, other),) = step(built, 1, (last[0], last[1]))
        with torch.autocast("cpu", torch.bfloat16):
            ((_, half),) = step(built, 1, (source, target))
        assert plain.isfinite() and half.dtype == torch.float32
        assert float(half.detach()) == pytest.approx(float(other.detach()), rel=0.1)


@pytest.mark.parametrize("scatter", [True, False])
def test_descent_brings_the_student_to_what_the_teacher_sees(scatter: bool) -> None:
    net = Net(1)
    built = host(net, update="none", scatter=scatter, size=12)
    for iteration in range(3):
        step(built, iteration)
    target = picture(50)
    with torch.no_grad():
        teacher = built.teacher(target.image)
        net.backbone.weight += 0.3 * torch.randn_like(net.backbone.weight)
    none = torch.zeros_like(target.pixel)
    batch = replace(target, label=teacher.upsample(teacher.logits).argmax(1), weight=none + 1.0)
    optimiser = torch.optim.Adam(net.backbone.parameters(), 0.01)

    def look() -> tuple[Tensor, float]:
        view = View("mixed", batch, net(target.image), 9, none, teacher)
        near = F.cosine_similarity(view.output.embedding, teacher.embedding).mean()
        return part(built).terms(view, built)["instance_similarity"], float(near.detach())

    first, far = look()
    for _ in range(60):
        optimiser.zero_grad()
        look()[0].backward()
        optimiser.step()
    last, near = look()
    assert float(last.detach()) < 0.95 * float(first.detach()) and near > far


def test_a_host_without_mixed_images_is_told() -> None:
    with pytest.raises(UserError, match="needs the view mixed"):
        method("supervised", Net(), parts={"instance_similarity": {}})


def test_published_alone_is_the_published_setting() -> None:
    assert (part(host(published=True)).start, part(host(published=True)).update) == ("random", "momentum")
    assert (part(host()).start, part(host()).update) == ("fill", "balanced")
