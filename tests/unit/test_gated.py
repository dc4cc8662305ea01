"""A gate beside a frozen classifier: the source model bit for bit while it is shut, one matrix that learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.anchored import BASE, CLASSES, SPACE, Colours, anchor, bits, images, network, stored
from segue import checkpoint
from segue.data.batch import Batch, Meta
from segue.errors import UserError
from segue.methods.base import METHODS, Method, Terms
from segue.models.build import build_model
from segue.models.gated import Gated

INSIDE, FAR = Colours(8, seed=3), Colours(8, 120, seed=3)


def gated(tmp_path: Path, *, opened: bool = False, **settings: Any) -> Gated:
    """Started from ``network()``; with ``opened`` its gate has weights."""
    torch.manual_seed(1)
    model = build_model({"name": "gated", "base": BASE, **settings}, CLASSES)
    checkpoint.start_from(model, SPACE, stored(tmp_path / "source"))
    assert isinstance(model, Gated)
    if opened:
        torch.nn.init.normal_(model.gate.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


def layouts() -> dict[str, Tensor]:
    mixed = torch.cat([images(INSIDE, 0, 2), images(FAR, 0, 2)])[[0, 2, 1, 3]]
    return {
        "inside": images(INSIDE),
        "far": images(FAR),
        "mixed": mixed,
        "one": images(FAR, 0, 1),
        "channels last": mixed.contiguous(memory_format=torch.channels_last),
        "padded": mixed[..., :50, :70],
    }


@pytest.mark.parametrize("layout", layouts())
def test_a_shut_gate_is_the_source_model_bit_for_bit(layout: str, tmp_path: Path) -> None:
    model, plain, batch = gated(tmp_path), network(), layouts()[layout]
    with torch.no_grad():
        ours, theirs = model(batch), plain(batch)
    assert torch.equal(bits(ours.logits), bits(theirs.logits))
    assert torch.equal(bits(ours.upsample(ours.logits)), bits(theirs.upsample(theirs.logits)))
    assert bool(model.outside.any()) == (layout != "inside")


@pytest.mark.parametrize("value", [-0.0, float("nan")])
def test_no_sum_touches_what_the_gate_leaves(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gated(tmp_path)
    real = model.base.decode
    monkeypatch.setattr(model.base, "decode", lambda x: replace(real(x), logits=torch.full((4, CLASSES, 8, 12), value)))
    with torch.no_grad():
        found = model(layouts()["mixed"]).logits
    assert model.outside.any() and torch.equal(bits(found), bits(torch.full_like(found, value)))


def test_an_open_gate_changes_images_outside_alone(tmp_path: Path) -> None:
    model, plain, batch = gated(tmp_path, opened=True), network(), layouts()["mixed"]
    with torch.no_grad():
        ours, theirs = model(batch).logits, plain(batch).logits
    assert model.outside.tolist() == [False, True, False, True]
    assert torch.equal(bits(ours[[0, 2]]), bits(theirs[[0, 2]]))
    assert all((ours[n] - theirs[n]).abs().max() > 0.1 for n in (1, 3))
    wide = gated(tmp_path / "again", opened=True)
    wide.radius.fill_(1e9)
    with torch.no_grad():
        assert torch.equal(bits(wide(batch).logits), bits(theirs))


def test_scores_and_gates_are_those_of_numpy(tmp_path: Path) -> None:
    model = gated(tmp_path, opened=True, nearest=3)
    with torch.no_grad():
        output = model(images(FAR, 0, 1))
        plain = network()(images(FAR, 0, 1))
        gates, scores = model.gates(output.embedding)
    kept = anchor()
    spread = kept.spread.double().numpy()
    known = kept.known.numpy()
    cells = output.embedding[0].double().numpy().transpose(1, 2, 0) / spread
    wanted = np.zeros((CLASSES, *cells.shape[:2]))
    distance = np.full((CLASSES, *cells.shape[:2]), np.nan)
    for number in np.flatnonzero(known):
        centres = kept.prototypes[number].double().numpy() / spread
        each = np.sort(np.sqrt(((cells[..., None, :] - centres) ** 2).sum(-1)), -1)[..., :3]
        soft = np.exp(-each + each.min(-1, keepdims=True))
        distance[number] = (soft * each).sum(-1) / soft.sum(-1)
    wanted[known] = -(distance - np.nanmean(distance, 0))[known] / np.nanstd(distance, 0)
    np.testing.assert_allclose(scores[0], wanted, atol=2e-3)
    weight = model.gate.weight.detach().double().numpy()
    np.testing.assert_allclose(gates[0], weight @ wanted.mean((1, 2)), atol=2e-3)
    added = gates[0].double().numpy()[:, None, None] * wanted
    np.testing.assert_allclose(output.logits[0] - plain.logits[0], added, atol=1e-2)


def test_prototypes_fill_the_room_or_are_refused(tmp_path: Path) -> None:
    model = gated(tmp_path, prototypes=20)
    number = anchor().prototypes.shape[1]
    assert torch.equal(model.centres[:, number], model.centres[:, 0]) and not model.known[6]
    with pytest.raises(UserError, match=r"set model\.prototypes"):
        gated(tmp_path / "few", prototypes=2)
    torch.manual_seed(0)
    wide = build_model({"name": "gated", "base": {**BASE, "width": 0.25}}, CLASSES)
    with pytest.raises(UserError, match="channels"):
        wide.adopt(anchor())


def test_saved_and_started_again(tmp_path: Path) -> None:
    model = gated(tmp_path, opened=True)
    (tmp_path / "next").mkdir()
    checkpoint.save_model(tmp_path / "next", model, SPACE, {})
    loaded = checkpoint.load_model(tmp_path / "next")[0]
    torch.manual_seed(7)
    started = build_model({"name": "gated", "base": BASE}, CLASSES)
    checkpoint.start_from(started, SPACE, tmp_path / "next")
    batch = layouts()["mixed"]
    with torch.no_grad():
        for other in (loaded, started.eval()):
            assert torch.equal(bits(model(batch).logits), bits(other(batch).logits))
            assert other.anchor is not None


@pytest.mark.parametrize("name", ["gated", "reservoir"])
def test_a_wrapper_normalises_as_the_network_that_it_starts_from(name: str, tmp_path: Path) -> None:
    plain = network()
    plain.mean.fill_(0.4), plain.std.fill_(0.1)
    model = build_model({"name": name, "base": BASE}, CLASSES).eval()
    checkpoint.start_from(model, SPACE, stored(tmp_path / "source", plain))
    with torch.no_grad():
        assert torch.equal(bits(model(images(FAR)).logits), bits(plain(images(FAR)).logits))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    model = build_model({"name": "gated", "base": {**BASE, "width": 0.25}}, CLASSES)
    with pytest.raises(checkpoint.CheckpointError, match="another architecture"):
        checkpoint.start_from(model, SPACE, stored(tmp_path / "source"))
    for base, said in (({"name": "gated"}, "wrapper"), ({**BASE, "norm": "train"}, "whole network")):
        with pytest.raises(UserError, match=said):
            build_model({"name": "gated", "base": base}, CLASSES)


def batch_of(data: Colours, first: int = 0) -> Batch:
    pictures = images(data, first, 2)
    size = pictures.shape[-2:]
    label = torch.full((2, *size), 255)
    meta = tuple(Meta(i, str(i), "m", (size[0], size[1])) for i in range(2))
    return Batch(pictures, label, torch.ones(2, *size, dtype=torch.bool), None, torch.tensor(1.0), meta)


def method(model: Any, **settings: Any) -> Method:
    cls = METHODS.get("prototype_gate")
    built = cls(cls.Config.model_validate({"name": "prototype_gate", **settings}), model, SPACE, {})
    built.key = (0, "test")
    built.train()
    built.prepare({})
    return built


def step(built: Method, batch: Batch, optimizer: Any = None) -> Terms:
    (terms,) = built.losses({"target": batch}, 0)
    if terms and optimizer:
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return terms


def test_only_the_gate_learns_and_predictions_become_certain(tmp_path: Path) -> None:
    model = gated(tmp_path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    built = method(model, evenness=0.0, confidence=0.1)
    groups = model.param_groups()
    assert [group.name for group in groups] == ["gate"]
    optimizer = torch.optim.SGD(groups[0].params, lr=1.0)
    found = [step(built, batch_of(FAR), optimizer) for _ in range(12)]
    values = [float(terms["entropy"].detach()) for terms in found]
    assert values[-1] < values[0] and not (set(found[0]) - {"entropy", "gate"})
    after = model.state_dict()
    assert [k for k in after if not torch.equal(before[k], after[k])] == ["gate.weight"]
    with torch.no_grad():
        source = model.eval()(images(INSIDE)).logits
        assert torch.equal(bits(source), bits(network()(images(INSIDE)).logits))


def test_the_step_is_scaled_by_the_share_of_sure_pixels(tmp_path: Path) -> None:
    model = gated(tmp_path)
    with torch.no_grad():
        some = {q: step(method(model, confidence=q), batch_of(FAR)) for q in (0.0, 0.999)}
    assert float(some[0.0].logs["sure_share"]) == 1 and float(some[0.999].logs["sure_share"]) == 0
    assert float(some[0.999]["entropy"]) == 0 and float(some[0.0]["entropy"]) > 0
    even = float(some[0.0]["gate"])
    assert even == pytest.approx(-0.1), "a shut gate is as even as can be"


def test_images_inside_teach_nothing(tmp_path: Path) -> None:
    built = method(gated(tmp_path))
    terms = step(built, batch_of(INSIDE))
    assert not terms and float(terms.logs["open_share"]) == 0


def test_what_the_method_refuses() -> None:
    with pytest.raises(UserError, match="model 'gated'"):
        method(network())
    with pytest.raises(UserError, match="segue anchor"):
        method(build_model({"name": "gated", "base": BASE}, CLASSES))
