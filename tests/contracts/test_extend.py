"""The extend job: chains of class steps under every incremental method, grown heads, what is taught, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import checkpoint, engine, recipes
from segue.errors import UserError
from segue.hardware import launch
from segue.jobs import stages
from segue.jobs.build import build_start, build_streams
from segue.jobs.checks import prepare
from segue.jobs.run import run
from segue.labels import IGNORE
from segue.methods.base import METHODS

TASK = {
    "name": "mini",
    "labels": "cityscapes19",
    "protocol": "partitioned",
    "classes": [
        ["road", "sidewalk", "vegetation", "terrain", "sky"],
        ["building", "wall", "fence", "pole", "traffic_light", "traffic_sign"],
        ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"],
    ],
    "images": [{"part": [k, 3]} for k in range(3)],
}
CLASSES = (5, 11, 19)
METHOD = "segue.methods.incremental."
CHAINED = [name for name in METHODS.names() if METHODS.get(name).__module__.startswith(METHOD)]


FROM_THE_START = ("ewc", "ssul")
"""Methods that leave something at every step, the first one included."""


def given(data: Path, method: str = "supervised") -> dict[str, Any]:
    """Three steps; the second and third by ``method`` with a teacher."""
    out = recipe(data, iterations=2) | {"task": TASK}
    streams = dict.fromkeys(METHODS.get(method).needs, "game:train")
    base = method if method in FROM_THE_START else "supervised"
    chain = [{"name": "one", "step": 1, "method": base, "data": {"source": "game:train"}}]
    if method == "closed_form":  # sums of the features that the first step has learnt
        chain[0]["name"] = "trunk"
        chain.append({"name": "one", "step": 1, "method": method, "data": streams, "start": "trunk"})
    for step, (name, before) in enumerate((("two", "one"), ("three", "two")), 2):
        stage = {"name": name, "step": step, "start": before, "method": method, "data": streams}
        chain.append(stage | ({} if method == "supervised" else {"references": {"teacher": before}}))
    return out | {"stages": chain}


@pytest.mark.parametrize("method", ["supervised", *CHAINED])
def test_a_chain_of_three_steps(method: str, scene_data: Path, tmp_path: Path) -> None:
    found = run(recipes.load(given(scene_data, method)), tmp_path, device="cpu").stages[0]
    for name, classes, step in zip(("one", "two", "three"), CLASSES, (1, 2, 3), strict=True):
        (folder,) = tmp_path.glob(f"stages/*_{name}")
        model, labels, _ = checkpoint.load_model(folder)
        assert model.num_classes == len(labels) == classes
        told = found[name]["extend"]
        assert told["step"] == step and len(told["taught"]) == classes - (0, *CLASSES)[step - 1]
        tasks = found[name]["evaluations"]["city:val"]["tasks"]
        assert set(tasks) == {"1", "2", "1+2", "3", "1+2+3"} if step == 3 else len(tasks) in (1, 3)
    assert found["three"]["extend"]["old_data"] == METHODS.get(method).old_data


def test_streams_hold_the_images_and_classes_of_their_step(scene_data: Path, tmp_path: Path) -> None:
    job = prepare(recipes.load(given(scene_data)), tmp_path, launch("cpu"))
    seen: set[str] = set()
    for stage, low, high in zip(job.recipe.stages, (0, 5, 11), CLASSES, strict=True):
        (dataset,) = build_streams(job, stage)["source"].datasets
        assert len(dataset) == 2 and not seen & set(dataset.ids)
        seen |= set(dataset.ids)
        values = {int(v) for index in range(2) for v in np.unique(dataset.read_label(index))}
        assert values - {IGNORE} <= set(range(low, high))


def test_a_grown_head_keeps_old_logits_or_mass(scene_data: Path, tmp_path: Path) -> None:
    run(recipes.load(given(scene_data)), tmp_path, device="cpu")
    job = prepare(recipes.load(given(scene_data)), tmp_path, launch("cpu"))
    old = checkpoint.load_model(tmp_path / "stages/0_one")[0].eval()
    new = build_start(job, job.recipe.stages[1]).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(new(image).logits[:, :5], old(image).logits)


class Kill(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("point", ["inside a stage", "between two stages"])
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=pytest.mark.slow if m == "plop" else ())  # a chain as any other, of more terms
        for m in ("cil", "ewc", "ssul", "closed_form", "plop")
        if m in CHAINED
    ],
)
def test_a_killed_chain_resumes_to_the_same_bytes(
    method: str, point: str, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_of = recipes.load(given(scene_data, method))
    run(recipe_of, tmp_path / "whole", device="cpu")
    owner, name = (engine._Loop, "_iterate") if point == "inside a stage" else (stages, "_run_stage")
    calls: list[int] = []
    real = getattr(owner, name)

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) in (4, 3 if owner is stages else 4):
            raise Kill
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Kill):
            run(recipe_of, tmp_path / "killed", device="cpu")
    run(recipe_of, tmp_path / "killed", resume=True, device="cpu")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "step": ({"step": 4}, "no step 4"),
    "order": ({"step": 1, "start": "two"}, "more classes"),
    "teacher": ({"method": "cil", "references": {}}, "teacher"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_before_anything_runs(fault: str, scene_data: Path, tmp_path: Path) -> None:
    block, told = FAULTS[fault]
    out = given(scene_data)
    out["stages"][2] |= block
    with pytest.raises(UserError, match=told):
        run(recipes.load(out), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_step_needs_a_task_of_the_same_classes(scene_data: Path) -> None:
    out = given(scene_data)
    with pytest.raises(UserError, match="needs a task"):
        recipes.load({k: v for k, v in out.items() if k != "task"})
    with pytest.raises(UserError, match="cityscapes19"):
        recipes.load(out | {"labels": "street7"})
