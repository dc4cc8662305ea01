"""``segue annotate export`` and ``import`` on a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.command import segue
from helpers.labelling_jobs import cvat, label_studio, make_round, truth
from helpers.recipes import recipe
from segue.labelling.job import names
from segue.labels import load_space

SPACE = load_space("cityscapes19")


def annotate(*arguments: object) -> str:
    """What ``segue annotate`` prints."""
    found = segue("annotate", *arguments)
    assert found.code == 0, found.err
    return found.out


def refused(*arguments: object) -> str:
    """The one message of a ``segue annotate`` that is the user's fault."""
    found = segue("annotate", *arguments)
    assert found.code == 2 and "Traceback" not in found.err, found.err
    return found.err


@pytest.fixture
def run(tmp_path: Path, scene_data: Path) -> Path:
    """A run that waits for labels of two scenes of 64x96 pixels."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe(scene_data) | {"name": "mini"}))
    from segue.config import DatasetConfig
    from segue.data.dataset import open_dataset

    city = open_dataset("city", DatasetConfig(dataset="cityscapes", root=scene_data / "city"), "train", SPACE)
    make_round(folder / "annotate" / "buy", ids=city.ids[:2], data="city:train", labels=SPACE.to_dict(), scale=(64, 96))
    return folder


def test_the_way_of_a_job(run: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    out = annotate("export", run, "--out", job, "--format", "label-studio")
    assert "6 regions of 2 images of round 1 of buy" in out and "segue annotate import" in out
    ids = [task["data"]["image_id"] for task in json.loads((job / "tasks.json").read_text())]
    labels = {i: np.kron(truth(n), np.ones((3, 3), np.uint8))[:64, :96] for n, i in enumerate(ids)}
    back = tmp_path / "back.json"
    back.write_text(json.dumps(label_studio(job, {ids[0]: labels[ids[0]]}, names(SPACE))))
    out = annotate("import", run, back)
    assert "3 of 6 regions answered" in out and "1 of 2 tasks have no annotation yet" in out and "--close" in out

    annotate("export", run, "--out", tmp_path / "rest", "--format", "cvat", "--round", 1, "--group", "buy")
    cvat(tmp_path / "rest", tmp_path / "rest.zip", {ids[1]: labels[ids[1]]})
    out = annotate("import", run, tmp_path / "rest.zip", back)
    assert "6 of 6 regions answered" in out and "--resume" in out
    assert "nothing to label" in refused("export", run, "--out", tmp_path / "none", "--format", "png")
    annotate("export", run, "--out", tmp_path / "all", "--format", "png", "--all")


def test_a_round_can_be_closed(run: Path) -> None:
    out = annotate("import", run, "--close")
    assert "0 of 6 regions answered" in out and "the round is closed" in out
    assert json.loads((run / "annotate" / "buy" / "round_1" / "round.json").read_text())["closed"] is True


def test_what_is_not_there_is_told(run: Path, tmp_path: Path, scene_data: Path) -> None:
    options = ("--out", tmp_path / "x", "--format", "png")
    for arguments, message in {
        (tmp_path,): "not the folder of a run that has chosen regions",
        (run, "--group", "by"): "no group 'by' (did you mean 'buy'",
        (run, "--round", 3): "no round 3, it has 1",
    }.items():
        assert message in refused("export", *arguments, *options)
    assert "--close" in refused("import", run)
    assert "absent.zip" in refused("import", run, tmp_path / "absent.zip")
    make_round(run / "annotate" / "more", annotator="truth")
    assert "several groups, buy, more: choose one with --group" in refused("export", run, *options)
    assert "labels answer the rounds of 'more'" in refused("import", run, "--group", "more", "--close")
    assert "no data set 'photos'" in refused("export", run, "--group", "more", *options)
