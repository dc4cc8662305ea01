"""``segue predict`` on stored networks and generated scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers.command import refused, segue
from helpers.stored import stage


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("stages")
    return [stage(root / name, 1, seed=seed) for seed, name in enumerate(("source", "adapted"))]


def test_a_submission_is_checked_and_scores_as_evaluate(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    """Two models, mirrored, chosen classes: written, checked and scored from the files as directly."""
    city, out = scene_data / "city", tmp_path / "out"
    asked = ("--model", stages[0], stages[1], "--flip", "--classes", "road,sky,car,vegetation", "--device", "cpu")
    images = city / "leftImg8bit/val"
    done = segue("predict", *asked, "--input", images, "--out", out, "--format", "cityscapes")
    assert done.code == 0 and done.out.strip() == f"6 predictions in {out}", done
    names = {p.name for p in out.rglob("*.png")}
    assert names == {p.name.replace("_leftImg8bit", "") for p in images.rglob("*.png")}
    data = ("--data", "cityscapes:val", "--root", city)
    for expected in (("--input", images), data):
        done = segue("predict", "--check", out, *expected)
        assert done.code == 0 and len(done.out.splitlines()) == 1 and "6 predictions" in done.out, done
    for command, file in (((*asked,), "direct"), (("--predictions", out, "--encoding", "labelid"), "stored")):
        assert segue("evaluate", *command, *data, "--json", tmp_path / f"{file}.json").code == 0
    direct, stored = (json.loads((tmp_path / f"{f}.json").read_text())["confusion"] for f in ("direct", "stored"))
    assert direct == stored and sum(sum(column) > 0 for column in zip(*direct, strict=True)) >= 2
    next(out.rglob("*.png")).unlink()
    refused(segue("predict", "--check", out, *data), "no prediction for")


def test_ground_truth_and_side_by_side(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    city, out = scene_data / "city", tmp_path / "out"
    done = segue(
        *("predict", "--model", stages[0], "--model", stages[1], "--input", city / "leftImg8bit/val", "--out", out),
        *(
            "--ground-truth",
            city / "gtFine/val",
            "--side-by-side",
            "--format",
            "overlay",
            "--legend",
            "--device",
            "cpu",
        ),
    )
    assert done.code == 0, done
    stored = {n["title"]: n for n in json.loads((out / "scores.json").read_text())["networks"]}
    assert list(stored) == ["source", "adapted"]
    for title, path in zip(stored, stages, strict=True):
        own = tmp_path / f"{title}.json"
        segue("evaluate", "--model", path, "--data", "cityscapes:val", "--root", city, "--json", own, "--device", "cpu")
        assert json.loads(own.read_text())["confusion"] == stored[title]["confusion"]
        assert f"{title}: mIoU {100 * stored[title]['miou']:5.1f}  (6 images)" in done.out
    assert len(list(out.rglob("*.png"))) == 6 and "6 predictions" in done.out
    chosen = ("--model", stages[0], "--classes", "road,car", "--device", "cpu")
    labels = ("--input", city / "leftImg8bit/val", "--ground-truth", city / "gtFine", "--out", tmp_path / "chosen")
    assert segue("predict", *chosen, *labels, "--format", "trainid").code == 0
    (scores,) = json.loads((tmp_path / "chosen/scores.json").read_text())["networks"]
    segue("evaluate", *chosen, "--data", "cityscapes:val", "--root", city, "--json", tmp_path / "own.json")
    own = json.loads((tmp_path / "own.json").read_text())
    assert scores["view"] == "classes" and scores["iou"] == own["iou"] and list(own["iou"]) == ["road", "car"]


def test_video(stages: list[Path], tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for value in range(5):
        writer.write(np.full((48, 64, 3), 50 * value, np.uint8))
    writer.release()
    asked = ("predict", "--model", stages[0], "--input", tmp_path / "drive.mp4", "--device", "cpu")
    done = segue(*asked, "--out", tmp_path / "out", "--side-by-side", "--film", "gif")
    assert done.code == 0 and f"film {tmp_path / 'out/drive.gif'}" in done.out, done
    with Image.open(tmp_path / "out/drive.gif") as gif:
        assert gif.n_frames == 5
    (tmp_path / "drive.mp4").write_bytes((tmp_path / "drive.mp4").read_bytes()[:200])
    refused(segue(*asked, "--out", tmp_path / "again"), "drive.mp4", "damaged")
    assert not (tmp_path / "again").exists()


def test_refusals(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    images = scene_data / "city/leftImg8bit/val"
    model = ("predict", "--model", stages[0], "--device", "cpu")
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    refused(segue("predict"), "say --model and --input and --out")
    refused(segue(*model, "--input", tmp_path / "empty", *out), "no image below")
    refused(segue(*model, "--input", tmp_path / "none", *out), "no image, folder or video")
    refused(segue(*model, "--input", images, *out, "--format", "colour"), "did you mean 'color'")
    refused(segue(*model, "--input", images, *out, "--classes", "rode"), "did you mean 'road'")
    refused(segue(*model, "--input", images, *out, "--stride", "8x8"), "stride needs")
    refused(segue(*model, "--input", images, *out, "--labels", "street7"), "go with --check")
    refused(segue(*model, "--check", tmp_path / "empty", "--input", images), "no --model")
    refused(segue("predict", "--check", tmp_path / "empty", "--input", images, "--format", "color"), "takes ids")
    refused(segue("predict", "--check", tmp_path / "empty"), "say which images")
    other = stage(tmp_path / "other", 1, space="street7")
    refused(segue(*model, "--model", other, "--input", images, *out), "different classes")
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_named_after_the_others(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    shutil.copytree(scene_data / "city/leftImg8bit/val", tmp_path / "in")
    bad = next((tmp_path / "in").rglob("*.png"))
    bad.write_bytes(bad.read_bytes()[:100])
    done = segue(
        "predict", "--model", stages[0], "--input", tmp_path / "in", "--out", tmp_path / "out", "--device", "cpu"
    )
    refused(done, "1 of 6 images", bad.name)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 5 and "5 predictions" in done.out
