"""Adversarial adaptation: labels, who gets which gradient, levels, padding, and what outlives a graph."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Adam

from helpers.memory import SPACE, batch, method
from segue.config import OptimConfig
from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.adversarial import Adversarial
from segue.methods.base import METHODS, Terms
from segue.methods.levels import level_logits, without_graph
from segue.models.base import Head, Output, SegModel
from segue.models.build import build_model
from segue.optim import build_optimizers

TWO = {"main": 0.001, "out16": 0.0002}


def make(**settings: Any) -> Adversarial:
    torch.manual_seed(1)
    built: Adversarial = method(
        "adversarial", build_model({"name": "bisenet", "width": 0.125, "norm": "frozen"}, 7), **settings
    )
    return built


def pair(seed: int = 0, size: int = 2) -> dict[str, Batch]:
    return {"source": batch(seed, size), "target": batch(seed + 50, size)}


class Says(nn.Module):
    """A discriminator with one answer."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x: Tensor) -> Tensor:
        return self.k.expand(len(x), 1, x.shape[2] // 32, x.shape[3] // 32) + 0 * x.sum()


def test_graphs_of_an_iteration_and_what_each_logs() -> None:
    graphs = list(make(levels=TWO).losses(pair(), 0))
    assert [list(terms) for terms in graphs] == [
        ["source"],
        ["adversarial_main", "adversarial_out16"],
        ["discriminator_main"],
        ["discriminator_out16"],
    ]
    assert list(graphs[2].logs) == ["domain_accuracy_main", "domain_loss_main"]
    loss = float(graphs[2]["discriminator_main"].detach())
    assert float(graphs[2].logs["domain_loss_main"]) == pytest.approx(loss / math.log(2))


@pytest.mark.parametrize("k", [-2.0, 0.0, 3.0])
def test_numbers_of_a_discriminator_that_always_says_k(k: float) -> None:
    """The model is pulled towards 0, source; the discriminator's target label is 1 and its loss the mean of halves."""
    for loss, to_source, both in (
        ("vanilla", math.log1p(math.exp(k)), (math.log1p(math.exp(k)) + math.log1p(math.exp(-k))) / 2),
        ("least_squares", k**2, (k**2 + (k - 1) ** 2) / 2),
    ):
        built = make(levels={"main": 0.01}, loss=loss)
        built.discriminator["main"] = Says(k)
        _, deceive, learn = built.losses(pair(), 0)
        assert float(deceive["adversarial_main"].detach()) == pytest.approx(0.01 * to_source, rel=1e-5)
        assert float(learn["discriminator_main"].detach()) == pytest.approx(both, rel=1e-5)
        assert float(learn.logs["domain_accuracy_main"]) == 0.5


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_model_learns_from_two_graphs_and_each_discriminator_from_its_own() -> None:
    built = make(levels=TWO)
    graphs = built.losses(pair(), 0)
    terms = next(graphs)
    terms["source"].backward()
    built.model.zero_grad()
    assert not gradients(built.discriminator)
    torch.stack(list(next(graphs).values())).sum().backward()
    assert "head16.classifier.weight" in gradients(built.model) and "head.classifier.weight" in gradients(built.model)
    assert not gradients(built.discriminator)
    assert all(p.requires_grad for p in built.discriminator.parameters())
    built.model.zero_grad()
    for name in TWO:
        next(graphs)[f"discriminator_{name}"].backward()
        assert {key.split(".")[0] for key in gradients(built.discriminator)} == {name}
        built.discriminator.zero_grad()
    assert not gradients(built.model)


def test_weight_zero_only_watches() -> None:
    built = make(levels={"main": 0.0})
    _, deceive, learn = built.losses(pair(), 0)
    deceive["adversarial_main"].backward()
    assert not gradients(built.model)
    learn["discriminator_main"].backward()
    assert gradients(built.discriminator)


def test_the_adversarial_step_makes_target_look_like_source() -> None:
    built = make(levels={"main": 1.0})
    optimizer = torch.optim.SGD(built.model.parameters(), lr=0.5)
    seen = []
    for _ in range(3):
        graphs = built.losses(pair(), 0)
        next(graphs)
        deceive = next(graphs)["adversarial_main"]
        seen.append(float(deceive.detach()))
        optimizer.zero_grad()
        deceive.backward()
        optimizer.step()
    assert seen[0] > seen[1] > seen[2]


@pytest.mark.parametrize("settings", [{}, {"loss": "least_squares"}, {"input": "self_information"}])
def test_two_micro_batches_are_one_batch(settings: dict[str, Any]) -> None:
    whole = pair(size=4)
    for b in whole.values():
        b.pixel[0, :, 40:] = False
    parts = [{n: part(b, slice(k, k + 2)) for n, b in whole.items()} for k in (0, 2)]
    found = []
    for batches in ([whole], parts):
        built = make(levels=TWO, **settings).double()
        for given in batches:
            given = {
                n: replace(b, image=b.image.double(), label_count=b.label_count / len(batches))
                for n, b in given.items()
            }
            for terms in built.losses(given, 0):
                (torch.stack(list(terms.values())).sum() / len(batches)).backward()
        found.append(gradients(built))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for key, value in found[0].items():
        assert float((found[1][key] - value).abs().max()) <= 1e-12 * float(value.abs().max()), key


def part(b: Batch, at: slice) -> Batch:
    # The count of the global batch is the caller's: it is divided by the number of parts there.
    return replace(b, image=b.image[at], label=b.label[at], pixel=b.pixel[at], meta=b.meta[at])


def predicted(seed: int, padding: float) -> Output:
    """A prediction of stride 8 of a 64x96 image whose right third is no picture."""
    z = torch.randn(2, 7, 8, 12, generator=torch.Generator().manual_seed(seed))
    z[..., 7:] = padding * torch.arange(7.0).view(7, 1, 1)  # column 7 is blended into pixels of column 8 and later
    return Output(z.requires_grad_(), z, size=(64, 96), padded=(64, 96), num_classes=7)


@pytest.mark.parametrize("shown", ["probability", "self_information"])
def test_padding_enters_no_loss(shown: str) -> None:
    built = make(input=shown)
    pixel = torch.ones(2, 64, 96, dtype=torch.bool)
    pixel[..., 56:] = False
    found = []
    for padding in (0.0, 3.0):
        outputs = predicted(0, padding), predicted(1, padding)
        for output in outputs:
            with torch.no_grad():
                output.logits[..., 6:7] = 0.5  # what the last pixels of the picture are interpolated from
                output.logits[..., 7] = 0.25
        found.append(built.discriminate("main", outputs, (pixel, pixel)))
        built.maps(outputs[0], ("main",), pixel)["main"].square().sum().backward()
        grad = outputs[0].logits.grad
        assert grad is not None and grad[..., :7].any() and not grad[..., 8:].any()
    assert torch.equal(found[0]["discriminator_main"], found[1]["discriminator_main"])
    whole = torch.ones_like(pixel)
    other = [built.discriminate("main", (predicted(0, k), predicted(1, k)), (whole, whole)) for k in (0.0, 3.0)]
    assert not torch.equal(other[0]["discriminator_main"], other[1]["discriminator_main"]), "the change is visible"


def test_an_image_without_any_picture_changes_nothing_but_the_mean() -> None:
    batches = pair(size=2)
    for b in batches.values():
        b.pixel[1] = False
    built = make()
    built.discriminator["main"] = Says(2.0)
    _, deceive, learn = built.losses(batches, 0)
    assert float(deceive["adversarial_main"].detach()) == pytest.approx(0.001 * math.log1p(math.exp(2)) / 2)
    assert all(bool(v.isfinite()) for v in (*deceive.values(), *learn.values(), *learn.logs.values()))


class Headless(SegModel):
    """No heads at all."""

    def decode(self, x: Tensor) -> Output:
        z = torch.nn.functional.avg_pool2d(x, 8).repeat(1, 3, 1, 1)[:, :7]
        return Output(z, z)

    def classifiers(self) -> dict[str, nn.Module]:
        return {}


@pytest.mark.parametrize("name", ["adversarial", "minent"])
def test_an_unknown_level_is_named_with_the_heads_there_are(name: str) -> None:
    def message(net: SegModel, level: str) -> str:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(UserError) as caught:
            method(name, net, levels={"main": 0.001, level: 0.1})
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "only looked at"
        return str(caught.value)

    net = build_model({"name": "bisenet", "width": 0.125, "detail": True}, 7)
    assert "'auxiliary'; this model has 'main' and the heads out16, out32" in message(net, "auxiliary")
    assert "'detail'" in message(net, "detail"), "boundaries are no classes"
    assert "out32" not in message(net.deployed(), "out16"), "heads that serve training are gone"
    assert "heads none" in message(Headless(net.config, 7), "out16")


def test_a_level_without_a_name_or_below_zero_is_refused() -> None:
    for levels in ({}, {"a.b": 1.0}, {"main": -1.0}):
        with pytest.raises(ValidationError):
            METHODS.get("adversarial").Config.model_validate({"name": "adversarial", "levels": levels})


def test_a_head_that_saw_a_crop_is_no_level() -> None:
    z = torch.zeros(1, 7, 4, 4)
    output = Output(
        z, z, heads=(Head("crop", z, window=(0, 0, 16, 16)),), size=(32, 32), padded=(32, 32), num_classes=7
    )
    with pytest.raises(UserError, match="crop"):
        level_logits(output, ["crop"])


@pytest.mark.parametrize(
    "config",
    [
        {"name": "deeplabv2", "encoder": "mobilenetv3_small_050", "auxiliary": True},
        {"name": "bisenet", "width": 0.125},
    ],
    ids=["deeplabv2", "bisenet"],
)
def test_levels_of_a_model_with_an_unknown_output_are_its_classes(config: dict[str, Any]) -> None:
    net = build_model(config, 7)
    net.add_unknown()
    head = "auxiliary" if config["name"] == "deeplabv2" else "out32"
    built = method("adversarial", net, levels={"main": 0.001, head: 0.0002})
    net.train()
    output = net(batch(0).image)
    assert output.logits.shape[1] == 8
    for logits in level_logits(output, built.config.levels).values():
        assert logits.shape[1] == 7
    assert all(bool(v.isfinite()) for terms in built.losses(pair(), 0) for v in terms.values())


def test_discriminators_are_saved_and_have_an_optimiser_of_their_own() -> None:
    built = make(levels=TWO)
    assert {"discriminator.main.conv1.weight", "discriminator.out16.classifier.bias"} <= built.state_dict().keys()
    own = {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0}
    optimizers = build_optimizers(built.networks(), OptimConfig(networks={"discriminator": own}))
    found = optimizers["discriminator"]
    assert isinstance(found, Adam) and found.defaults["betas"] == (0.9, 0.99)
    assert found.param_groups[0]["lr"] == 1e-4 and found.param_groups[0]["weight_decay"] == 0
    assert sum(len(g["params"]) for g in found.param_groups) == len(list(built.discriminator.parameters())) == 20


def autocast(graphs: Iterator[Terms], dtype: torch.dtype) -> Iterator[Terms]:
    while True:
        with torch.autocast("cpu", dtype):
            terms = next(graphs, None)
        if terms is None:
            return
        yield terms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shown", ["probability", "self_information"])
def test_half_precision_trains_and_losses_are_in_32_bits(dtype: torch.dtype, shown: str) -> None:
    full, half = make(levels=TWO, input=shown), make(levels=TWO, input=shown)
    for exact, terms in zip(full.losses(pair(), 0), autocast(half.losses(pair(), 0), dtype), strict=True):
        for name, value in terms.items():
            assert value.dtype == torch.float32
            assert float(value.detach()) == pytest.approx(float(exact[name].detach()), rel=0.05)
        torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)


def test_nothing_of_a_graph_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built = make(levels=TWO)
    alive: list[weakref.ref[Tensor]] = []
    real = built.model.forward

    def watched(image: Tensor) -> Output:
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        output = real(image)
        alive.extend(weakref.ref(t) for t in (output.logits, output.embedding, *output.stages))
        return output

    monkeypatch.setattr(built.model, "forward", watched)
    graphs = built.losses(pair(), 0)
    for _ in range(4):
        terms = next(graphs)
        torch.stack(list(terms.values())).sum().backward()
        del terms
    assert len(alive) > 4
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_kept_outputs_hold_logits_only() -> None:
    output = without_graph(make().model(batch(0).image))
    tensors = (output.logits, output.embedding, *output.stages, *(h.logits for h in output.heads))
    assert not any(t.requires_grad for t in tensors) and output.stages == () and len(output.heads) == 2
    assert output.size == (64, 96) and len(SPACE) == output.num_classes
