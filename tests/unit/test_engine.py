"""The loop: accumulation, precision, clipping, NaN policy, all-or-none steps, retention, loggers, several processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.recipes import recipe
from segue import checkpoint, recipes
from segue.config import OptimConfig, TrainConfig
from segue.data.batch import Batch, Meta
from segue.engine import Diverged, Place, fit
from segue.jobs.run import run
from segue.labels import load_space
from segue.methods.base import Batches, Method, MethodConfig, Terms
from segue.models.build import build_model

SPACE = load_space("street7")


class Memory:
    """Random labelled batches that depend on the iteration only; image 0 has few labels."""

    iterations_per_epoch = 4.0

    def __init__(self, size: int = 4, accumulate: int = 1, dtype: torch.dtype = torch.uint8) -> None:
        self.size, self.accumulate, self.dtype = size, accumulate, dtype

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        iteration = start
        while True:
            g = torch.Generator().manual_seed(iteration)
            image = torch.randint(0, 256, (self.size, 3, 64, 64), generator=g, dtype=torch.uint8)
            label = torch.randint(0, 7, (self.size, 64, 64), generator=g)
            label[0, 4:] = 255
            count = (label != 255).sum().float() / self.accumulate
            part = self.size // self.accumulate
            yield [
                Batch(
                    image=image[k : k + part],
                    label=label[k : k + part],
                    pixel=torch.ones_like(label[k : k + part], dtype=torch.bool),
                    weight=None,
                    label_count=count,
                    meta=tuple(
                        Meta(iteration * self.size + k + i, f"{iteration}/{k + i}", "m", (64, 64)) for i in range(part)
                    ),
                )
                for k in range(0, self.size, part)
            ]
            iteration += 1


class Plain(Method):
    """Supervised, with a second network that learns to say 1, and optional sabotage."""

    overflow_in: str | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.critic = nn.Linear(1, 1)

    def networks(self) -> dict[str, nn.Module]:
        return {"model": self.model, "critic": self.critic}

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        from segue.ops.losses import CriterionConfig

        batch = batches["source"]
        yield Terms(source=self.supervised(self.model(batch.image), batch, CriterionConfig()))
        critic = (self.critic(torch.ones(1, 1)) - 1).square().mean()
        if self.overflow_in == "critic" and iteration == 1:
            critic = critic * float("inf")
        yield Terms(critic=critic)


def plain(norm: str = "frozen") -> Plain:
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "width": 0.125, "norm": norm}, 7)
    return Plain(MethodConfig(name="plain"), model, SPACE, {})


def train(method: Method, folder: Path, stream: Memory | None = None, **settings: Any) -> Mapping[str, torch.Tensor]:
    """Train 3 iterations, return the state."""
    given = {"iterations": 3, "log_every": 1, **settings}
    place = Place(folder=folder, device=torch.device("cpu"), labels=SPACE, info={})
    optim = OptimConfig(lr=0.01, weight_decay=0)
    fit(method, {"source": stream or Memory()}, TrainConfig(**given), optim, place, resume=False)
    return {k: v.clone() for k, v in method.state_dict().items()}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_accumulation_does_not_change_the_step(tmp_path: Path) -> None:
    whole = train(plain(), tmp_path / "a")
    split = train(plain(), tmp_path / "b", Memory(accumulate=4), accumulate=4)
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=2e-4, atol=2e-6)
    losses = [[row["loss/source"] for row in rows(tmp_path / x)] for x in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": True}, {"clip_norm": 1e9}])
def test_options_train_to_nearly_the_same_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    base, other = train(plain(), tmp_path / "a"), train(plain(), tmp_path / "b", **settings)
    for name, value in base.items():
        torch.testing.assert_close(other[name], value, rtol=0.1, atol=0.02)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    before = plain().state_dict()
    after = train(plain(), tmp_path, clip_norm=1e-6, iterations=1)
    moved = max(float((after[k] - v).abs().max()) for k, v in before.items() if v.is_floating_point())
    assert moved <= 0.01 * 1e-6


def test_an_infinite_loss_stops_before_the_step_and_names_the_images(tmp_path: Path) -> None:
    method = plain()
    method.overflow_in = "critic"
    with pytest.raises(Diverged, match="loss/critic"):
        train(method, tmp_path)
    record = json.loads((tmp_path / "nan_batch.json").read_text())
    assert record["iteration"] == 1
    assert record["ids"]["source"] == ["1/0", "1/1", "1/2", "1/3"]
    assert all(v.isfinite().all() for v in method.state_dict().values() if v.is_floating_point())


def test_a_scaled_overflow_skips_every_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scale is exercised on the CPU by switching autocast off: only the scaler's arithmetic is at stake."""
    from segue import engine

    monkeypatch.setattr(engine._Loop, "_autocast", lambda self: torch.autocast("cpu", enabled=False))
    healthy = plain()
    states: list[torch.Tensor] = []
    monkeypatch.setattr(Plain, "after_step", lambda self, i: states.append(self.critic.weight.detach().clone()))
    train(healthy, tmp_path / "a", precision="fp16")
    assert len(states) == 3
    states.clear()
    method = plain()
    method.overflow_in = "critic"
    start = method.critic.weight.detach().clone()
    train(method, tmp_path / "b", precision="fp16")
    assert len(states) == 2
    assert rows(tmp_path / "b")[-1]["skipped_steps"] == 1
    healthy_step = 0.01 * 2 * float(1 - start - plain().critic.bias.detach())
    assert float(states[0] - start) == pytest.approx(healthy_step, rel=1e-3)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    place = Place(
        folder=tmp_path,
        device=torch.device("cpu"),
        labels=SPACE,
        info={},
        validate=lambda model, iteration: {"v": next(scores)},
    )
    settings = TrainConfig(iterations=6, checkpoint_every=1, evaluate_every=1, keep=2, best="v")
    fit(plain(), {"source": Memory()}, settings, OptimConfig(), place, resume=False)
    kept = [p.name for p in checkpoint.all_of(tmp_path / "checkpoints")]
    assert kept == ["iteration_00000002", "iteration_00000005", "iteration_00000006"]
    assert json.loads((tmp_path / "checkpoints/best.json").read_text())["iteration"] == 2


def test_epochs_and_tensorboard(scene_data: Path, tmp_path: Path) -> None:
    given = recipe(scene_data) | {"loggers": ["tensorboard"]}
    given["stages"] = given["stages"][:1]
    given["stages"][0]["train"] = {"epochs": 2, "evaluate_every": None}
    run(recipes.load(given), tmp_path, device="cpu")
    stage = json.loads((tmp_path / "stages/0_first/stage.json").read_text())
    assert stage["iterations"] == 6  # 6 images, batches of 2
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_compiled_network_trains_alike(tmp_path: Path) -> None:
    train(plain(), tmp_path / "a")
    train(plain(), tmp_path / "b", compile=True)
    losses = [[row["loss/source"] for row in rows(tmp_path / x)] for x in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
