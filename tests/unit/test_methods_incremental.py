"""CIL, LwF, ILT and MiB: their numbers, whose gradient goes where, and what a batch's split must not change."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.toys import SPACE
from segue.data.batch import Batch, Meta
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Method
from segue.models.base import ModelConfig, Output, SegModel
from segue.models.build import build_model

OLD, ALL = 3, len(SPACE)
BACKGROUND = replace(SPACE, background="a")
SPACES = {"ignore": SPACE, "background": BACKGROUND}
NAMES = ("cil", "lwf", "ilt", "mib")
BOTH = [(name, treatment) for name in NAMES for treatment in SPACES]


class Says(SegModel):
    """Whatever the image, these logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(ModelConfig(name="says"), logits.shape[1])
        self.logits = torch.nn.Parameter(logits)

    def decode(self, x: Tensor) -> Output:
        return Output(self.logits, self.logits)

    def classifiers(self) -> dict[str, torch.nn.Module]:
        return {}


def build(name: str, labels: LabelSpace, model: SegModel, teacher: SegModel, **how: Any) -> Any:
    cls = METHODS.get(name)
    built = cls(cls.Config.model_validate({"name": name, **how}), model, labels, {"teacher": teacher})
    built.train()
    return built


def network(classes: int, seed: int = 0, **how: Any) -> SegModel:
    torch.manual_seed(seed)
    return build_model({"name": "bisenet", "width": 0.125, "norm": "frozen", **how}, classes)


def batch(treatment: str, seed: int = 0, size: int = 4, height: int = 64, width: int = 96) -> Batch:
    """New classes in blocks, the rest not taught, some void, and a margin without picture that differs."""
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(OLD, ALL, (size, height // 16, width // 16), generator=g)
    draw = torch.rand(blocks.shape, generator=g)
    blocks[draw < 0.6] = 255 if treatment == "ignore" else 0
    blocks[draw < 0.1] = 255
    label = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    pixel = torch.ones_like(label, dtype=torch.bool)
    for n, row in enumerate(pixel):
        row[:, width - 5 * n :] = False
    label[~pixel] = 255
    image = torch.rand(size, 3, height, width, generator=g)
    metas = tuple(Meta(i, str(i), "memory", (height, width)) for i in range(size))
    return Batch(image, label, pixel, None, (label != 255).sum().float(), metas)


def split(whole: Batch, parts: int) -> list[Batch]:
    """Micro-batches as the loader makes them."""
    rows = [t.chunk(parts) for t in (whole.image, whole.label, whole.pixel)]
    count, counts = whole.label_count / parts, whole.tally() / parts
    metas = whole.meta
    step = len(metas) // parts
    return [
        Batch(*three, None, count, metas[k * step : (k + 1) * step], counts)
        for k, three in enumerate(zip(*rows, strict=True))
    ]


def terms(method: Method, given: Batch) -> dict[str, Tensor]:
    (found,) = method.losses({"source": given}, 0)
    return found


def pixels(z: list[list[float]], t: list[list[float]], label: list[int]) -> tuple[SegModel, SegModel, Batch]:
    """Networks and a batch of 32x32 whose first pixels are these and the rest no picture."""
    size = 32 * 32
    student, teacher = torch.zeros(len(z[0]), size), torch.zeros(len(t[0]), size)
    flat, shown = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
    student[:, : len(z)], teacher[:, : len(t)] = torch.tensor(z).t(), torch.tensor(t).t()
    flat[: len(label)], shown[: len(label)] = torch.tensor(label), True
    flat[~shown] = 255
    image, label_map, pixel = torch.zeros(1, 3, 32, 32), flat.view(1, 32, 32), shown.view(1, 32, 32)
    given = Batch(image, label_map, pixel, None, (flat != 255).sum().float(), ())
    return Says(student.view(1, -1, 32, 32)), Says(teacher.view(1, -1, 32, 32)), given


FOUR = LabelSpace("four", SPACE.classes[:4], SPACE.colors[:4], SPACE.ids[:4])


@pytest.mark.parametrize(
    ("label", "weight", "source", "kept"),
    [
        ([255, 2], 1.0, 1.3863, 2.7726),
        ([255, 2], 0.0, 1.3863, 1.3863),
        ([2, 3], 1.0, 1.3863, 0.0),
        ([255, 255], 1.0, 0.0, 2.7726),
    ],
)
def test_golden_numbers_of_cil(label: list[int], weight: float, source: float, kept: float) -> None:
    """Two old and two new classes, teacher (0.5, 0.5), student uniform: 4.1589 in all with one pixel of each kind."""
    student, teacher, given = pixels([[0.0] * 4] * 2, [[0.0] * 2] * 2, label)
    found = terms(build("cil", FOUR, student, teacher, entropy_weight=weight), given)
    assert float(found["source"].detach()) == pytest.approx(source, abs=5e-5)
    assert float(found["distillation"].detach()) == pytest.approx(kept, abs=5e-5)
    torch.stack(list(found.values())).sum().backward()
    gradient = student.logits.grad
    assert gradient is not None and bool(gradient.isfinite().all())
    assert not gradient.flatten(2)[..., 2:].any()  # no picture there


def test_cil_with_a_background_distils_where_it_is_labelled() -> None:
    labels = replace(FOUR, background="a")
    student, teacher, given = pixels([[1.0, 2.0, 0.5, -1.0]] * 4, [[0.3, -0.2]] * 4, [0, 2, 3, 255])
    found = terms(build("cil", labels, student, teacher), given)
    log_p = torch.tensor([1.0, 2.0, 0.5, -1.0]).log_softmax(0)
    q = torch.tensor([0.3, -0.2]).softmax(0)
    weight = 1 - float((q * q.log2()).sum())
    assert float(found["source"].detach()) == pytest.approx(-float(log_p[2] + log_p[3]) / 2, rel=1e-5)
    assert float(found["distillation"].detach()) == pytest.approx(-weight * float((q * log_p[:2]).sum()), rel=1e-5)


@pytest.mark.parametrize(("chosen", "where"), [("unlabelled", [0]), ("not_new", [0, 1]), ("old", [1]), ("new", [2])])
@pytest.mark.parametrize(("factor", "power"), [("squared", 2), ("linear", 1)])
def test_ablations_of_cil(chosen: str, where: list[int], factor: str, power: int) -> None:
    z = [[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, 0.0, 3.0], [2.0, 2.0, -2.0, 1.0]]
    t = [[0.3, -0.2], [1.0, 0.0], [-1.0, 1.0]]
    student, teacher, given = pixels(z, t, [255, 1, 3])
    how = {"temperature": 2.0, "entropy_weight": 0.0, "pixels": chosen, "factor": factor}
    found = terms(build("cil", FOUR, student, teacher, **how), given)["distillation"]
    each = [
        -float(((torch.tensor(b) / 2).softmax(0) * (torch.tensor(a) / 2).log_softmax(0)[:2]).sum())
        for a, b in zip(z, t, strict=True)
    ]
    assert float(found.detach()) == pytest.approx(2**power * sum(each[k] for k in where) / len(where), rel=1e-5)


def test_numbers_of_lwf() -> None:
    z, t = [[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, 0.0, 3.0]], [[0.3, -0.2], [1.0, 0.0]]
    student, teacher, given = pixels(z, t, [255, 3])
    old = [
        -float((torch.tensor(b).softmax(0) * torch.tensor(a[:2]).log_softmax(0)).sum())
        for a, b in zip(z, t, strict=True)
    ]
    lwf = {k: float(v.detach()) for k, v in terms(build("lwf", FOUR, student, teacher), given).items()}
    assert lwf["source"] == pytest.approx(-float(torch.tensor(z[1]).log_softmax(0)[3]), rel=1e-5)
    assert lwf["distillation"] == pytest.approx(100 * sum(old) / 2 / 2, rel=1e-5)


@pytest.mark.parametrize(("treatment", "label"), [("ignore", [255, 3, 255, 2]), ("background", [0, 3, 255, 2])])
def test_numbers_of_mib(treatment: str, label: list[int]) -> None:
    z = [[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, 0.0, 3.0], [2.0, 2.0, -2.0, 1.0], [0.5, 0.1, 0.2, 0.3]]
    t = [[0.3, -0.2], [1.0, 0.0], [-1.0, 1.0], [0.0, 0.5]]
    labels = FOUR if treatment == "ignore" else replace(FOUR, background="a")
    student, teacher, given = pixels(z, t, label)
    found = terms(build("mib", labels, student, teacher), given)
    p, q = [torch.tensor(a).softmax(0) for a in z], [torch.tensor(b).softmax(0) for b in t]
    unlabelled = 255 if treatment == "ignore" else 0
    source = [
        -math.log(float(a[:2].sum() if y == unlabelled else a[y]))
        for a, y in zip(p, label, strict=True)
        if y in (unlabelled, 2, 3)
    ]
    kept = []
    for a, b, y in zip(p, q, label, strict=True):
        if treatment == "background":
            kept.append(-float(b[0] * (a[0] + a[2:].sum()).log() + b[1] * a[1].log()))
        elif y == 255:
            kept.append(-float((b * (a[:2] / a[:2].sum()).log()).sum()))
    assert float(found["source"].detach()) == pytest.approx(sum(source) / len(source), rel=1e-5)
    assert float(found["distillation"].detach()) == pytest.approx(10 / 2 * sum(kept) / 4, rel=1e-5)


@pytest.mark.parametrize("treatment", SPACES)
def test_ilt_adds_the_mean_squared_difference_of_the_deepest_maps(treatment: str) -> None:
    teacher, given = network(OLD), batch(treatment)
    built = build("ilt", SPACES[treatment], network(ALL, 1), teacher)
    found, beside = terms(built, given), terms(build("lwf", SPACES[treatment], built.model, teacher), given)
    assert list(found) == ["source", "distillation", "features"]
    torch.testing.assert_close(found["distillation"], beside["distillation"])
    square = (built.model(given.image).stages[-1] - teacher(given.image).stages[-1]).square().mean(1)
    cells = torch.nn.functional.adaptive_avg_pool2d(given.pixel.float(), tuple(square.shape[-2:]))
    expected = 100 * ((square * cells).sum((1, 2)) / cells.sum((1, 2))).mean()
    torch.testing.assert_close(found["features"], expected)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(BOTH), st.sampled_from([2, 4]), st.integers(0, 99))
def test_micro_batches_add_up_to_the_whole_batch(which: tuple[str, str], parts: int, seed: int) -> None:
    name, treatment = which
    built = build(name, SPACES[treatment], network(ALL, 1), network(OLD))
    whole = batch(treatment, seed)
    expected = terms(built, whole)
    found = [terms(built, part) for part in split(whole, parts)]
    for term, value in expected.items():
        torch.testing.assert_close(sum(f[term] for f in found) / parts, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "treatment"), BOTH)
def test_labels_without_picture_change_nothing(name: str, treatment: str) -> None:
    built = build(name, SPACES[treatment], network(ALL, 1), network(OLD))
    given = batch(treatment)
    other = replace(given, label=torch.where(given.pixel, given.label, 4))
    for term, value in terms(built, replace(other, label_count=given.label_count)).items():
        assert torch.equal(value, terms(built, given)[term])


@pytest.mark.parametrize(("name", "treatment"), BOTH)
@pytest.mark.parametrize("label", ["all labelled", "none labelled", "void"])
def test_nothing_of_a_kind_gives_zero_and_no_nan(name: str, treatment: str, label: str) -> None:
    given = batch(treatment)
    unlabelled = 255 if treatment == "ignore" else 0
    value = {"all labelled": 4, "none labelled": unlabelled, "void": 255}[label]
    given = replace(given, label=torch.full_like(given.label, value), label_count=torch.tensor(0.0), counts=None)
    if value != 255:
        given = replace(given, label_count=given.pixel.sum().float())
    model = network(ALL, 1)
    found = terms(build(name, SPACES[treatment], model, network(OLD)), given)
    torch.stack(list(found.values())).sum().backward()
    assert all(bool(v.isfinite()) for v in found.values())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    if name == "cil":
        empty = {"all labelled": ["distillation"], "none labelled": ["source"], "void": ["source"]}[label]
        empty += ["distillation"] * (label == "void" and treatment == "background")
        assert [k for k, v in found.items() if float(v.detach()) == 0] == sorted(empty, reverse=True)


@pytest.mark.parametrize("treatment", SPACES)
@pytest.mark.parametrize("name", NAMES)
def test_three_iterations_from_three_to_five_classes(name: str, treatment: str) -> None:
    teacher = network(OLD, norm="train")
    teacher.train()  # a job may hand it over in any mode
    model = copy.deepcopy(teacher)
    head = METHODS.get(name).head if treatment == "background" else "random"
    model.grow_head(ALL - OLD, head, torch.Generator().manual_seed(0))
    before = copy.deepcopy(teacher.state_dict())
    built = build(name, SPACES[treatment], model, teacher)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    start = [p.detach().clone() for p in model.parameters()]
    for iteration in range(3):
        for found in built.losses({"source": batch(treatment, iteration, 2)}, iteration):
            loss = torch.stack(list(found.values())).sum()
            assert bool(loss.isfinite())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert not teacher.training and model.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not any("teacher" in key for key in built.state_dict())


def test_mib_starts_where_the_teacher_is() -> None:
    """With its classifier init the student's background and new classes share the teacher's background evenly."""
    teacher = network(OLD).eval()
    model = copy.deepcopy(teacher)
    model.grow_head(ALL - OLD, METHODS.get("mib").head)
    given = batch("background")
    p, q = model(given.image).logits.softmax(1), teacher(given.image).logits.softmax(1)
    torch.testing.assert_close(p[:, 0] + p[:, OLD:].sum(1), q[:, 0])
    torch.testing.assert_close(p[:, 0], p[:, OLD])
    built = build("mib", BACKGROUND, model, teacher)
    found = terms(built, given)["distillation"]
    output = teacher(given.image)
    q = output.upsample(output.logits).softmax(1)
    entropy = -(q * q.log()).sum(1)[given.pixel].mean()
    assert float(found.detach()) == pytest.approx(10 / OLD * float(entropy.detach()), rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_must_be_named_and_be_of_an_earlier_step(name: str) -> None:
    cls = METHODS.get(name)
    config = cls.Config.model_validate({"name": name})
    with pytest.raises(UserError, match=rf"method '{name}' .* 'references: .teacher: "):
        cls(config, network(ALL), SPACE, {})
    with pytest.raises(UserError, match=r"6 classes .* 5"):
        build(name, SPACE, network(ALL), network(6))


def test_ilt_needs_maps_that_are_alike() -> None:
    with pytest.raises(UserError, match="deepest encoder maps"):
        build("ilt", SPACE, network(ALL), network(OLD, width=0.25))


def test_a_batch_counts_the_labels_of_its_picture() -> None:
    given = batch("ignore")
    tally = given.tally()
    assert int(tally.sum()) == int(given.pixel.sum())
    assert int(tally[255]) == int(((given.label == 255) & given.pixel).sum())
    assert float(tally[:255].sum()) == float(given.label_count)
    assert torch.equal(replace(given, counts=tally / 2).tally(), tally / 2)
