"""Feature distance: one graph with the source loss, never NaN, and a frozen encoder that stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.memory import SPACE, batch, method, model
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import METHODS, Method
from segue.methods.parts.base import View
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model

THING = SPACE.view("things")[0]
OTHER = next(i for i in range(len(SPACE)) if i not in SPACE.view("things"))


def make(net: SegModel | None = None, **form: Any) -> Method:
    built: Method = method("self_training", net, parts={"feature_distance": form})
    return built


def of_class(train_id: int, seed: int = 0) -> Batch:
    given = batch(seed)
    return replace(given, label=torch.full_like(given.label, train_id))


def distance(built: Method, source: Batch) -> Tensor:
    part = built.parts["feature_distance"]
    terms = part.terms(View("source", source, built.model(source.image), 0), built)
    found: Tensor = terms["feature_distance"]
    return found


def moved(built: Method) -> Method:
    """The student after some steps."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return built


@pytest.mark.parametrize("name", MODELS.names())
def test_features_are_the_maps_of_a_forward_pass(name: str) -> None:
    torch.manual_seed(0)
    net = build_model({"name": name, **MODELS.get(name).tiny()}, 7).eval()
    with torch.no_grad():
        image = torch.rand(2, 3, 50, 71)
        stages = net(image).stages
        maps = net.features(image)
    assert len(maps) == len(stages) > 0
    assert all(torch.equal(a, b) for a, b in zip(maps, stages, strict=True))
    with pytest.raises(UserError, match="too small"):
        net.features(image[..., :20])


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_has_an_encoder_to_keep(name: str) -> None:
    torch.manual_seed(0)
    net = build_model({"name": name, **MODELS.get(name).tiny()}, 7)
    built = make(net, classes=None, mean_over="batch")
    value = distance(moved(built), of_class(THING))
    assert 0 < float(value.detach()) < 1e3
    value.backward()
    touched = {n for n, p in built.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert touched and all(n.startswith(net.encoder_prefix) for n in touched)


def test_the_frozen_copy_is_the_encoder_alone() -> None:
    built = make()
    frozen = built.parts["feature_distance"].frozen
    assert frozen is not None and [n for n, _ in frozen.named_children()] == ["backbone"]
    mine = dict(built.model.named_parameters())
    assert all(torch.equal(p, mine[n]) and p is not mine[n] for n, p in frozen.named_parameters())


def test_a_student_that_has_not_moved_is_at_distance_0_with_gradient_0() -> None:
    built = make(model(norm="frozen"), classes=None)
    value = distance(built, of_class(THING))
    assert float(value.detach()) == 0
    value.backward()
    gradients = [p.grad for p in built.model.backbone.parameters() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) and not g.any() for g in gradients)


@pytest.mark.parametrize("mean_over", ["image", "batch"])
@pytest.mark.parametrize("empty", ["no thing", "unlabelled", "padding"])
def test_without_a_cell_it_is_0_with_gradient_0(empty: str, mean_over: str) -> None:
    """The published mean over no cell is NaN."""
    source = of_class({"no thing": OTHER, "unlabelled": 255, "padding": THING}[empty])
    if empty == "padding":
        source.pixel.zero_()
    built = moved(make(mean_over=mean_over))
    value = distance(built, source)
    assert float(value.detach()) == 0
    value.backward()
    gradients = [p.grad for p in built.model.parameters() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) and not g.any() for g in gradients)


def test_mean_over_images_or_as_published_over_the_batch() -> None:
    """Three cells of six in image 0, none in image 1: the batch's mean is twice that of the images."""
    source = of_class(OTHER)
    source.label[0, :32] = THING
    image, whole = (float(distance(moved(make(mean_over=m)), source).detach()) for m in ("image", "batch"))
    assert image > 0 and whole == pytest.approx(2 * image, rel=1e-5)
    heavy = float(distance(moved(make(weight=0.5)), source).detach())
    assert heavy == pytest.approx(100 * image, rel=1e-5), "0.005 unless told otherwise"


def test_a_mean_over_images_does_not_depend_on_how_a_batch_is_split() -> None:
    built = moved(make(model(norm="frozen"))).eval()
    source = of_class(THING)
    source.label[1, 32:] = OTHER
    parts = [
        replace(source, image=source.image[i : i + 1], label=source.label[i : i + 1], pixel=source.pixel[i : i + 1])
        for i in range(2)
    ]
    split = [float(distance(built, part).detach()) for part in parts]
    assert float(distance(built, source).detach()) == pytest.approx(sum(split) / 2, rel=1e-5)
    assert split[0] != pytest.approx(split[1], rel=1e-3)


def test_it_shares_the_source_graph() -> None:
    """One yield, one backward: its gradient is that of the sum."""
    built = moved(make(weight=10.0)).double()
    source = of_class(THING)
    source = replace(source, image=source.image.double())
    graphs = built.losses({"source": source, "target": batch(2)}, 0)
    terms = next(graphs)
    assert list(terms) == ["source", "feature_distance"]
    weight = next(built.model.backbone.parameters())
    apart = [torch.autograd.grad(t, weight, retain_graph=True)[0] for t in terms.values()]
    assert all(bool(g.any()) for g in apart)
    torch.stack(list(terms.values())).sum().backward()
    torch.testing.assert_close(weight.grad, apart[0] + apart[1])
    graphs.close()


def test_the_frozen_copy_neither_trains_nor_learns() -> None:
    built = make().train()
    part = built.parts["feature_distance"]
    before = {k: v.clone() for k, v in part.state_dict().items()}
    assert before, "it is saved"
    assert not any(m.training for m in part.frozen.modules()) and part.training
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.1)
    for iteration in range(2):
        for terms in built.losses({"source": of_class(THING, iteration), "target": batch(iteration)}, iteration):
            torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        built.after_step(iteration)
        built.train()
    assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    assert all(torch.equal(v, before[k]) for k, v in part.state_dict().items())
    assert not any(m.training for m in part.frozen.modules())
    assert float(distance(built, of_class(THING)).detach()) > 0


def test_it_is_restored_to_the_bit_whatever_the_student_is_by_then(tmp_path: Path) -> None:
    built = moved(make())
    torch.save(built.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(7)
    other = make(build_model({"name": "bisenet", "width": 0.125}, 7))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    saved, restored = (b.parts["feature_distance"].state_dict() for b in (built, other))
    assert saved.keys() == restored.keys() and all(torch.equal(v, restored[k]) for k, v in saved.items())
    assert torch.equal(distance(built, of_class(THING)), distance(other, of_class(THING)))


def referring(form: dict[str, Any], **references: SegModel) -> Method:
    cls = METHODS.get("supervised")
    config = cls.Config.model_validate({"name": "supervised", "parts": {"feature_distance": form}})
    built = cls(config, model(), SPACE, {k: v.requires_grad_(False) for k, v in references.items()})
    return built.train()


@pytest.mark.parametrize("double", [False, True])
def test_a_reference_takes_the_place_of_the_start_and_is_not_saved(double: bool) -> None:
    torch.manual_seed(3)
    imagenet = build_model({"name": "bisenet", "width": 0.125}, 7).eval()
    built = referring({"reference": "imagenet", "weight": 1.0, "classes": None}, imagenet=imagenet)
    assert not built.parts["feature_distance"].state_dict()
    source = of_class(THING)
    if double:  # train.precision=64: a reference stays as it was loaded
        built.double()
        source = replace(source, image=source.image.double())
    found = distance(built, source)
    with torch.no_grad():
        kept = imagenet(source.image.float()).stages[-1]
        apart = (built.model(source.image).stages[-1].double() - kept.double()).square().sum(1).sqrt()
    assert float(found.detach()) == pytest.approx(float(apart.mean()), rel=1e-5)
    assert not imagenet.training and next(imagenet.parameters()).grad is None


def test_a_reference_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match=r"reference 'imagnet'; known: imagenet"):
        referring({"reference": "imagnet"}, imagenet=model())
    with pytest.raises(UserError, match=r"deepest map of 'imagenet' is \(256, 2, 2\), the model's \(128, 2, 2\)"):
        referring({"reference": "imagenet"}, imagenet=model(width=0.25))


def test_classes_are_those_of_the_label_space() -> None:
    named = make(classes=["living", "vehicle"]).parts["feature_distance"].wanted
    assert torch.equal(named, make().parts["feature_distance"].wanted)
    assert named.nonzero().flatten().tolist() == sorted(SPACE.view("things"))
    with pytest.raises(UserError, match=r"no class 'livin' \(did you mean 'living'"):
        make(classes=["livin"])
    with pytest.raises(UserError, match="no view 'stuff'"):
        make(classes="stuff")


def test_the_thing_classes_of_cityscapes() -> None:
    from segue.labels import load_space

    assert load_space("cityscapes19").view("things") == (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
