"""A plan builds everything, trains nothing and leaves nothing; its numbers are those of the run that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.command import segue
from helpers.recipes import recipe
from segue import recipes
from segue.data.dataset import open_dataset
from segue.data.statistics import class_pixels
from segue.errors import UserError
from segue.files import read_json
from segue.jobs import plan as planning
from segue.jobs.run import run


def test_sizes_and_counts_are_those_of_the_run(scene_data: Path, tmp_path: Path) -> None:
    given = recipes.load(recipe(scene_data, "self_training"))
    found = planning.plan(given, device="cpu", seeds=2, out=tmp_path)
    done = run(given, tmp_path / "run", device="cpu")
    assert [(d.name, d.images, d.without_label) for d in found.data] == [
        ("game:train", 6, 0),
        ("city:train", 6, 0),
        ("city:val", 6, 0),
    ]
    for stage in found.stages:
        record = read_json(tmp_path / f"run/stages/{['first', 'second'].index(stage.name)}_{stage.name}/stage.json")
        assert (stage.iterations, stage.parameters) == (record["iterations"], record["parameters"])
        assert stage.training.cpu_s > 0 and stage.scoring.wall_s > 0
        files = list((done.folder / "stages").glob(f"*_{stage.name}/checkpoints/*/*"))
        written = sum(p.stat().st_size for p in files) / 1e9
        assert stage.disk_gb == pytest.approx(2 * written, rel=0.05)  # room for the old and the new checkpoint
    assert found.total.cpu_s == pytest.approx(2 * sum(s.training.cpu_s + s.scoring.cpu_s for s in found.stages))
    shares = next(d.shares for d in found.data if d.name == "city:train")
    assert sum(shares.values()) == pytest.approx(1)


def test_cost_is_what_one_iteration_costs(scene_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a clock that advances by known amounts: the first iterations, the checkpoint and scoring stay apart."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(planning, "now", lambda device: planning.Cost(cpu_s=next(ticks), wall_s=0.0))
    given = recipes.load(recipe(scene_data, iterations=100, checkpoint_every=40, evaluate_every=25))
    second = planning.plan(given, device="cpu", out=tmp_path).stages[1]
    assert second.iteration.cpu_s == 1
    assert second.training.cpu_s == 100 * 1 + 3 * 1  # checkpoints at 40, 80 and the end
    assert second.scoring.cpu_s == 6 * 5  # six images, after 25, 50, 75, 100 and at the end


def test_stages_of_one_kind_are_measured_once(scene_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    real: Callable[..., Any] = planning._measure
    monkeypatch.setattr(planning, "_measure", lambda j, s, f, t: measured.append(s.name) or real(j, s, f, t))
    planning.plan(recipes.load(recipe(scene_data)), device="cpu", trial=False)
    assert measured == ["first"]
    measured.clear()
    given = recipe(scene_data)
    given["stages"][1]["train"] = {"batch_size": 4}
    planning.plan(recipes.load(given), device="cpu", trial=False)
    assert measured == ["first", "second"]


def test_no_trial_trains_nothing(scene_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "fit", lambda *a, **k: pytest.fail("trained"))
    found = planning.plan(recipes.load(recipe(scene_data)), device="cpu", trial=False)
    assert found.stages[0].parameters > 0 and found.total == planning.Cost()


def test_references_and_starts_need_no_trained_stage(scene_data: Path) -> None:
    given = recipe(scene_data)
    given["stages"][1]["references"] = {"teacher": "first"}
    assert len(planning.plan(recipes.load(given), device="cpu").stages) == 2


def test_what_depends_on_devices(scene_data: Path) -> None:
    given = recipe(scene_data, "self_training")
    assert len(planning.plan(recipes.load(given), device="cpu", trial=False).depends_on_devices) == 2
    given["model"]["norm"] = "frozen"
    assert planning.plan(recipes.load(given), device="cpu", trial=False).depends_on_devices == []
    parts = {"feature_distance": {"mean_over": "batch"}, "masked_consistency": None}
    given["stages"][1]["method"] = {"name": "self_training", "paste": "batch", "parts": parts}
    (line,) = planning.plan(recipes.load(given), device="cpu", trial=False).depends_on_devices
    assert "paste, mean_over 'batch'" in line and "'second'" in line


def test_a_fault_is_told_as_the_run_would(scene_data: Path) -> None:
    given = recipe(scene_data)
    given["data"]["city"]["root"] = "/nowhere"
    with pytest.raises(UserError, match="/nowhere"):
        planning.plan(recipes.load(given), device="cpu")


def test_full_disk_and_empty_labels_are_foreseen(scene_data: Path, tmp_path: Path) -> None:
    found = planning.plan(recipes.load(recipe(scene_data)), device="cpu", trial=False)
    assert planning.faults(found) == []
    full = planning.replace(found, disk_gb=2.0, free_gb=1.0)
    assert ["2.0 GB" in f and "1.0 GB are free" in f for f in planning.faults(full)] == [True]
    empty = planning.replace(found.data[0], shares=dict.fromkeys(found.data[0].shares, 0.0))
    assert "game:train: no labelled pixel" in planning.faults(planning.replace(found, data=[empty]))[0]


def test_counted_statistics_are_used(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    given = recipes.load(recipe(scene_data))
    sampled = planning.plan(given, device="cpu", trial=False).data
    game = open_dataset("game", given.data["game"], "train")
    class_pixels(game, given.data["game"], say=lambda text: None)
    monkeypatch.setattr(type(game), "read_label", lambda *a: pytest.fail("a label was read"))
    monkeypatch.setattr(planning, "class_shares", lambda dataset: ([0.0] * 19, 0.0, 1))
    counted, others = planning.plan(given, device="cpu", trial=False).data
    assert counted.shares == pytest.approx(sampled[0].shares) and counted.counted == 6
    assert others.counted == 1, "the other data set was not counted before"


def test_command(scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(yaml.safe_dump(recipe(scene_data)))
    threads = torch.get_num_threads()
    done = segue("plan", "r.yaml", "--device", "cpu", "--json", "plan.json", "--seeds", "3", "threads=1")
    assert done.code == 0, done
    assert "stage second: supervised, 6 iterations" in done.out and "in all for 3 seeds" in done.out
    stored = read_json(Path("plan.json"))
    assert stored["seeds"] == 3 and stored["total"]["cpu_s"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "r.yaml"], "no run folder"
    assert segue("plan", "r.yaml", "--no-trial", "--device", "cpu").code == 0
    refused = segue("plan", "r.yaml", "train.iterations=0")
    assert refused.code == 2 and "train.iterations" in refused.err
    torch.set_num_threads(threads)
