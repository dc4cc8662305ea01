"""Masked image consistency: grids, what is hidden and how often, every published mode, whose labels, whose draws."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.memory import batch, method, model
from segue.data.batch import Batch
from segue.methods.base import Method
from segue.methods.parts import masked_consistency
from segue.models.build import build_model
from segue.ops.keys import generator
from segue.ops.masking import block_mask

PLAIN = {"jitter_probability": 0, "blur_probability": 0}
OTHER_HOSTS = ("adversarial", "fda", "minent", "pseudo_labels")


def make(name: str = "self_training", **settings: Any) -> Method:
    built: Method = method(name, model(), parts={"masked_consistency": settings})
    return built


def numbered(given: Batch, *uids: int) -> Batch:
    return replace(given, meta=tuple(replace(m, uid=uid) for m, uid in zip(given.meta, uids, strict=True)))


class Seen:
    """What the student is shown and taught in the part's own graph."""

    def __init__(self, built: Method, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built = built
        self.taught: list[dict[str, Any]] = []
        real = masked_consistency.segmentation

        def watched(output: Any, label: Tensor, weight: Tensor | None, *rest: Any, **more: Any) -> Tensor:
            self.taught.append({"label": label, "weight": weight, **more})
            return real(output, label, weight, *rest, **more)

        monkeypatch.setattr(masked_consistency, "segmentation", watched)

    def __call__(self, source: Batch, target: Batch, iteration: int = 0) -> tuple[Tensor, dict[str, Any], Tensor]:
        """Image (N,3,H,W), what it is taught, and the loss."""
        images: list[Tensor] = []
        hook = self.built.model.register_forward_pre_hook(lambda _, given: images.append(given[0]))
        streams = {"source": source, "target": target}
        graphs = list(self.built.losses({name: streams[name] for name in self.built.needs}, iteration))
        hook.remove()
        return images[-1], self.taught[-1], graphs[-1]["masked"].detach()


@pytest.mark.parametrize(("side", "block", "grid"), [(1024, 64, 16), (512, 32, 16), (1120, 64, 18)])
def test_golden_grids(side: int, block: int, grid: int) -> None:
    found = block_mask([generator("grid", side)], (side, side), block, 0.5)[0]
    expected = torch.rand(grid, grid, generator=generator("grid", side)) > 0.5
    assert torch.equal(found, torch.nn.functional.interpolate(expected[None, None].float(), (side, side))[0, 0] > 0)
    if side % grid == 0:
        assert torch.equal(found[:: side // grid, :: side // grid], expected)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_the_ratio_is_a_probability_of_each_block(ratio: float) -> None:
    masks = ~block_mask([generator("ratio", i) for i in range(400)], (16, 16), 1, ratio)
    assert float(masks.float().mean()) == pytest.approx(ratio, abs=0.006)  # 4 standard errors of 102400 draws
    assert float((masks.float().mean(0) - ratio).abs().max()) < 0.12
    assert len({tuple(m.flatten().tolist()) for m in masks}) == (400 if 0 < ratio < 1 else 1)
    neighbours = (masks[:, 1:] & masks[:, :-1]).float().mean()
    assert float(neighbours) == pytest.approx(ratio**2, abs=0.012)


def test_hidden_pixels_are_normalised_zeros() -> None:
    built = make(block_px=16, ratio=0.5, strong=PLAIN)
    encoded: list[Tensor] = []
    built.model.backbone.register_forward_pre_hook(lambda _, given: encoded.append(given[0]))
    target = batch(2)
    list(built.losses({"source": batch(1), "target": target}, 3))
    image = encoded[-1]
    draws = [built.draw("mask", 3, meta.uid) for meta in target.meta]
    seen = block_mask(draws, (64, 96), 16, 0.5).unsqueeze(1).expand_as(image)
    assert 0 < float(seen.float().mean()) < 1
    assert float(image[~seen].abs().max()) < 1e-6
    whole = (target.image - built.model.mean) / built.model.std
    torch.testing.assert_close(image[seen], whole[seen])


@pytest.mark.parametrize(("images", "jittered"), [*product(["target", "source", "both"], [False, True])])
def test_every_mode(images: str, jittered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """separatetrgaug, separatetrg, separatesrcaug, separatesrc, and separate and separateaug image by image."""
    strong = {"jitter_probability": 1} if jittered else None
    built = make(images=images, strong=strong, block_px=16, ratio=0.5)
    built.config = built.config.model_copy(update={"threshold": 0.2})
    source, target = batch(1, 4), numbered(batch(2, 4), 10, 11, 13, 16)
    source.label[:, :8] = 255
    source.pixel[:, :, 90:] = False
    from_source = {"target": [False] * 4, "source": [True] * 4, "both": [True, False, False, True]}[images]
    shown, taught, loss = Seen(built, monkeypatch)(source, target)
    pseudo, _, _ = built.pseudo_label(target, 0)
    hidden = (shown == built.model.mean).all(1)
    assert hidden.any(2).any(1).all() and not hidden.all(2).all(1).any()
    for i, given in enumerate(from_source):
        part = source if given else pseudo
        kept = ~hidden[i]
        same = torch.isclose(shown[i], part.image[i]).all(0)
        assert bool(same[kept].all()) != jittered
        assert torch.equal(taught["label"][i], part.label[i])
        assert torch.equal(taught["pixel"][i], part.pixel[i])
        if taught["weight"] is not None:
            expected = torch.ones(64, 96) if given else pseudo.weight[i]
            assert torch.equal(taught["weight"][i], expected)
    assert (taught["weight"] is None) == (images == "source")
    assert taught["denominator"] == "pixels"
    assert float(loss) > 0 and bool(loss.isfinite())


def test_strong_colours_are_drawn_anew_and_not_those_of_the_mixed_image(monkeypatch: pytest.MonkeyPatch) -> None:
    strong = {"jitter_probability": 1, "blur_probability": 0}
    built = make(strong=strong, ratio=0.0)
    built.config = built.config.model_copy(update={"strong": built.parts["masked_consistency"].config.strong})
    images: list[Tensor] = []
    built.model.register_forward_pre_hook(lambda _, given: images.append(given[0]))
    target = batch(2)
    list(built.losses({"source": replace(batch(1), label=torch.full_like(target.label, 255)), "target": target}, 0))
    _, mixed, masked = images  # nothing is pasted: both show the target
    assert not torch.allclose(mixed, target.image) and not torch.allclose(masked, target.image)
    assert not torch.allclose(mixed, masked)


def passes(module: torch.nn.Module) -> list[int]:
    count = [0]
    module.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


def run(built: Method, iteration: int = 0) -> None:
    streams = {"source": batch(1), "target": batch(2)}
    for terms in built.losses({name: streams[name] for name in built.needs}, iteration):
        torch.stack(list(terms.values())).sum().backward()


def test_the_hosts_pseudo_labels_serve_without_a_second_teacher() -> None:
    built = make()
    assert built.parts["masked_consistency"].teacher is None
    count = passes(built.teacher.network)
    run(built)
    assert count == [1]


@pytest.mark.parametrize("name", OTHER_HOSTS)
def test_hosts_without_pseudo_labels_get_a_teacher(name: str) -> None:
    built = make(name)
    teacher = built.parts["masked_consistency"].teacher
    assert (teacher.alpha, built.parts["masked_consistency"].trust.threshold) == (0.999, 0.968)
    count, student = passes(teacher.network), passes(built.model)
    run(built)
    assert count == [1] and student[0] in (2, 3)


@pytest.mark.parametrize("name", ["self_training", *OTHER_HOSTS, "supervised"])
def test_source_alone_needs_no_teacher(name: str) -> None:
    built = make(name, images="source")
    assert built.parts["masked_consistency"].teacher is None
    run(built)


def test_a_teacher_that_is_asked_for_follows_with_its_own_momentum() -> None:
    built = make(teacher={"alpha": 0.0, "norm": "copy", "threshold": 0.5})
    teacher = built.parts["masked_consistency"].teacher
    mine, hosts = passes(teacher.network), passes(built.teacher.network)
    run(built)
    assert mine == hosts == [1]
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.3)
    built.after_step(20)
    for name, value in built.model.state_dict().items():
        assert torch.equal(teacher.network.state_dict()[name], value), "alpha 0 is the student"
    assert not torch.equal(next(built.teacher.network.parameters()), next(built.model.parameters()))
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_a_teacher_starts_as_the_student_of_its_stage() -> None:
    built = make("minent")
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.3)
    built.prepare({})
    teacher = built.parts["masked_consistency"].teacher
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), built.model.parameters(), strict=True))


def test_its_own_trust_weighs_the_labels_of_its_own_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"threshold": 0.0, "margin": {"bottom": 0.25}}
    built = make("minent", teacher=given)
    geometry = {"resized": (64, 96), "window": (0, 0, 64, 96), "flip": False}
    target = replace(batch(2), meta=tuple(replace(m, geometry=geometry) for m in batch(2).meta))
    _, taught, _ = Seen(built, monkeypatch)(batch(1), target)
    assert (taught["weight"][:, :48] == 1).all() and not taught["weight"][:, 48:].any()


@pytest.mark.parametrize("detail", [False, True])
def test_weight_scales_the_whole_loss_heads_too(detail: bool) -> None:
    """The published code leaves the detail term of HRDA unscaled."""

    def masked(weight: float) -> Tensor:
        torch.manual_seed(0)
        net = build_model({"name": "bisenet", "width": 0.125, "detail": detail}, 7)
        built: Method = method("minent", net, parts={"masked_consistency": {"weight": weight, "images": "both"}})
        *_, terms = built.losses({"source": batch(1), "target": batch(2)}, 0)
        return terms["masked"].detach()

    assert float(masked(0.25)) == pytest.approx(0.25 * float(masked(1.0)), rel=1e-5)
    assert float(masked(0)) == 0
    if detail:
        assert len(model(detail=True).train()(batch(1).image).heads) == 3


@pytest.mark.parametrize("images", ["target", "source", "both"])
def test_draws_belong_to_an_image_and_an_iteration(images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = make(images=images, strong={"jitter_probability": 1}, block_px=8)
    look = Seen(built, monkeypatch)
    source, target = numbered(batch(1, 3), 4, 5, 9), numbered(batch(2, 3), 4, 5, 9)
    whole = look(source, target, 7)[0]
    hidden = (whole == built.model.mean).all(1)
    assert not torch.equal(hidden[0], hidden[1]) and not torch.equal(hidden[1], hidden[2])
    assert torch.equal(look(source, target, 7)[0], whole)
    assert not torch.equal(look(source, target, 8)[0], whole)

    def pick(given: Batch, *at: int) -> Batch:
        chosen = torch.tensor(at)
        picked = {name: getattr(given, name)[chosen] for name in ("image", "label", "pixel")}
        return replace(given, **picked, meta=tuple(given.meta[i] for i in at))

    part = look(pick(source, 2, 0), pick(target, 2, 0), 7)[0]
    torch.testing.assert_close(part, whole[[2, 0]])
