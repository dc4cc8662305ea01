"""``segue evaluate`` on models: several, checkpoints, classes, protocols, windows, temperature; and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue as package
from helpers.command import Outcome, refused, segue
from helpers.stored import stage
from segue.files import read_json


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stages")
    stage(root / "one", 2, 4, 6, seed=1, best=4)
    stage(root / "two", 3, seed=2)
    stage(root / "seven", 1, space="street7")
    return root


@pytest.fixture
def evaluate(stages: Path, scene_data: Path, tmp_path: Path) -> Any:
    def call(*arguments: object, model: str = "one") -> tuple[Outcome, dict[str, Any]]:
        target = tmp_path / "scores.json"
        target.unlink(missing_ok=True)
        data = ["--data", "cityscapes:val", "--root", scene_data / "city", "--device", "cpu", "--json", target]
        done = segue("evaluate", "--model", stages / model, *arguments, *data)
        return done, read_json(target) if target.is_file() else {}

    return call


def test_several_models_are_averaged_and_scored_alone(evaluate: Any, stages: Path) -> None:
    done, scores = evaluate(stages / "two", "--boundary", "--calibration")
    assert done.out.splitlines()[0] == "mean probability of 2 models"
    first, second = (line for line in done.out.splitlines() if "alone: " in line)
    assert "stage one, iteration 6, checkpoint last" in first and "stage two, iteration 3" in second
    run = scores["members"][0]["model"]["run"]
    assert run in first and "boundary IoU" in done.out
    for member, name in zip(scores["members"], ("one", "two"), strict=True):
        _, alone = evaluate(model=name)
        assert member["model"] == alone["model"] and member["confusion"] == alone["confusion"]
    repeated, again = evaluate("--model", stages / "two")
    assert repeated.code == 0 and again["confusion"] == scores["confusion"]
    assert {"ece", "ece_by_class", "nll", "pixels", "bins", "temperature"} == set(scores["calibration"])
    assert scores["protocol"] == "native" and scores["rule"]["name"] == "native"


def test_checkpoints(evaluate: Any, stages: Path) -> None:
    for which, iteration, chosen in (
        ("last", 6, "last"),
        ("best", 4, "oracle (best on city:val, by its labels)"),
        ("2", 2, "iteration 2"),
    ):
        _, scores = evaluate("--checkpoint", which)
        assert (scores["model"]["iteration"], scores["model"]["chosen"]) == (iteration, chosen)
        assert package.load(stages / "one", "cpu", which).info["iteration"] == iteration
    refused(evaluate("--checkpoint", "5")[0], "no checkpoint '5'", "last, best, 2, 4, 6")
    refused(evaluate("--checkpoint", "best", model="two")[0], "no best checkpoint", "train.best")
    refused(evaluate("--checkpoint", "2", model="one/checkpoints/iteration_00000006")[0], "is one model")


def test_restricted_classes_are_no_view(evaluate: Any) -> None:
    names = "road,car,sky"
    _, free = evaluate("--view", "13")
    _, chosen = evaluate("--classes", names)
    _, task = evaluate("--classes", names, "--protocol", "cil", "--size", "64x96")
    _, view = evaluate("--classes", "13", "--view", "13")
    rows = np.array(free["confusion"])
    kept = np.flatnonzero(np.array(chosen["confusion"]).sum(0))
    assert set(kept) <= {0, 10, 13} and np.array(chosen["confusion"]).sum() == rows.sum()
    assert chosen["view"] == "classes" and list(chosen["iou"]) == ["road", "sky", "car"]
    assert task["view"] == "classes-lenient" and task["protocol"] == "cil+size=64x96"
    assert (np.array(view["confusion"])[:, [3, 4, 5, 9, 14, 16]] == 0).all()
    refused(evaluate("--classes", "road,caar")[0], "no class 'caar'", "did you mean 'car'")


def test_protocols_and_their_variants_are_named(evaluate: Any) -> None:
    options = ["--flip", "--scales", "0.5,1", "--slide", "48x64"]
    done, scores = evaluate(*options)
    assert scores["protocol"] == "native+scales=0.5,1+flip+slide=48x64/24x32" == scores["views"]["all"]["protocol"]
    assert f"protocol {scores['protocol']}, view all" in done.out
    assert scores["rule"]["window"] == {"size": [48, 64], "stride": [24, 32], "average": "logits"}
    _, small = evaluate("--protocol", "mmseg", "--size", "32x48")
    assert small["protocol"] == "mmseg+size=32x48"
    _, native = evaluate("--size", "32x48")
    assert native["protocol"] == "native"
    assert small["confusion"] != native["confusion"], "area averages and a detour over the input's size"


def test_temperature_of_labelled_data(evaluate: Any, scene_data: Path) -> None:
    source = ["--temperature-data", "gta5:train", "--temperature-root", scene_data / "game"]
    done, scores = evaluate(*source)
    found = scores["calibration"]
    assert found["fit"]["nll_after"] <= found["fit"]["nll_before"]
    assert found["after"]["temperature"] == found["fit"]["temperature"]
    assert found["fit"]["pixels"] > 10_000
    assert "at temperature" in done.out
    assert json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "mmsge"], ["'mmsge'", "did you mean 'mmseg'"]),
        (["--scales", "1,x"], ["'1,x'", "0.5,1,1.5"]),
        (["--scales", "0"], ["between 0 and 8"]),
        (["--stride", "8x8"], ["slide"]),
        (["--slide", "8x8", "--stride", "9x8"], ["gaps"]),
        (["--slide", "16x16"], ["16x16", "at least 32"]),
        (["--view", "16-strict"], ["'16-strict'", "known: all"]),
        (["--temperature-data", "gta6"], ["'gta6'"]),
        (["--temperature-data", "gta5", "--temperature-root", "/nowhere"], ["/nowhere"]),
    ],
)
def test_what_cannot_be(evaluate: Any, arguments: list[str], words: list[str]) -> None:
    refused(evaluate(*arguments)[0], *words)


def test_models_that_do_not_fit(evaluate: Any, stages: Path, scene_data: Path) -> None:
    refused(evaluate(stages / "seven")[0], "cannot be averaged", "cityscapes19", "street7")
    refused(segue("evaluate", "--data", "cityscapes:val", "--root", scene_data / "city"), "say what to score")
    refused(segue("evaluate", "--model", stages / "one", "--device", "cpu"), "say which data")
