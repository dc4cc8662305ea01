"""The search: what a space may be, that crashes and stops do not end it, and what it writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.command import refused, segue, write_recipe
from helpers.recipes import recipe
from segue import recipes
from segue.config import Recipe
from segue.errors import Interrupted, UserError
from segue.jobs import tune as search
from segue.jobs.tune import Range, read_space


def test_space(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("optim: {lr: '1e-4:1e-2:log'}\ntrain.batch_size: [2, 4]\n")
    assert read_space([str(file), "method.beta=0.01|0.05", "train.iterations=2:8"]) == [
        Range("optim.lr", 1e-4, 1e-2, True),
        Range("train.batch_size", choices=(2, 4)),
        Range("method.beta", choices=(0.01, 0.05)),
        Range("train.iterations", 2, 8),
    ]


@pytest.mark.parametrize("text", ["lr=1", "lr=2:1", "lr=0:1:log", "lr=a:b", "lr=1:2:3", "lr=1:2:log:x", "lr="])
def test_a_space_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match="cannot read the space lr="):
        read_space([text])


def test_no_space() -> None:
    with pytest.raises(UserError, match="nothing to search"):
        read_space([])


def test_optuna_is_an_extra(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    file = write_recipe(tmp_path / "r.yaml", recipe(scene_data))
    done = segue("tune", file, "--space", "optim.lr=0.001:0.01", "--out", tmp_path / "out")
    refused(done, "optuna", "pip install 'segue[tune]'")


def test_whose_labels_choose(scene_data: Path) -> None:
    given = recipe(scene_data, "fda")
    assert search.choice_rule(recipes.load(given)) == search.ORACLE
    given["stages"][1] |= {"method": "supervised", "data": {"source": "city:train"}}
    assert search.choice_rule(recipes.load(given)) == search.VALIDATION
    pseudo = {"method": "pseudo_labels", "data": {"source": "game:train", "target": "city:train"}}
    given["stages"][1] |= pseudo | {"pseudo_labels": {"target": {"models": ["first"]}}}
    assert search.choice_rule(recipes.load(given)) == search.ORACLE, "pseudo-labels are nobody's labels"


class FakeRun:
    """In place of a training: the mIoU is a function of the learning rate; remembers what was run."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, bool]] = []
        self.fails: dict[int, BaseException] = {}

    def __call__(self, given: Recipe, folder: Path, *, resume: bool, device: str) -> Any:
        lr = given.optim.lr
        self.seen.append((folder.name, lr, resume))
        folder.mkdir(parents=True, exist_ok=True)
        if error := self.fails.pop(len(self.seen), None):
            raise error
        scored: Mapping[str, Any] = {"evaluations": {"city:val": {"miou": 1 - abs(lr - 0.004) * 100}}}
        return SimpleNamespace(stages={given.seed: {"first": {}, "second": scored}})


@pytest.fixture()
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """Trials cost nothing."""
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    made = FakeRun()
    monkeypatch.setattr(search, "run", made)
    return made


SPACE = [Range("optim.lr", 0.001, 0.01)]


def test_the_best_is_written_as_a_recipe(fake: FakeRun, scene_data: Path, tmp_path: Path) -> None:
    best = search.tune(recipe(scene_data, "fda"), SPACE, 6, tmp_path, device="cpu")
    assert len(fake.seen) == 6 and len({lr for _, lr, _ in fake.seen}) == 6
    assert best.settings["optim.lr"] == min((lr for _, lr, _ in fake.seen), key=lambda lr: abs(lr - 0.004))
    written = recipes.load(best.recipe)
    assert written.optim.lr == best.settings["optim.lr"] and written.name == "mini"
    text = best.recipe.read_text()
    assert "oracle (target labels used for selection)" in text and "city:val" in text and "last" in text


def test_a_crashed_trial_scores_worst_and_the_search_goes_on(fake: FakeRun, scene_data: Path, tmp_path: Path) -> None:
    fake.fails = {1: RuntimeError("CUDA out of memory"), 3: UserError("training diverged")}
    best = search.tune(recipe(scene_data), SPACE, 4, tmp_path, device="cpu")
    assert len(fake.seen) == 4 and best.trial in (1, 3)
    assert ["out of memory" in best.crashed[0], "diverged" in best.crashed[1]] == [True, True]
    study = search._study(tmp_path)
    assert [t.value == search.WORST for t in study.trials] == [True, False, True, False]


def test_all_crashed(fake: FakeRun, scene_data: Path, tmp_path: Path) -> None:
    fake.fails = {1: RuntimeError("one"), 2: RuntimeError("two")}
    with pytest.raises(UserError, match=r"every trial crashed.*two"):
        search.tune(recipe(scene_data), SPACE, 2, tmp_path, device="cpu")


def test_a_stopped_search_goes_on_as_if_it_had_not_been(fake: FakeRun, scene_data: Path, tmp_path: Path) -> None:
    given = recipe(scene_data)
    search.tune(given, SPACE, 5, tmp_path / "whole", seed=3, device="cpu")
    whole, fake.seen = fake.seen, []
    fake.fails = {3: Interrupted("stopped by SIGTERM")}
    with pytest.raises(Interrupted):
        search.tune(given, SPACE, 5, tmp_path / "parts", seed=3, device="cpu")
    with pytest.raises(UserError, match="--resume"):
        search.tune(given, SPACE, 5, tmp_path / "parts", seed=3, device="cpu")
    search.tune(given, SPACE, 5, tmp_path / "parts", seed=3, resume=True, device="cpu")
    assert fake.seen[:2] == whole[:2] and fake.seen[2][:2] == whole[2][:2]
    assert fake.seen[3] == (*whole[2][:2], True), "the stopped trial is resumed, not started again"
    assert fake.seen[4:] == whole[3:]
    with pytest.raises(UserError, match="another seed"):
        search.tune(given, SPACE, 5, tmp_path / "parts", seed=4, resume=True, device="cpu")
    with pytest.raises(UserError, match="another space"):
        search.tune(given, [Range("optim.lr", 0.1, 1.0)], 5, tmp_path / "parts", seed=3, resume=True, device="cpu")


def test_a_trial_that_kills_the_process_does_not_end_every_search(
    fake: FakeRun, scene_data: Path, tmp_path: Path
) -> None:
    class Killed(BaseException):
        """Nothing of the search runs after it, as after kill -9."""

    for _ in range(search.ATTEMPTS):
        fake.fails = {len(fake.seen) + 1: Killed()}
        with pytest.raises(Killed):
            search.tune(recipe(scene_data), SPACE, 2, tmp_path, resume=True, device="cpu")
    best = search.tune(recipe(scene_data), SPACE, 2, tmp_path, resume=True, device="cpu")
    assert best.trial == 1 and search._study(tmp_path).trials[0].value == search.WORST
    assert "died" in best.crashed[0]


def test_faults_are_told_before_the_first_trial(fake: FakeRun, scene_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown key"):
        search.tune(recipe(scene_data), [Range("optim.lrr", 0.1, 1.0)], 2, tmp_path / "a", device="cpu")
    given = recipe(scene_data) | {"evaluate": {}}
    with pytest.raises(UserError, match=r"evaluate\.data"):
        search.tune(given, SPACE, 2, tmp_path / "b", device="cpu")
    assert not fake.seen and not list(tmp_path.iterdir())


def test_command(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real trainings, one of which crashes: a batch of 3 cannot be split into two micro-batches."""
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    monkeypatch.chdir(tmp_path)
    given = recipe(scene_data, iterations=1, accumulate=2, evaluate_every=None)
    file = write_recipe(tmp_path / "r.yaml", given)
    space = ("--space", "train.batch_size=2|3")
    done = segue("tune", file, *space, "--trials", 3, "--seed", 1, "--device", "cpu")
    assert done.code == 0, done
    assert "chosen by: oracle" in done.out and "train.batch_size=2" in done.out
    assert (tmp_path / "runs/mini/tune/best.yaml").is_file() and sys.modules["optuna"]
