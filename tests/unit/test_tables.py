"""The tables runner: cells and keys, costs and budget, failures, kills; on one tiny table of miniature recipes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.command import WAIT_S, segue, write_recipe
from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue.files import read_json, write_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import step_times  # noqa: E402
import tables  # noqa: E402


@pytest.fixture()
def table(scene_data: Path, tmp_path: Path) -> Path:
    """``first`` (2 iterations), ``second`` from it, and in a block of another name ``second`` with another setting."""
    given = recipe(scene_data, "fda", iterations=3, checkpoint_every=1, evaluate_every=None)
    file = write_recipe(tmp_path / "mini.yaml", given)
    blocks = [
        {"label": "plain", "recipe": str(file)},
        {
            "label": "wide",
            "recipe": str(file),
            "overrides": ["stages.second.method.beta=0.05", "name=other"],
            "stages": ["second"],
        },
    ]
    content = {"title": "Tiny", "blocks": blocks, "against": "first", "apart": ["road"], "overrides": ["threads=1"]}
    return write_recipe(tmp_path / "tiny.yaml", content)


@pytest.fixture()
def executed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Cells run in this process, which is faster; the names of their folders in order."""
    names: list[str] = []

    def execute(config: Path, folder: Path, device: str, *, resume: bool, log: Path) -> int:
        names.append(folder.name.rsplit("-", 1)[0])
        done = segue("run", config, "--out", folder, "--device", device, *(["--resume"] if resume else []))
        log.write_text(done.out + done.err)
        return done.code

    monkeypatch.setattr(tables, "execute", execute)
    yield names


def options(table: Path) -> list[str]:
    """Everything in the test's own folder."""
    home = table.parent
    names = ("results", "runs", "step-times")
    places = (home / "results", home / "runs", home / "times.json")
    return [str(table), "--device", "cpu", *(x for n, p in zip(names, places, strict=True) for x in (f"--{n}", str(p)))]


def cells(table: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Stored cells by label and stage."""
    stored = read_json(table.parent / "results/tiny.json")["cells"]
    return {(c["label"], c["stage"]): c for c in stored.values()}


def test_a_whole_table(table: Path, executed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(options(table)) == 0
    assert executed == ["mini-first-seed0", "mini-second-seed0", "other-second-seed0"], "the shared stage runs once"
    stored = cells(table)
    second = stored["plain", "second"]
    assert second["status"] == "finished" and second["checkpoint"] == "last" and second["iterations"] == 3
    assert second["cpu_s"] > 0 and second["training"]["device"].startswith("cpu") and second["versions"]["torch"]
    assert second["gain"]["low"] <= second["gain"]["value"] <= second["gain"]["high"]
    assert second["gain"]["value"] == pytest.approx(
        second["evaluations"]["city:val"]["miou"] - stored["plain", "first"]["evaluations"]["city:val"]["miou"]
    )
    text = (table.parent / "results/tiny.md").read_text()
    assert text in capsys.readouterr().out
    assert "## plain" in text and "## wide" in text and "mIoU without road" in text
    again = len(executed)
    assert tables.main(options(table)) == 0
    assert len(executed) == again, "a finished cell is never computed again"


def test_a_cell_is_what_the_whole_recipe_gives(table: Path, executed: list[str], tmp_path: Path) -> None:
    """Stages apart, each started from the folder of the one before, end in the same bytes as one run."""
    assert tables.main(options(table)) == 0
    whole = tmp_path / "whole"
    assert segue("run", tmp_path / "mini.yaml", "threads=1", "--out", whole, "--device", "cpu").code == 0
    wanted = fingerprint(whole)["1_second/weights"]
    assert fingerprint(Path(cells(table)["plain", "second"]["run"]))["0_second/weights"] == wanted


def test_keys(table: Path) -> None:
    def keys(**change: Any) -> dict[tuple[str, str, int], str]:
        content = yaml.safe_load(table.read_text()) | change
        return {(c.label, c.stage, c.seed): c.key for c in tables.cells_of(tables.Table.model_validate(content))}

    plain = keys()
    assert plain["plain", "first", 0] == plain["wide", "first", 0]
    assert plain["plain", "second", 0] != plain["wide", "second", 0]
    for same in ("threads=2", "train.workers=2", "train.checkpoint_every=7", "data.city.root=/elsewhere", "name=other"):
        assert keys(overrides=[same]) == plain, same
    for other in ("train.batch_size=4", "optim.lr=0.1", "data.city.limit=3"):
        assert not set(keys(overrides=[other]).values()) & set(plain.values()), other
    assert not set(keys(version=2).values()) & set(plain.values())
    more = keys(seeds=[0, 1])
    assert more["plain", "first", 0] == plain["plain", "first", 0] != more["plain", "first", 1]
    changed = keys(overrides=["stages.first.train.iterations=1"])
    assert changed["plain", "second", 0] != plain["plain", "second", 0], "it starts from other weights"


def test_a_failed_cell_blocks_only_what_needs_it(
    table: Path, executed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(table.read_text())
    content["blocks"][0]["overrides"] = ["optim.lr=1e30", "optim.name=sgd"]  # diverges
    write_recipe(table, content)
    assert tables.main(options(table)) == 1
    stored = cells(table)
    assert stored["plain", "first"]["status"] == "failed" and "diverged" in stored["plain", "first"]["message"]
    assert ("plain", "second") not in stored and stored["wide", "second"]["status"] == "finished"
    assert "waits for first" in capsys.readouterr().out
    assert "diverged" in (table.parent / "results/tiny.md").read_text()
    count = len(executed)
    assert tables.main(options(table)) == 1 and len(executed) == count, "not again by itself"
    assert tables.main([*options(table), "--retry"]) == 1 and len(executed) == count + 1


def test_the_budget(table: Path, executed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    times = step_times.StepTimes(table.parent / "times.json")
    for n, cell in enumerate(tables.cells_of(tables.read_table(str(table)))):
        second = n > 0 and cell.stage == "second"
        times.steps[step_times.step_key(cell.recipe, "cpu")] = {
            "wall_s": 1000.0 if second else 10.0,
            "cpu_s": 1.0,
            "rest_s": 5.0,
        }
    times._write()
    assert tables.main([*options(table), "--list"]) == 0
    assert "3 of 3 cells left: 1:40:35" in capsys.readouterr().out, "2 x 10 + 5, and twice 3 x 1000 + 5 seconds"
    assert tables.main([*options(table), "--budget", "2"]) == 0
    assert executed == ["mini-first-seed0"]
    out = capsys.readouterr().out
    assert "50:05 do not fit" in out and "2 of 3 cells left" in out
    assert tables.main([*options(table), "--budget", "0"]) == 0 and len(executed) == 1


def test_costs_are_learned(table: Path, executed: list[str]) -> None:
    assert tables.main(options(table)) == 0
    steps = read_json(table.parent / "times.json")["steps"]
    first = next(v for k, v in steps.items() if k.startswith("supervised | bisenet(width=0.125) | 64x64 | batch 2"))
    stage = cells(table)["plain", "first"]["training"]
    assert first["wall_s"] == pytest.approx(stage["wall_s"] / 2, abs=1e-4) and first["source"] == "cell"
    assert first["rest_s"] > 0 and first["iterations"] == 2


def test_an_unknown_cost_is_measured_without_training(table: Path, executed: list[str]) -> None:
    content = yaml.safe_load(table.read_text())
    content["blocks"] = content["blocks"][:1]
    write_recipe(table, content | {"overrides": ["stages.first.train={epochs: 2}"]})
    assert tables.main([*options(table), "--measure"]) == 0
    assert not executed and not (table.parent / "results").exists()
    stored = read_json(table.parent / "times.json")
    assert {v["source"] for v in stored["steps"].values()} == {"trial"}
    assert sorted(stored["lengths"].values()) == [6], "two epochs of six images in batches of two"
    runner = tables.Runner(
        tables.read_table(str(table)),
        table.parent / "r.json",
        table.parent,
        step_times.StepTimes(table.parent / "times.json"),
        "cpu",
    )
    assert all((runner.estimate_s(c) or 0) > 0 for c in runner.cells)


def test_the_table_as_markdown() -> None:
    """Seeds as mean and deviation, an absent class, a gain that counts and one that does not."""
    given = tables.Table(title="T", blocks=({"recipe": "r", "label": "L"},), against="a", wins_from_points=3)  # type: ignore[arg-type]

    def cell(miou: float, gain: float | None = None, low: float = 0.01) -> dict[str, Any]:
        scores = {"miou": miou, "accuracy": miou + 0.1, "iou": {"road": miou, "sky": None}}
        found = None if gain is None else {"value": gain, "low": low, "high": 2 * gain, "level": 0.9}
        return {"status": "finished", "evaluations": {"v": scores}, "gain": found, "cpu_s": 10.0, "training": None} | {
            "checkpoint": "last",
            "iterations": 5,
        }

    rows = [("L", "a", 0, cell(0.4)), ("L", "b", 0, cell(0.5, 0.1)), ("L", "b", 1, cell(0.6, 0.02))]
    text = tables.markdown(given, [*rows, ("L", "c", 0, {}), ("L", "d", 0, {"status": "failed", "message": "no disk"})])
    assert "| a | 40.0 | 50.0 |  | 40.0 | absent | 10 |" in text
    assert "| b | 55.0 ± 7.1 | 65.0 ± 7.1 | **+10.0 [1.0, 20.0]**; +2.0 [1.0, 4.0] | 55.0 ± 7.1 | absent | 20 |" in text
    assert "| c | missing |" in text and "| d | failed |" in text and "no disk" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"titel": "x"}, ["titel", "title"]),
        ({"blocks": []}, ["blocks"]),
        ({"blocks": [{"recipe": "none", "label": "x"}]}, ["none"]),
    ],
)
def test_a_wrong_table(
    change: dict[str, Any], words: list[str], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(table, yaml.safe_load(table.read_text()) | change)
    assert tables.main(options(table)) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words) and "Traceback" not in told


def test_an_unknown_table_or_stage(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["real_pear"]) == 2 and "real_pair" in capsys.readouterr().err
    content = yaml.safe_load(table.read_text())
    content["blocks"][1]["stages"] = ["secnd"]
    write_recipe(table, content)
    assert tables.main(options(table)) == 2 and "second" in capsys.readouterr().err


def test_shipped_tables_are_whole() -> None:
    for file in (BENCHMARKS / "tables").glob("*.yaml"):
        found = tables.cells_of(tables.read_table(file.stem))
        assert found and all(set(c.needs.values()) <= {x.key for x in found} for c in found)
    json.loads(step_times.FILE.read_text())


@pytest.mark.slow
def test_killed_in_a_cell(table: Path) -> None:
    """kill -9 of the runner and of its training: the next call resumes that run and ends with the same bytes."""
    content = yaml.safe_load(table.read_text())
    content["blocks"] = [
        {**content["blocks"][0], "stages": ["first"], "overrides": ["stages.first.train.iterations=8"]}
    ]
    write_recipe(table, content)
    command = [sys.executable, str(BENCHMARKS / "tables.py"), *options(table)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + WAIT_S
    while not list((table.parent / "runs").glob("*/stages/0_first/checkpoints/iteration_0000000[2-6]")):
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (table.parent / "results").exists()
    (folder,) = (p for p in (table.parent / "runs").iterdir() if p.is_dir())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0 and "goes on" in done.stdout, done
    cell = cells(table)["plain", "first"]
    assert cell["iterations"] == 8 > cell["training"]["iterations"], "time is told of this process's iterations alone"
    whole = table.parent / "whole"
    assert segue("run", folder.with_suffix(".yaml"), "--out", whole, "--device", "cpu").code == 0
    assert fingerprint(folder) == fingerprint(whole)


def test_a_signal_stops_cleanly(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "execute", lambda *_, **__: tables.STOPPED)
    assert tables.main(options(table)) == 75
    assert "goes on" in capsys.readouterr().err and not (table.parent / "results").exists(), "stopped is not failed"


def test_a_cell_that_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first  3/8\n")
    assert tables.message(log, -9) == "killed by SIGKILL; first  3/8"
    log.write_text("noise\nsegue: no space\n(--debug shows where)\n")
    assert tables.message(log, 2) == "no space"


def test_a_signal_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of python: a program that notes its arguments, sends us SIGTERM, and ends with 75 when it gets one."""
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/bin/sh\ntrap "exit 75" TERM\necho "$@"\nkill -TERM {os.getpid()}\nwhile :; do sleep 0.05; done\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    before = signal.getsignal(signal.SIGTERM)
    code = tables.execute(tmp_path / "c.yaml", tmp_path / "run", "cpu", resume=True, log=tmp_path / "log")
    assert code == 75 and signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "log").read_text().split()[:3] == ["-m", "segue", "run"]
    assert "--resume" in (tmp_path / "log").read_text()


def test_weights_that_are_elsewhere_are_trained_again(table: Path, executed: list[str]) -> None:
    assert tables.main(options(table)) == 0
    results = table.parent / "results/tiny.json"
    stored = read_json(results)
    whole = stored["cells"]
    base = next(key for key, cell in whole.items() if cell["stage"] == "first")
    later = next(key for key, cell in whole.items() if cell["stage"] == "second")
    weights = fingerprint(Path(whole[later]["run"]))["0_second/weights"]
    write_json(results, stored | {"cells": {key: cell for key, cell in whole.items() if key != later}})
    shutil.rmtree(table.parent / "runs")
    executed.clear()
    assert tables.main(options(table)) == 0
    assert len(executed) == 2 and "first" in executed[0] and "second" in executed[1]
    again = read_json(results)["cells"]
    assert again[base] == whole[base], "its numbers stay"
    assert fingerprint(Path(again[later]["run"]))["0_second/weights"] == weights and again[later]["gain"]
