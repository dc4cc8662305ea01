"""Many sets of classes scored in one pass: the numbers of separate passes, bit for bit, under every protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.command import refused, segue
from helpers.stored import stage
from helpers.toys import SPACE, Pictures, Toy
from segue import api
from segue.errors import UserError
from segue.files import read_json
from segue.models.build import build_model
from segue.scoring import score
from segue.scoring.inference import ask
from segue.scoring.protocols import NATIVE, PROTOCOLS, Protocol, Window
from segue.scoring.score import Measure
from segue.tasks import load_task

TASKS = {"1": ("a", "b"), "2": ("c",), "1+2": ("c", "a", "b"), "far": ("e", "b"), "all": SPACE.classes}
RULES = [
    NATIVE,
    NATIVE.varied(flip=True, scales=(0.5, 1.0)),
    NATIVE.varied(window=Window((64, 96), (40, 60))),
    NATIVE.varied(window=Window((64, 96), (40, 60), "probabilities"), flip=True),
    replace(PROTOCOLS["cil"], size=(64, 96)),
    replace(PROTOCOLS["d2ada"], size=(64, 96), label_size=(128, 192)),
    PROTOCOLS["stdc75"],
]


def data() -> Pictures:
    return Pictures((90, 140), (90, 140), (75, 133))


def alone(models: list[Toy], names: tuple[str, ...], rule: Protocol) -> list[score.Result]:
    """A pass of its own."""
    labels = replace(SPACE, views={"task": tuple(sorted(names))})
    measure = Measure(("task-lenient",), rule, classes=names)
    return score.measure_models(models, data(), labels, measure, batch_size=2)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_one_pass_equals_separate_passes(rule: Protocol, number: int) -> None:
    models = [Toy(seed, multiple=32, align_corners=bool(seed)).eval() for seed in range(number)]
    found = score.measure_models(models, data(), SPACE, Measure(protocol=rule, tasks=TASKS), batch_size=2)
    plain = score.measure_models(models, data(), SPACE, Measure(protocol=rule), batch_size=2)
    for name, names in TASKS.items():
        for together, own in zip(found, alone(models, names, rule), strict=True):
            told, expected = together.to_dict()["tasks"][name], own.to_dict()
            assert set(told) == {"miou", "accuracy", "mean_accuracy", "iou"}
            assert {k: v for k, v in told.items() if k != "iou"} == {k: expected[k] for k in told if k != "iou"}
            assert told["iou"] == {c: expected["iou"][c] for c in told["iou"]} and set(told["iou"]) == set(names)
            rows, counts = together.tasks[name]
            assert np.array_equal(counts.counts, own.confusion.only(rows).counts)
    for with_tasks, without in zip(found, plain, strict=True):
        told = with_tasks.to_dict()
        assert told.pop("tasks") and told == without.to_dict()
    assert found[0].to_dict()["tasks"]["far"]["miou"] > found[0].scores().miou


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=4),
    twins=st.lists(st.integers(0, 7), min_size=8, max_size=8),
    seed=st.integers(0, 50),
)
def test_any_groups_and_equal_scores(groups: list[set[int]], twins: list[int], seed: int) -> None:
    """Classes that share their weights are equal everywhere: the lower id wins, in whatever group it is."""
    model = Toy(seed, stride=8, classes=8).eval()
    model.weight.data = model.weight.data[twins]
    asked = [tuple(sorted(group)) for group in groups]
    size = (130, 141)
    with torch.inference_mode():
        (answer,) = ask(model, Pictures((90, 140)).images, NATIVE, size, None, asked)
        full = answer.terms[0].tile
        everything, *restricted = answer.restricted_ids()
        scores = torch.cat([torch.cat([full(r, c) for c in range(2)], 2) for r in range(2)], 1)
        assert np.array_equal(everything, scores.argmax(0).numpy())
        for group, ids in zip(asked, restricted, strict=True):
            assert np.array_equal(ids, np.array(group)[scores[list(group)].argmax(0).numpy()])
            (own,) = ask(model, Pictures((90, 140)).images, NATIVE, size, group)
            assert np.array_equal(ids, own.ids())


class _Counting(Toy):
    passes = 0

    def decode(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        self.passes += 1
        return super().decode(x)


def test_one_forward_pass_an_image() -> None:
    model = _Counting().eval()
    score.measure_models([model], data(), SPACE, Measure(tasks=TASKS))
    assert model.passes == 3


def test_what_cannot_be_asked() -> None:
    for measure, word in (
        (Measure(tasks={"x": ("a", "f")}), "no class 'f'"),
        (Measure(tasks={"x": ()}), "'x' has no class"),
        (Measure(tasks={"x": ("a",)}, classes=("b",)), "either"),
    ):
        with pytest.raises(ValueError if "f" in word else UserError, match=word):
            score.measure_models([Toy()], data(), SPACE, measure)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("stages") / "one", 2, seed=1)


def test_command_prints_the_table_and_stores_it(trained: Path, scene_data: Path, tmp_path: Path) -> None:
    given = ["--data", "cityscapes:val", "--root", scene_data / "city", "--device", "cpu"]
    target, own = tmp_path / "tasks.json", tmp_path / "own.json"
    done = segue("evaluate", trained, trained, *given, "--tasks", "cityscapes_5_6_8", "--json", target)
    assert done.code == 0, done.err
    stored = read_json(target)
    lines = done.out.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("mIoU  Task 1"))
    assert lines[first].split("  ")[1:] == ["Task 1", "Task 2", "Task 1∪2", "Task 3", "Task 1∪2∪3"]
    shown = [float(cell) for cell in lines[first + 1].split()]
    assert shown == pytest.approx([100 * task["miou"] for task in stored["tasks"].values()], abs=0.051)
    assert "alone: " in lines[first + 2] and lines[first + 3].endswith("checkpoint last")
    assert stored["members"][0]["tasks"] == stored["members"][1]["tasks"]
    names = load_task("cityscapes_5_6_8").tasks(3)
    assert list(stored["tasks"]) == list(names) == ["1", "2", "1+2", "3", "1+2+3"]
    view = ["--view", "classes-lenient", "--classes", ",".join(names["2"])]
    assert segue("evaluate", trained, *given, *view, "--json", own).code == 0
    alone, task = read_json(own), stored["members"][0]["tasks"]["2"]
    assert alone["iou"] == task["iou"] and alone["accuracy"] == task["accuracy"]
    assert json.dumps(stored, allow_nan=False)
    refused(segue("evaluate", trained, *given, "--tasks", "cityscapes_5_6_7"), "cityscapes_5_6_8")
    refused(segue("evaluate", trained, *given, "--tasks", "cityscapes_5_6_8", "--classes", "road"), "either")
    refused(segue("evaluate", trained, *given, "--tasks", "voc_15_5"), "does not know", "aeroplane")
    refused(segue("evaluate", trained, *given, "--tasks", "cityscapes_domains_11_5"), "same classes")
    refused(segue("evaluate", "--predictions", tmp_path, *given[:4], "--tasks", "cityscapes_5_6_8"), "as they are")


def test_a_model_of_the_first_steps_is_scored_on_them(scene_data: Path) -> None:
    task = load_task("cityscapes_5_6_8")
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "width": 0.125}, 11)
    predictor = api.Predictor(model.eval(), task.space(2), {})
    scores = api.evaluate(predictor, "cityscapes:val", root=scene_data / "city", tasks=task.name)
    assert list(scores["tasks"]) == ["1", "2", "1+2"]
    assert set(scores["tasks"]["1"]["iou"]) == set(task.space(1).classes)
