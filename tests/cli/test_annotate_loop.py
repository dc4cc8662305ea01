"""The whole human loop by its commands: chosen, exported, labelled with mistakes and gaps, imported, trained, again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers.command import Outcome, segue
from helpers.labelling_jobs import cvat, label_studio
from helpers.recipes import recipe
from segue.acquire.state import VOID, Round, rounds_of
from segue.config import DatasetConfig
from segue.data.dataset import open_dataset
from segue.data.label_folder import LabelFolder
from segue.labelling.job import names
from segue.labels import IGNORE, U8


@pytest.fixture
def given(scene_data: Path, tmp_path: Path) -> Path:
    """A recipe whose labels people give, two rounds."""
    out = recipe(scene_data)
    block = {"data": "city:train", "acquisition": "random", "share": 0.2, "annotator": "people"}
    out["stages"][1] = {
        "name": "active",
        "role": "adapted",
        "method": "supervised",
        "data": {"source": ["game:train", "city:train"]},
        "start": "first",
        "rounds": 2,
        "train": {"iterations": 4},
        "annotate": block | {"superpixels": {"number": 12}},
    }
    path = tmp_path / "people.yaml"
    path.write_text(yaml.safe_dump(out))
    return path


def truth(data: Path, chosen: Round) -> dict[str, U8]:
    """What somebody who makes no mistake paints: the truth, and void where it has no class."""
    dataset = open_dataset("cityscapes", DatasetConfig(root=data / "city"), "train", chosen.labels)
    found = {}
    for image in chosen.by_image:
        label = dataset.read_sample(dataset.ids.index(image), True).label
        assert label is not None
        found[image] = np.where(label == IGNORE, VOID, label).astype(np.uint8)
    return found


def other_image(tasks: list[dict[str, Any]]) -> None:
    tasks[0]["data"]["image_id"] = "aachen/nobody_asked"


def other_class(tasks: list[dict[str, Any]]) -> None:
    tasks[0]["annotations"][0]["result"][0]["value"]["brushlabels"] = ["raod"]


def other_size(tasks: list[dict[str, Any]]) -> None:
    for brush in tasks[0]["annotations"][0]["result"]:
        brush["original_width"] += 8


def second_opinion(tasks: list[dict[str, Any]]) -> None:
    one = tasks[0]["annotations"][0]
    other = json.loads(json.dumps(one)) | {"completed_by": 2}
    for brush in other["result"]:
        brush["value"]["brushlabels"] = ["train"]
    tasks[0]["annotations"].append(other)


MISTAKES: dict[Callable[[list[dict[str, Any]]], None], str] = {
    other_image: "nobody_asked",
    other_class: "raod",
    other_size: "x64",
    second_opinion: "differ",
}


def test_the_human_loop(given: Path, scene_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def goes_on(code: int) -> Outcome:
        done = segue("run", given, "--out", run, "--device", "cpu", "--resume")
        assert done.code == code, done.err
        return done

    def imported(path: Path, *options: str, code: int = 0) -> Outcome:
        done = segue("annotate", "import", run, path, *options)
        assert done.code == code and "Traceback" not in done.err, done.err
        return done

    assert "waits for labels" in goes_on(75).err
    first = Round(run / "annotate/active/round_1")
    labels = truth(scene_data, first)
    *done_images, unfinished = labels

    # a job for Label Studio; every mistake is caught, and nothing of such a file is taken
    assert segue("annotate", "export", run, "--out", tmp_path / "studio", "--format", "label-studio").code == 0
    answered = {image: labels[image] for image in done_images}
    for mistake, told in MISTAKES.items():
        tasks = label_studio(tmp_path / "studio", answered, names(first.labels))
        mistake(tasks)
        (wrong := tmp_path / "wrong.json").write_text(json.dumps(tasks))
        assert told in imported(wrong, code=2).err
    assert not first.answers().ids

    # one region is painted as a train, which is no fault of form; the last image is not done
    image = done_images[0]
    careless = {**answered, image: np.where(first.asked(image) == 1, first.labels.index("train"), labels[image])}
    tasks = label_studio(tmp_path / "studio", careless, names(first.labels))
    (back := tmp_path / "back.json").write_text(json.dumps(tasks))
    said = imported(back).out
    assert unfinished in said and "pixels outside" in said
    assert {row.image for row in first.missing()} == {unfinished}
    assert "waits for labels" in goes_on(75).err

    # the careless answer is marked on the review page, and asked again together with the rest, in another tool
    assert segue("annotate", "review", run, "--out", tmp_path / "review.html").code == 0
    mark = {"round": 1, "image": image, "part": 1, "note": "no train"}
    marks = {"format": "segue-marks-1", "group": "active", "marks": [mark]}
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    assert "open again" in imported(tmp_path / "marks.json").out
    assert {row.image for row in first.missing()} == {image, unfinished}
    assert segue("annotate", "export", run, "--out", tmp_path / "cvat", "--format", "cvat").code == 0
    cvat(tmp_path / "cvat", tmp_path / "masks.zip", labels)
    imported(tmp_path / "masks.zip", "--accept-untouched")
    assert not first.missing()

    # the next round is chosen by the model that has learnt from them
    assert "round 2" in goes_on(75).err
    learnt = LabelFolder(first.folder / "labels", first.labels, "train")
    for image, label in labels.items():
        wanted = np.where((first.asked(image) > 0) & (label != VOID), label, IGNORE)
        np.testing.assert_array_equal(learnt.read(image) if image in learnt.ids else IGNORE, wanted)
    assert segue("annotate", "import", run, "--close").code == 0
    goes_on(0)
    assert [len(r.missing()) > 0 for r in rounds_of(run / "annotate/active")] == [False, True]
    assert segue("annotate", "analyse", run, "--truth").code == 0
