"""The part ``source_anchor``: its terms against loops in float64, what they move, what restoring sets back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.anchored import SPACE, Colours, anchor, images, network
from segue.data.batch import Batch, Meta
from segue.errors import UserError
from segue.labels import load_space
from segue.methods.base import METHODS, Method, Terms
from segue.methods.parts.source_anchor import NAME, SourceAnchor
from segue.models.anchor import make_anchor
from segue.models.build import build_model

RED = Colours(8, 60, seed=4)


def source(**settings: Any) -> Any:
    model = network(**settings)
    model.anchor = anchor()
    return model.requires_grad_(False)


def host(model: Any = None, references: Any = None, labels: Any = SPACE, **settings: Any) -> Method:
    cls = METHODS.get("weak_labels")
    config = cls.Config.model_validate({"name": "weak_labels", "distillation": 0, "parts": {NAME: settings}})
    built = cls(config, model or network(5), labels, {"source": source()} if references is None else references)
    built.key = (0, "test")
    built.train()
    return built


def batch() -> Batch:
    pictures = images(RED, 0, 2)
    size = (pictures.shape[-2], pictures.shape[-1])
    pixel = torch.ones(2, *size, dtype=torch.bool)
    pixel[:, :, 48:] = False
    meta = tuple(Meta(i, str(i), "m", size) for i in range(2))
    return Batch(pictures, torch.full((2, *size), 255), pixel, None, torch.tensor(1.0), meta)


def terms_of(built: Method, iteration: int = 0) -> Terms:
    (terms,) = built.losses({"target": batch()}, iteration)
    return terms


def part_of(built: Method) -> SourceAnchor:
    part = built.parts[NAME]
    assert isinstance(part, SourceAnchor)
    return part


@pytest.mark.parametrize("classes", ["even", "counts"])
def test_samples_teach_the_classifier_alone(classes: str) -> None:
    built = host(weight=0.5, samples=4000, classes=classes)
    terms = terms_of(built)
    generator = built.draw(NAME, 0)
    share = (anchor().count > 0).double() if classes == "even" else anchor().count.double()
    drawn = torch.multinomial(share, 4000, True, generator=generator)
    seen = np.bincount(drawn, minlength=7) / 4000
    np.testing.assert_allclose(seen, share / share.sum(), atol=0.04)
    rows = anchor().sample(drawn, generator).double().numpy()
    weight = built.model.get_parameter("head.classifier.weight").detach().double().numpy()[..., 0, 0]
    logits = rows @ weight.T
    log_p = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    log_p -= logits.max(1, keepdims=True)
    assert float(terms["anchor"].detach()) == pytest.approx(-0.5 * log_p[np.arange(4000), drawn].mean(), rel=1e-4)
    terms["anchor"].backward()
    moved = [n for n, p in built.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved == ["head.classifier.weight"]


def test_draws_depend_on_the_iteration_alone() -> None:
    first, second = host(samples=50), host(samples=50)
    values = [float(terms_of(built, i)["anchor"].detach()) for built in (first, second) for i in (0, 1)]
    assert values[0] == values[2] and values[1] == values[3] and values[0] != values[1]


def test_pull_is_the_distance_of_class_means_in_spreads() -> None:
    built = host(weight=0, pull=2.0, confidence=0.2)
    found = terms_of(built)["anchor_pull"]
    built.train()
    with torch.no_grad():
        output = built.model(batch().image)
    cells = output.embedding.double().numpy()
    probability = output.logits.double().softmax(1).numpy()
    grid = cells.shape[-2:]
    per_class: dict[int, list[Any]] = {}
    for n in range(2):
        for y in range(grid[0]):
            for x in range(grid[1]):
                p = probability[n, :, y, x]
                if p.max() > 0.2 and (x + 0.5) * 96 / grid[1] < 48 and p.argmax() < 6:
                    per_class.setdefault(int(p.argmax()), []).append(cells[n, :, y, x])
    assert len(per_class) > 1
    spread, mean = anchor().spread.double().numpy(), anchor().mean.double().numpy()
    distance = [(((np.mean(own, 0) - mean[c]) / spread) ** 2).mean() for c, own in per_class.items()]
    assert float(found.detach()) == pytest.approx(2 * np.mean(distance), rel=1e-3)
    found.backward()
    assert any(p.grad is not None and p.grad.any() for n, p in built.model.named_parameters() if "backbone" in n)
    assert float(terms_of(host(weight=0, pull=1.0, confidence=0.999))["anchor_pull"].detach()) == 0


def test_the_farthest_weights_are_set_back() -> None:
    model, home = network(), source()
    built = host(model, {"source": home}, weight=0, restore_percent=10)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    old = dict(home.named_parameters())
    moved = {n: (p - old[n]).abs().detach().numpy() for n, p in model.named_parameters()}
    flat = np.sort(np.concatenate([m.ravel() for m in moved.values()]))
    least = flat[len(flat) - int(0.1 * len(flat))]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    built.after_step(0)
    for name, parameter in model.named_parameters():
        back = torch.from_numpy(moved[name] >= least)
        assert torch.equal(parameter, torch.where(back, old[name], before[name]))
    assert float(terms_of(built)["weak"].detach()) == 0 and "anchor" not in terms_of(built)


def test_frozen_weights_and_those_the_source_lacks_stay() -> None:
    model = build_model({"name": "reservoir", "base": {"name": "bisenet", "width": 0.125}}, len(SPACE))
    built = host(model, {"source": source()}, weight=0, restore_percent=100)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    built.after_step(0)
    old = dict(source().named_parameters())
    for name, parameter in model.named_parameters():
        wanted = old[name.removeprefix("base.")] if parameter.requires_grad else before[name]
        assert torch.equal(parameter, wanted)


def test_a_transposed_classifier_is_taught_too() -> None:
    torch.manual_seed(0)
    model = build_model({"name": "erfnet", "dropout_shallow": 0, "dropout_deep": 0}, len(SPACE)).eval()
    model.anchor = make_anchor(model, Colours(4), SPACE)
    built = host(model, {}, samples=16)
    terms = terms_of(built)
    generator = built.draw(NAME, 0)
    classes = torch.multinomial((model.anchor.count > 0).double(), 16, True, generator=generator)
    rows = model.anchor.sample(classes, generator)[:, :, None, None]
    logits = next(iter(model.classifiers().values()))(rows)
    assert logits.shape[-2:] == (2, 2)
    each = [F.cross_entropy(logits[:, :, y, x], classes) for y in (0, 1) for x in (0, 1)]
    torch.testing.assert_close(terms["anchor"], 0.1 * torch.stack(each).mean())


def test_what_is_missing_is_told() -> None:
    with pytest.raises(UserError, match="segue anchor MODEL"):
        host(references={})
    with pytest.raises(UserError, match="other classes"):
        host(build_model({"name": "bisenet", "width": 0.125}, 19), labels=load_space("cityscapes19"))
    with pytest.raises(UserError, match="32 channels"):
        host(build_model({"name": "bisenet", "width": 0.25}, len(SPACE)))
    tiny = {"name": "deeplabv2", "encoder": "mobilenetv3_small_050"}
    with pytest.raises(UserError, match="one cell"):
        host(build_model(tiny, len(SPACE)))
    with pytest.raises(UserError, match="reference 'source'"):
        model = network()
        model.anchor = anchor()
        host(model, {}, restore_percent=1)
    assert host(references={}, weight=0).parts[NAME] is not None
