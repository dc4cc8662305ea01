"""Norm layers for each domain: which images use which, what a stream changes, and what it can never change."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.anchored import BASE, CLASSES, SPACE, Colours, bits, images, network, stored
from helpers.fingerprint import fingerprint
from segue import checkpoint, recipes
from segue.config import DatasetConfig
from segue.data.dataset import open_dataset
from segue.errors import UserError
from segue.jobs.run import run
from segue.labels import load_space
from segue.methods.base import METHODS
from segue.models.anchor import make_anchor
from segue.models.build import build_model
from segue.models.reservoir import Reservoir

HOME, RED, BLUE = Colours(8, seed=3), Colours(8, 120, seed=4), Colours(8, -50, seed=5)


def reservoir(tmp_path: Path, model: Any = None, base: dict[str, Any] = BASE, **settings: Any) -> Reservoir:
    torch.manual_seed(1)
    built = build_model({"name": "reservoir", "base": base, **settings}, CLASSES)
    checkpoint.start_from(built, SPACE, stored(tmp_path / "source", model))
    assert isinstance(built, Reservoir)
    return built.eval()


def meet(model: Reservoir, data: Colours) -> None:
    model.meet(images(data, n, 1) for n in range(8))


def train(model: Reservoir, data: Colours, steps: int = 3) -> None:
    """Adam with decay on random targets: whatever can move does."""
    model.train()
    groups = [{"params": g.params, "weight_decay": 0.1 * g.decay} for g in model.param_groups()]
    optimizer = torch.optim.AdamW(groups, lr=0.05)
    for number in range(steps):
        output = model(images(data, number, 2))
        target = torch.randint(0, CLASSES, output.logits[:, 0].shape, generator=torch.Generator().manual_seed(number))
        torch.nn.functional.cross_entropy(output.logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def logits(model: Any, batch: Tensor) -> Tensor:
    out: Tensor = model(batch).logits
    return out


def test_before_any_stream_it_is_the_plain_network(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    for data in (HOME, RED):
        assert torch.equal(bits(logits(model, images(data))), bits(logits(network(), images(data))))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names and all("norm" in n for n in names), "norm layers alone are trained"


def test_training_on_a_stream_leaves_the_source_bit_for_bit(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    shared = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    meet(model, RED)
    assert int(model.active) == 1
    assert torch.equal(logits(model, images(RED)), logits(network(), images(RED))), "it starts as the source"
    train(model, RED)
    assert model.slots_of(images(HOME)).tolist() == [0] * 4 and model.slots_of(images(RED)).tolist() == [1] * 4
    for batch in (images(HOME), images(HOME, 0, 1), images(HOME)[..., :50, :70]):
        assert torch.equal(bits(logits(model, batch)), bits(logits(network(), batch)))
    assert (logits(model, images(RED)) - logits(network(), images(RED))).abs().max() > 0.1
    assert all(torch.equal(shared[n], p) for n, p in model.named_parameters() if n in shared)


def test_images_of_a_mixed_batch_use_their_own_slots(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    meet(model, RED)
    train(model, RED)
    home, red = images(HOME, 0, 2), images(RED, 0, 2)
    mixed = torch.stack([home[0], red[0], home[1], red[1]])
    with torch.no_grad():
        output = model(mixed)
        assert model.last_slots.tolist() == [0, 1, 0, 1]
        apart = [model(home), model(red)]
    for rows, part in zip(([0, 2], [1, 3]), apart, strict=True):
        assert torch.equal(output.logits[rows], part.logits) and torch.equal(output.embedding[rows], part.embedding)
        assert all(torch.equal(a[rows], b) for a, b in zip(output.stages, part.stages, strict=True))


def test_streams_open_slots_and_come_back_to_them(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    meet(model, RED)
    train(model, RED)
    red = logits(model, images(RED))
    meet(model, BLUE)
    assert int(model.active) == 2 and model.slots_of(images(BLUE)).tolist() == [2] * 4
    train(model, BLUE)
    assert torch.equal(bits(logits(model, images(RED))), bits(red)), "another slot's training is not seen"
    blue = logits(model, images(BLUE))
    meet(model, RED)
    assert int(model.active) == 1 and int(model.counts[1]) == 16
    assert torch.equal(bits(logits(model, images(RED))), bits(red))
    assert torch.equal(bits(logits(model, images(BLUE))), bits(blue))
    assert torch.equal(bits(logits(model, images(HOME))), bits(logits(network(), images(HOME))))


def test_a_new_slot_starts_as_the_nearest(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    meet(model, Colours(8, 70, seed=6))
    train(model, Colours(8, 70, seed=6))
    values = model.slots.of(model.base, 0)
    meet(model, RED)
    assert int(model.active) == 2
    own = dict(model.base.named_parameters())
    name = next(n for n in values if n.endswith("weight"))
    stored_away = model.slots.of(model.base, 1)[name]
    assert torch.equal(own[name], stored_away) and not torch.equal(own[name], values[name])


def test_when_all_slots_are_taken_the_nearest_goes_on(tmp_path: Path) -> None:
    model = reservoir(tmp_path, slots=2)
    meet(model, RED)
    before = {n: v.shape for n, v in model.state_dict().items()}
    meet(model, BLUE)
    assert int(model.active) == 1 and int(model.counts[1]) == 16
    assert {n: v.shape for n, v in model.state_dict().items()} == before
    train(model, BLUE)
    assert torch.equal(bits(logits(model, images(HOME))), bits(logits(network(), images(HOME))))


def test_a_stream_like_the_source_still_leaves_it_alone(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    meet(model, HOME)
    assert int(model.active) == 1
    train(model, HOME)
    assert torch.equal(bits(logits(model, images(HOME))), bits(logits(network(), images(HOME))))


def test_saved_loaded_and_followed_on(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    meet(model, RED)
    train(model, RED)
    (tmp_path / "next").mkdir()
    checkpoint.save_model(tmp_path / "next", model, SPACE, {})
    loaded = checkpoint.load_model(tmp_path / "next")[0]
    torch.manual_seed(9)
    started = build_model({"name": "reservoir", "base": BASE}, CLASSES)
    checkpoint.start_from(started, SPACE, tmp_path / "next")
    for data in (HOME, RED, BLUE):
        for other in (loaded, started.eval(), copy.deepcopy(model)):
            assert torch.equal(bits(logits(model, images(data))), bits(logits(other, images(data))))
    assert isinstance(loaded, Reservoir)
    meet(loaded, RED)
    assert int(loaded.active) == 1


@pytest.mark.parametrize("base", [{"name": "segformer", "variant": "b0", "channels": 16}, {"name": "deeplabv3"}])
def test_other_norm_layers(base: dict[str, Any], tmp_path: Path) -> None:
    small = {"encoder": "mobilenetv3_small_050", "separable": True, "channels": 16}
    settings = {**base, **(small if base["name"] == "deeplabv3" else {})}
    torch.manual_seed(0)
    plain = build_model(settings, CLASSES).eval()
    plain.anchor = make_anchor(plain, Colours(16), SPACE)
    (tmp_path / "source").mkdir()
    checkpoint.save_model(tmp_path / "source", plain, SPACE, {})
    model = build_model({"name": "reservoir", "base": settings}, CLASSES)
    checkpoint.start_from(model, SPACE, tmp_path / "source")
    assert isinstance(model, Reservoir)
    meet(model, RED)
    train(model, RED, 1)
    assert torch.equal(bits(logits(model, images(HOME))), bits(logits(plain, images(HOME))))
    assert not torch.equal(logits(model, images(RED)), logits(plain, images(RED)))


def test_a_stream_needs_an_anchor(tmp_path: Path) -> None:
    model = build_model({"name": "reservoir", "base": BASE}, CLASSES)
    checkpoint.start_from(model, SPACE, stored(tmp_path / "bare", network(), anchored=False))
    model.meet(iter(()))
    with pytest.raises(UserError, match="segue anchor"):
        model.meet([images(RED)])


def test_a_method_shows_the_target_before_it_begins(tmp_path: Path) -> None:
    model = reservoir(tmp_path)
    cls = METHODS.get("weak_labels")
    built = cls(cls.Config.model_validate({"name": "weak_labels", "distillation": 0}), model, SPACE, {})
    built.prepare({"source": SimpleNamespace(datasets=[BLUE])})
    assert int(model.active) == 0
    built.prepare({"target": SimpleNamespace(datasets=[RED])})
    assert int(model.active) == 1 and int(model.counts[1]) == 8


def test_new_statistics_are_those_of_the_stream_s_slot(tmp_path: Path) -> None:
    model = reservoir(tmp_path, kinds={})
    cls = METHODS.get("batch_statistics")
    built = cls(cls.Config.model_validate({"name": "batch_statistics"}), model, SPACE, {})
    built.prepare({"target": SimpleNamespace(datasets=[RED])})
    built.train()
    list(built.losses({"target": SimpleNamespace(image=images(RED))}, 0))
    built.eval()
    assert torch.equal(bits(logits(model, images(HOME))), bits(logits(network(), images(HOME))))
    assert not torch.equal(logits(model, images(RED)), logits(network(), images(RED)))


class Kill(BaseException):
    """The end of the process."""


def test_a_killed_run_resumes_bit_for_bit(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("cityscapes19")
    torch.manual_seed(0)
    plain = build_model(BASE, 19)
    game = open_dataset("gta5", DatasetConfig(root=scene_data / "game"), "train", space)
    plain.anchor = make_anchor(plain, game, space)
    (tmp_path / "source").mkdir()
    checkpoint.save_model(tmp_path / "source", plain, space, {})
    given = recipes.load(
        {
            "name": "mini",
            "labels": "cityscapes19",
            "model": {"name": "reservoir", "base": BASE, "slots": 3},
            "data": {"city": {"dataset": "cityscapes", "root": str(scene_data / "city")}},
            "train": {"iterations": 4, "batch_size": 2, "checkpoint_every": 1},
            "transform": {"crop": [64, 64]},
            "evaluate": {"data": ["city:train"], "samples": 0},
            "stages": [
                {
                    "name": "adapted",
                    "method": {"name": "weak_labels", "distillation": 0},
                    "data": {"target": "city:train"},
                    "start": str(tmp_path / "source"),
                }
            ],
        }
    )
    run(given, tmp_path / "whole", device="cpu")
    cls = METHODS.get("weak_labels")
    real = cls.losses

    def dying(self: Any, batches: Any, iteration: int) -> Any:
        if iteration == 2:
            raise Kill
        return real(self, batches, iteration)

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(cls, "losses", dying)
        run(given, tmp_path / "part", device="cpu")
    run(given, tmp_path / "part", resume=True, device="cpu")
    assert fingerprint(tmp_path / "part") == fingerprint(tmp_path / "whole")
    trained = checkpoint.load_model(tmp_path / "part")[0]
    assert isinstance(trained, Reservoir) and int(trained.active) == 1 and trained.anchor is not None
