"""Stored label maps: which file belongs to which image, what its values mean, and every way to be refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import segue as package
from helpers.command import refused, segue
from segue.config import DatasetConfig
from segue.data.dataset import Dataset, open_dataset
from segue.errors import UserError
from segue.labels import load_space
from segue.scoring.matrix import Confusion
from segue.scoring.predictions import score_predictions

SPACE = load_space("cityscapes19")


@pytest.fixture
def city(scene_data: Path) -> Dataset:
    return open_dataset("cityscapes", DatasetConfig(root=scene_data / "city"), "val", SPACE)


def _maps(city: Dataset) -> list[np.ndarray]:
    """Labels with a fifth of the pixels changed, no void."""
    rng = np.random.default_rng(0)
    out = []
    for index in range(len(city)):
        label = city.read_label(index).copy()
        wrong = (rng.random(label.shape) < 0.2) | (label == 255)
        label[wrong] = rng.integers(0, 19, wrong.sum())
        out.append(label)
    return out


def _write(folder: Path, city: Dataset, name: str, label_ids: bool) -> Path:
    for image_id, ids in zip(city.ids, _maps(city), strict=True):
        path = folder / name.format(id=image_id, last=image_id.rpartition("/")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), SPACE.to_label_ids(ids) if label_ids else ids)
    return folder


def _expected(city: Dataset) -> np.ndarray:
    confusion = Confusion(19)
    for index, ids in enumerate(_maps(city)):
        confusion.add(city.read_label(index), ids)
    return confusion.counts


NAMES = {
    "ids": "{id}.png",
    "image names": "{id}_leftImg8bit.png",
    "as in the data set": "leftImg8bit/val/{id}_leftImg8bit.png",
    "in more folders": "results/1/{id}.png",
    "flat": "{last}_leftImg8bit.png",
    "official": "{last}_gtFine_labelIds.png",
    "elsewhere": "other/{last}.png",
}


@pytest.mark.parametrize("label_ids", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_files_find_their_images(name: str, label_ids: bool, city: Dataset, tmp_path: Path) -> None:
    _write(tmp_path, city, NAMES[name], label_ids)
    found = score_predictions(tmp_path, city, boundary=True)
    assert np.array_equal(found.confusion.counts, _expected(city))
    told = found.to_dict()
    assert told["encoding"] == ("labelid" if label_ids else "trainid")
    assert told["extra_files"] == {"number": 0, "first": []}
    assert json.loads(json.dumps(told, allow_nan=False))["boundary"]["mean"] > 0


def test_palette_files_and_void(city: Dataset, tmp_path: Path) -> None:
    _write(tmp_path, city, "{id}.png", label_ids=False)
    maps = _maps(city)
    maps[0][:9] = 255
    image = Image.fromarray(maps[0])
    image.putpalette(SPACE.palette().tobytes())
    image.save(tmp_path / f"{city.ids[0]}.png")
    confusion = Confusion(19)
    for index, ids in enumerate(maps):
        confusion.add(city.read_label(index), ids)
    assert confusion.counts[:, -1].sum() > 0
    assert np.array_equal(score_predictions(tmp_path, city).confusion.counts, confusion.counts)
    for image_id, ids in zip(city.ids, maps, strict=True):
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), SPACE.to_label_ids(ids))  # void is 0 there
    assert np.array_equal(score_predictions(tmp_path, city).confusion.counts, confusion.counts)


def _folder_data(root: Path, keys: list[str]) -> Dataset:
    """Two classes with label ids 0 and 1 swapped, so that both encodings explain every file."""
    (root / "dataset.yaml").parent.mkdir(parents=True)
    (root / "dataset.yaml").write_text(
        "name: yard\nclasses: [{name: road, color: [1, 1, 1], id: 1}, {name: grass, color: [2, 2, 2], id: 0}]\n"
        "image: 'images/{split}/{key}.png'\nlabels: [{path: 'labels/{split}/{key}.png'}]\nsplits: {val: {}}\n"
    )
    for key in keys:
        for kind, array in (("images", np.zeros((40, 50, 3), np.uint8)), ("labels", np.eye(40, 50, dtype=np.uint8))):
            (root / kind / "val" / key).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / kind / "val" / f"{key}.png"), array)
    return open_dataset(str(root), DatasetConfig(), "val")


def test_what_both_encodings_explain_must_be_said(tmp_path: Path) -> None:
    data = _folder_data(tmp_path / "yard", ["a", "b"])
    out = tmp_path / "out"
    out.mkdir()
    for key in "ab":
        cv2.imwrite(str(out / f"{key}.png"), np.eye(40, 50, dtype=np.uint8))
    with pytest.raises(UserError, match="train ids or label ids; say which with --encoding"):
        score_predictions(out, data)
    assert score_predictions(out, data, encoding="labelid").scores().miou == 1.0
    assert score_predictions(out, data, encoding="trainid").scores().miou < 0.1
    with pytest.raises(UserError, match="did you mean 'labelid'"):
        score_predictions(out, data, encoding="labelids")


def test_images_of_one_name_in_two_folders(tmp_path: Path) -> None:
    data = _folder_data(tmp_path / "yard", ["a/0", "b/0"])
    label = np.eye(40, 50, dtype=np.uint8)
    for name in ("a/0", "b/0"):
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "out" / f"{name}.png"), label)
    assert score_predictions(tmp_path / "out", data, encoding="labelid").scores().miou == 1.0
    (tmp_path / "out/a/0.png").rename(tmp_path / "out/0.png")
    with pytest.raises(UserError, match=r"0\.png could belong to 2 \(a/0, b/0\)"):
        score_predictions(tmp_path / "out", data, encoding="labelid")


def test_files_that_do_not_fit_are_named(city: Dataset, tmp_path: Path) -> None:
    _write(tmp_path, city, "{id}.png", label_ids=False)
    one, two = (tmp_path / f"{image_id}.png" for image_id in city.ids[:2])
    (tmp_path / "readme.png").write_bytes(one.read_bytes())
    told = score_predictions(tmp_path, city).to_dict()
    assert told["extra_files"] == {"number": 1, "first": ["readme.png"]}

    def says(*words: str) -> None:
        with pytest.raises(UserError) as caught:
            score_predictions(tmp_path, city)
        for word in words:
            assert word in str(caught.value)

    kept = one.read_bytes()
    cv2.imwrite(str(one), np.zeros((10, 20), np.uint8))
    cv2.imwrite(str(two), np.zeros((64, 20), np.uint8))
    says("size of their labels", "2 (", f"{one} is 20x10 pixels, the label 96x64", str(two))
    one.unlink()
    says("no prediction for", city.ids[0], "readme.png")
    cv2.imwrite(str(one), np.zeros((64, 96, 3), np.uint8))
    says(str(one), "3 channels")
    cv2.imwrite(str(one), np.full((64, 96), 300, np.uint16))
    says(str(one), "uint16")
    cv2.imwrite(str(one), np.full((64, 96), 77, np.uint8))
    says(str(one), "77", "train ids or label ids")
    one.write_bytes(kept[:50])
    says(str(one), "truncated")
    one.write_bytes(kept)
    one.with_name(f"{one.stem}_color.png").write_bytes(kept)
    says("could both be the prediction", city.ids[0])
    with pytest.raises(UserError, match="no folder"):
        score_predictions(tmp_path / "nowhere", city)


def test_mixed_encodings_are_refused(city: Dataset, tmp_path: Path) -> None:
    _write(tmp_path, city, "{id}.png", label_ids=False)
    last = tmp_path / f"{city.ids[-1]}.png"
    cv2.imwrite(str(last), SPACE.to_label_ids(_maps(city)[-1]))
    with pytest.raises(UserError, match="with the files before it"):
        score_predictions(tmp_path, city)


def test_command(city: Dataset, scene_data: Path, tmp_path: Path) -> None:
    _write(tmp_path / "out", city, "{id}.png", label_ids=True)
    common = ["evaluate", "--predictions", tmp_path / "out", "--data", "cityscapes:val", "--root", scene_data / "city"]
    done = segue(*common, "--view", "16", "--view", "16-lenient", "--boundary", "--json", tmp_path / "scores.json")
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "scores.json").read_text())
    assert done.out.splitlines()[0] == f"predictions in {tmp_path / 'out'} (labelid), protocol native, view 16"
    assert "view 16-lenient: mIoU" in done.out and "boundary IoU" in done.out
    assert told["views"]["16-lenient"]["miou"] > told["views"]["16"]["miou"] == told["miou"]
    again = package.evaluate(data="cityscapes:val", root=scene_data / "city", predictions=tmp_path / "out")
    assert again["confusion"] == told["confusion"]
    for extra in (["--flip"], ["--model", tmp_path], ["--calibration"], ["--protocol", "mmseg"], ["--size", "64x64"]):
        refused(segue(*common, *extra), "scored as they are")
    refused(segue(*common, "--encoding", "labelids"), "did you mean 'labelid'")
    refused(segue(*common, "--view", "17"), "no view '17'")
