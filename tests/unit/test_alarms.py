"""Alarms without labels: silent on noise, loud on what they are for; looks that disturb nothing and repeat exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import alarms, recipes
from segue.alarms import Alarm, Judge, Look, effective_classes, looks_of, mutual_information
from segue.data.batch import Batch, Meta
from segue.jobs.run import run
from segue.labels import load_space
from segue.methods.base import Batches, Terms
from segue.methods.minent import MinEnt
from segue.models.base import ModelConfig, Output, SegModel
from segue.watch import Lens, Watch

SPACE = load_space("street7")
PARTS, CLASSES, EVERY = 8, 7, 20
SHARES = np.array([0.4, 0.3, 0.15, 0.08, 0.04, 0.02, 0.01])


def history(seed: int, rounds: int = 10, edit: Callable[[float, np.ndarray], np.ndarray] | None = None) -> list[Look]:
    """Looks at images that differ, by a model that wobbles; ``edit`` changes the shares as time (0..1) goes on."""
    rng = np.random.default_rng(seed)
    own = rng.dirichlet(30 * SHARES, PARTS)
    out = []
    for number in range(PARTS * (rounds + 1)):
        part, after = number % PARTS, max(0, number - PARTS + 1)
        share = own[part] * np.exp(rng.normal(0, 0.05, CLASSES))
        share = edit(after / (PARTS * rounds), share) if edit else share
        share = share / share.sum()
        entropy = 0.5 * np.exp(rng.normal(0, 0.05))
        out.append(Look("target", EVERY * after, part, tuple(share), tuple(share), entropy, 0.8, 1.0))
    return out


def judged(looks: list[Look], trained: bool = True) -> list[Alarm]:
    judge = Judge(trained, looks[-1].iteration)
    return [alarm for look in looks for alarm in judge.add(look)]


def test_noise_without_a_trend_raises_nothing() -> None:
    """A wobble of 5 % in every number of every look: at most two runs in a hundred, as documented."""
    assert sum(bool(judged(history(seed))) for seed in range(150)) <= 3


def test_a_class_that_fades_is_named_before_it_is_gone() -> None:
    def fade(time: float, share: np.ndarray) -> np.ndarray:
        return share * np.where(np.arange(CLASSES) == 4, max(0.0, 1 - 1.5 * time), 1)

    for seed in range(20):
        looks = history(seed, edit=fade)
        found = [a for a in judged(looks) if a.kind == "class_vanishing"]
        assert [a.classes for a in found] == [(4,)]
        assert 0.5 < found[0].iteration / looks[-1].iteration < 0.8
        assert found[0].now < 0.1 * found[0].before
        assert f"vanishing from the predictions: {SPACE.classes[4]}, " in found[0].text(SPACE.classes)


def test_a_class_that_came_during_training_is_missed_too() -> None:
    def come_and_go(time: float, share: np.ndarray) -> np.ndarray:
        level = 0.0 if time < 0.2 else (1.0 if time < 0.6 else 0.01)
        return share * np.where(np.arange(CLASSES) == 3, level, 1)

    found = [a for a in judged(history(1, edit=come_and_go)) if a.kind == "class_vanishing"]
    assert [a.classes for a in found] == [(3,)]


def test_what_a_start_got_wrong_may_go_while_all_else_gets_clearer() -> None:
    def improve(sure: float) -> list[Look]:
        out = []
        for look in history(3, edit=lambda time, s: s * np.where(np.arange(CLASSES) == 5, time == 0, 1)):
            out.append(replace(look, entropy=look.entropy * (sure if look.iteration else 1)))
        return out

    assert judged(improve(0.5)) == []
    assert {a.classes for a in judged(improve(1.0)) if a.kind == "class_vanishing"} == {(5,)}


def test_a_tiny_class_is_not_missed() -> None:
    def without(time: float, share: np.ndarray) -> np.ndarray:
        return share * np.where(np.arange(CLASSES) == 6, 0.1 if time == 0 else 0.0, 1)

    assert not [a for a in judged(history(0, edit=without)) if a.kind == "class_vanishing"]


def test_a_class_that_shows_for_a_moment_is_not_missed() -> None:
    def flash(time: float, share: np.ndarray) -> np.ndarray:
        return share * np.where(np.arange(CLASSES) == 4, 1.0 if 0.3 < time < 0.38 else 0.01, 1)

    looks = history(2, edit=flash)
    assert max(look.share[4] for look in looks) > 0.02 and judged(looks) == []


def test_predictions_that_swell_into_one_class_collapse() -> None:
    def swell(time: float, share: np.ndarray) -> np.ndarray:
        return share * np.where(np.arange(CLASSES) == 0, 1 + 12 * time, 1)

    kinds = {a.kind: a for a in judged(history(0, edit=swell))}
    assert kinds["collapse"].classes[0] == 0 and kinds["collapse"].now < 0.6 * kinds["collapse"].before
    assert "negative_transfer" in kinds


def test_an_untrained_start_is_not_held_against_the_model() -> None:
    def learn(time: float, share: np.ndarray) -> np.ndarray:
        return np.ones(CLASSES) / CLASSES if time < 0.1 else share * (np.arange(CLASSES) < 4)

    looks = history(0, edit=learn)
    assert {a.kind for a in judged(looks, trained=True)} >= {"class_vanishing"}
    assert judged(looks, trained=False) == []


def test_information_is_that_of_its_definition() -> None:
    mass = np.array([[0.5, 0.5], [1.0, 0.0]])
    mean = np.array([0.75, 0.25])
    expected = -(mean * np.log(mean)).sum() - 0.5 * np.log(2)
    assert mutual_information(mass, np.array([np.log(2), 0.0])) == pytest.approx(expected)
    assert effective_classes(np.full(5, 0.2)) == pytest.approx(5)


def test_looks_survive_their_lines_and_damage() -> None:
    looks = history(0, rounds=1)
    rows = [json.loads(json.dumps(look.row())) for look in looks]
    assert looks_of(rows) == looks
    hurt = [{"watch/target/mass": v} for v in ([None], [0.1], 3.0, [[1]], "x")] + [{"watch/target/entropy": None}]
    broken = [{"iteration": 1}, {"watch/target/part": 0}, {"watch/": 1}, *(rows[0] | part for part in hurt)]
    assert looks_of([rows[3], *broken]) == [looks[3]]


class ByColour(SegModel):
    """Probabilities from the colour of a pixel alone, at stride 2; in training mode dropout and batch norm act."""

    multiple = 2

    def __init__(self) -> None:
        super().__init__(ModelConfig(name="by_colour"), 3, mean=(0, 0, 0), std=(1, 1, 1))
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.gain = nn.Parameter(torch.tensor(4.0))

    def decode(self, x: torch.Tensor) -> Output:
        x = nn.functional.avg_pool2d(nn.functional.dropout(self.norm(x), training=self.training), 2)
        return Output(logits=self.gain * x, embedding=x)

    def classifiers(self) -> dict[str, nn.Module]:
        return {}


class Photos:
    """Iteration i has one red image with i + 1 rows of padding, which is green."""

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        while True:
            image = torch.zeros(1, 3, 32, 32)
            image[:, 0], image[:, 1, : start + 1], image[:, 0, : start + 1] = 1, 1, 0
            pixel = torch.ones(1, 32, 32, dtype=torch.bool)
            pixel[:, : start + 1] = False
            meta = (Meta(start, str(start), "m", (32, 32)),)
            yield [Batch(image, torch.full((1, 32, 32), 255), pixel, None, torch.tensor(0.0), meta)]
            start += 1


def watch(model: SegModel) -> Watch:
    lens = Lens(lambda batch: batch, lambda: torch.autocast("cpu", enabled=False), 1)
    return Watch({"target": Photos()}, model, lens)


def test_a_look_counts_the_picture_alone() -> None:
    model = ByColour()
    watched = watch(model)
    assert len(watched.at_start) == 32 and {k.part for k in watched.at_start} == set(range(32))
    p = torch.tensor([4 / (1 + 1e-5) ** 0.5, 0, 0]).softmax(0)
    for look in watched.at_start[1:24:2]:  # padding ends between two cells
        assert look.share == pytest.approx((1, 0, 0)) and look.mass == pytest.approx(p.tolist())
        assert look.entropy == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)
        assert look.confidence == pytest.approx(float(p[0])) and look.agreement == 1
    assert watched.at_start[31].mass == (0, 0, 0)  # no picture at all


def test_a_look_sees_the_change_since_the_start_and_changes_nothing() -> None:
    model = ByColour().train()
    watched = watch(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    with torch.no_grad():
        model.gain.neg_()
    look = watched.looks(model, 40, 33)[0]
    assert (look.part, look.iteration, look.agreement) == (1, 40, 0.0)
    with torch.no_grad():
        model.gain.neg_()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_watching_changes_no_weight(scene_data: Path, tmp_path: Path) -> None:
    prints = {}
    for every in (1, None):
        given = recipe(scene_data, "fda", watch_every=every, evaluate_every=None)
        run(recipes.load(given), tmp_path / str(every), device="cpu")
        prints[every] = fingerprint(tmp_path / str(every))
    for name in ("0_first/weights", "1_second/weights"):
        assert prints[1][name] == prints[None][name]
    assert "watch/" not in prints[None]["1_second/metrics"] and "watch/target" in prints[1]["1_second/metrics"]
    assert "watch/" not in prints[1]["0_first/metrics"]


@pytest.mark.parametrize("checkpoint_every", [5, pytest.param(17, marks=pytest.mark.slow)])
def test_an_alarm_is_told_written_and_repeated_by_a_resumed_run(
    checkpoint_every: int,
    scene_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last checkpoint before the kill at iteration 18 is before the alarm at 16, or after it."""
    monkeypatch.setattr(alarms, "COLLAPSED", 10.0)  # whatever is predicted, once all 16 parts were looked at
    train = {"watch_every": 1, "iterations": 20, "checkpoint_every": checkpoint_every, "evaluate_every": None}
    given = recipe(scene_data, "minent", **train)
    run(recipes.load(given), tmp_path / "whole", device="cpu")
    lines = (tmp_path / "whole/stages/1_second/metrics.jsonl").read_text().splitlines()
    (row,) = [row for row in map(json.loads, lines) if "alarm" in row]
    assert row["iteration"] == 16 and row["alarm"]["kind"] == "collapse"
    assert capsys.readouterr().err.count(f"warning: {row['alarm']['text']}\n") == 1
    with monkeypatch.context() as patch:
        real = MinEnt.losses

        def dying(self: MinEnt, batches: Batches, iteration: int) -> Iterator[Terms]:
            if iteration == 18:
                raise Stop
            yield from real(self, batches, iteration)

        patch.setattr(MinEnt, "losses", dying)
        with pytest.raises(Stop):
            run(recipes.load(given), tmp_path / "killed", device="cpu")
    run(recipes.load(given), tmp_path / "killed", resume=True, device="cpu")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


class Stop(BaseException):
    """The end of the process."""
