"""Trackers: what they are given, what a missing one says, and that a failing one never stops a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from helpers.command import refused, segue, write_recipe
from helpers.recipes import recipe
from segue import recipes
from segue.jobs import sinks
from segue.jobs.run import run

WANDB = """
    import json, os
    from pathlib import Path
    LOG = Path(os.environ["FAKE_LOG"])
    def note(**row):
        with LOG.open("a") as file:
            file.write(json.dumps(row) + "\\n")
    class Run:
        def log(self, numbers, step):
            note(call="log", step=step, numbers=numbers)
            if os.environ.get("FAKE_FAILS") == "log":
                raise ConnectionError("no route to host")
        def finish(self):
            note(call="finish")
    def init(**settings):
        note(call="init", **settings)
        if os.environ.get("FAKE_FAILS") == "init":
            raise RuntimeError("not logged in")
        return Run()
"""
MLFLOW = """
    import json, os
    from pathlib import Path
    from types import SimpleNamespace
    LOG = Path(os.environ["FAKE_LOG"])
    def note(**row):
        with LOG.open("a") as file:
            file.write(json.dumps(row) + "\\n")
    class MlflowClient:
        def __init__(self, tracking_uri):
            note(call="client", uri=tracking_uri)
        def get_experiment_by_name(self, name):
            return None
        def create_experiment(self, name):
            return f"experiment of {name}"
        def create_run(self, experiment, run_name):
            note(call="create_run", experiment=experiment, name=run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id="run-7"))
        def get_run(self, run):
            note(call="get_run", run=run)
        def log_metric(self, run, key, value, step):
            note(call="log", run=run, key=key, value=value, step=step)
        def set_terminated(self, run):
            note(call="end", run=run)
"""


@pytest.fixture()
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages ``wandb`` and ``mlflow`` that write down how they are called; the file they write to."""
    for name, code in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (tmp_path / "fakes" / name).mkdir(parents=True)
        (tmp_path / "fakes" / name / "__init__.py").write_text(dedent(code))
        monkeypatch.delitem(sys.modules, name, raising=False)
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "FAKE_FAILS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    return tmp_path / "calls"


def calls(log: Path) -> list[dict[str, Any]]:
    """What the fakes wrote down."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def one_stage(data: Path, *loggers: str) -> dict[str, Any]:
    """A miniature recipe of two iterations."""
    given = recipe(data) | {"loggers": list(loggers)}
    given["stages"] = given["stages"][:1]
    given["train"] |= {"evaluate_every": None}
    return given


def test_a_training_is_tracked_offline(scene_data: Path, tmp_path: Path, fakes: Path) -> None:
    run(recipes.load(one_stage(scene_data, "wandb", "mlflow")), tmp_path / "run", device="cpu")
    found = calls(fakes)
    opened = next(c for c in found if c["call"] == "init")
    assert opened["mode"] == "offline" and opened["name"] == "mini/0_first" and opened["resume"] == "allow"
    assert next(c for c in found if c["call"] == "client")["uri"] == f"sqlite:///{tmp_path}/run/mlflow.db"
    rows = [json.loads(x) for x in (tmp_path / "run/stages/0_first/metrics.jsonl").read_text().splitlines()]
    sent = [c for c in found if c["call"] == "log" and "numbers" in c]
    assert [(c["step"], c["numbers"]["loss/source"]) for c in sent] == [
        (r["iteration"], r["loss/source"]) for r in rows
    ]
    singles = {(c["key"], c["step"]): c["value"] for c in found if c["call"] == "log" and "key" in c}
    assert singles["loss/source", rows[-1]["iteration"]] == rows[-1]["loss/source"]
    assert [c["call"] for c in found if c["call"] in ("finish", "end")] == ["finish", "end"]


def test_the_environment_chooses_where_it_goes(fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    with sinks.opened(("wandb", "mlflow"), tmp_path, tmp_path / "0_a", "name") as (_, to_mlflow):
        to_mlflow({"iteration": 3, "miou/city:val": 0.5, "log/pseudo_histogram": [0.1, 0.9]})
    found = calls(fakes)
    assert found[0]["mode"] == "online"
    assert next(c for c in found if c["call"] == "client")["uri"] == "http://tracker:5000"
    logged = [c for c in found if c["call"] == "log"]
    assert [(c["key"], c["step"]) for c in logged] == [("miou/city_val", 3)], "MLflow allows no colon; lists stay here"


def test_a_resumed_stage_goes_on_in_its_run(fakes: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with sinks.opened(("wandb", "mlflow"), tmp_path, tmp_path / "0_a", "name"):
            pass
    found = calls(fakes)
    assert len({c["id"] for c in found if c["call"] == "init"}) == 1
    assert [c["call"] for c in found if c["call"] in ("create_run", "get_run")] == ["create_run", "get_run"]
    with sinks.opened(("wandb",), tmp_path, tmp_path / "1_b", "name"):
        pass
    assert len({c["id"] for c in calls(fakes) if c["call"] == "init"}) == 2, "another stage is another run"


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_failing_tracker_is_told_once(
    where: str, fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAILS", where)
    with sinks.opened(("wandb", "mlflow"), tmp_path, tmp_path / "0_a", "name") as found:
        for iteration in range(3):
            for sink in found:
                sink({"iteration": iteration, "loss/source": 1.0})
    told = capsys.readouterr().err
    assert told.count("wandb failed") == 1
    assert ("no route to host" if where == "log" else "not logged in") in told
    assert len([c for c in calls(fakes) if c["call"] == "log" and "key" in c]) == 3, "the other tracker goes on"


def test_an_exception_of_the_training_closes_the_trackers(fakes: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sinks.opened(("wandb",), tmp_path, tmp_path / "0_a", "name"):
        raise ZeroDivisionError
    assert calls(fakes)[-1]["call"] == "finish"


def test_a_missing_package_is_told_before_training(
    scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # a folder that W&B leaves in the working folder is not the package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    file = write_recipe(tmp_path / "r.yaml", one_stage(scene_data, "wandb"))
    refused(segue("run", file, "--out", tmp_path / "run", "--device", "cpu"), "wandb", "pip install 'segue[wandb]'")
    assert not (tmp_path / "run").exists()
