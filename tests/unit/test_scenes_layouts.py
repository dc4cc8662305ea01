"""Scenes written as data sets: the published layouts, the same labels back through the catalog, in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segue.config import DatasetConfig
from segue.data import scenes
from segue.data.dataset import open_dataset
from segue.labels import load_space


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_write_cityscapes_round_trip(tmp_path: Path) -> None:
    domain = scenes.domain("city")
    for split, num in (("train", 3), ("val", 2)):
        scenes.write(tmp_path, num=num, seed=4, domain=domain, size=(64, 128), layout="cityscapes", split=split)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 2 * 5 + 1 and "scenes.json" in files
    images = sorted((tmp_path / "leftImg8bit" / "train").rglob("*_leftImg8bit.png"))
    assert len(images) == 3
    ids = np.zeros(256, np.uint8)
    ids[:19] = load_space("cityscapes19").ids
    for index, path in enumerate(images):
        assert path.name == f"{path.parent.name}_{index:06d}_000019_leftImg8bit.png"
        scene = scenes.render(domain, scenes.scene_seed(4, "train", index), (64, 128))
        label = tmp_path / "gtFine" / "train" / path.parent.name / path.name.replace("_leftImg8bit", "_gtFine_labelIds")
        assert (read(path) == scene.image).all() and Image.open(label).mode == "L"
        assert (read(label) == ids[scene.label]).all() and (read(label)[scene.label == 255] == 0).all()
        assert (cv2.imread(str(label), cv2.IMREAD_UNCHANGED) == ids[scene.label]).all()
    val = sorted((tmp_path / "leftImg8bit" / "val").rglob("*.png"))
    assert not {p.read_bytes() for p in val} & {p.read_bytes() for p in images}
    notes = json.loads((tmp_path / "scenes.json").read_text())
    assert notes["train"]["num"] == 3 and notes["val"]["size"] == [64, 128] and notes["train"]["seed"] == 4
    assert notes["val"]["domain"]["camera"]["fov_deg"] == domain.camera.fov_deg


def test_write_gta5_round_trip_and_in_parts(tmp_path: Path) -> None:
    domain, space = scenes.domain("game"), load_space("cityscapes19")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    scenes.write(whole, num=3, seed=1, domain=domain, size=(64, 128), layout="gta5")
    scenes.write(parts, num=1, seed=1, domain=domain, size=(64, 128), layout="gta5")
    scenes.write(parts, num=2, seed=1, domain=domain, size=(64, 128), layout="gta5", start=1)
    names = sorted(str(p.relative_to(whole)) for p in whole.rglob("*.png"))
    assert names == [f"{f}/0000{k}.png" for f in ("images", "labels") for k in (1, 2, 3)]
    for name in names:
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    scene = scenes.render(domain, scenes.scene_seed(1, "train", 0), (64, 128))
    label = Image.open(whole / "labels" / "00001.png")
    assert label.mode == "P"
    ids = np.array([*space.ids, *[0] * 237], np.uint8)
    assert (np.asarray(label) == ids[scene.label]).all()
    colours = np.asarray(label.convert("RGB"))
    known = scene.label < 19
    assert (colours[known] == np.array(space.colors)[scene.label[known]]).all()
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize(("layout", "name"), [("synthia", "synthia"), ("kitti360", "kitti360"), ("gta5", "gta5")])
def test_written_scenes_read_back_as_they_were(layout: str, name: str, tmp_path: Path) -> None:
    space, size = load_space("cityscapes19"), (96, 192)
    domain = scenes.domain("city")
    shown: set[int] = set()
    for split, num in (("train", 2), ("val", 1)):
        scenes.write(tmp_path / split, num=num, seed=3, domain=domain, size=size, layout=layout, split=split, start=4)
        dataset = open_dataset(name, DatasetConfig(root=tmp_path / split), split if name == "kitti360" else "train")
        assert len(dataset) == num
        for index in range(num):
            scene = scenes.render(domain, scenes.scene_seed(3, split, index + 4), size)
            sample = dataset.read_sample(index, labels=True)
            never = [space.index(c) for c in ("terrain", "truck", "train")] if layout == "synthia" else []
            expected = np.where(np.isin(scene.label, never), 255, scene.label)
            assert (sample.image == scene.image).all() and sample.label is not None
            assert (sample.label == expected).all()
            shown |= {*scene.label.ravel()}
    assert space.index("terrain") in shown, "the scenes show what SYNTHIA never labels"


def test_synthia_labels_have_the_published_depth_and_channels(tmp_path: Path) -> None:
    scenes.write(tmp_path, num=1, seed=0, domain=scenes.domain("game"), size=(64, 128), layout="synthia")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == [
        "GT/LABELS/0000000.png",
        "RGB/0000000.png",
    ]
    ids = cv2.imread(str(tmp_path / "GT/LABELS/0000000.png"), cv2.IMREAD_UNCHANGED)
    assert ids.dtype == np.uint16 and ids.shape == (64, 128, 3)
    scene = scenes.render(scenes.domain("game"), scenes.scene_seed(0, "train", 0), (64, 128))
    published = {
        0: 3,
        1: 4,
        2: 2,
        3: 21,
        4: 5,
        5: 7,
        6: 15,
        7: 9,
        8: 6,
        10: 1,
        11: 10,
        12: 17,
        13: 8,
        15: 19,
        17: 12,
        18: 11,
    }
    expected = [published.get(int(t), 0) for t in scene.label.ravel()]
    assert ids[..., 2].ravel().tolist() == expected, "red, which cv2 hands out last, is the class"
    assert not ids[..., :2].any()


def test_kitti360_lists_grow_with_the_parts(tmp_path: Path) -> None:
    for start in (0, 2, 1):
        options = {"num": 1, "seed": 0, "domain": scenes.domain("city"), "size": (64, 128), "layout": "kitti360"}
        scenes.write(tmp_path, **options, start=start)
    drive = "2013_05_28_drive_0000_sync"
    lines = (tmp_path / "data_2d_semantics/train/2013_05_28_drive_train_frames.txt").read_text().splitlines()
    assert lines == [
        f"data_2d_raw/{drive}/image_00/data_rect/{n:010d}.png "
        f"data_2d_semantics/train/{drive}/image_00/semantic/{n:010d}.png"
        for n in range(3)
    ]
    assert all((tmp_path / path).is_file() for line in lines for path in line.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "kitti"}, "cityscapes, gta5, synthia, kitti360"),
        ({"split": "minival"}, "train, val"),
        ({"num": 0}, "num"),
        ({"start": -1}, "start"),
        ({"size": (32, 128)}, "64x64"),
        ({"steps": 2}, "drifts to"),
        ({"to": scenes.domain("city")}, "2 images or steps"),
        ({"num": 3, "to": scenes.domain("city"), "steps": 4}, r"no more steps than images \(3\)"),
        ({"num": 3, "to": scenes.domain("city"), "steps": 1}, "2 images or steps"),
    ],
)
def test_write_refuses_what_it_cannot_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"num": 1, "seed": 0, "domain": scenes.domain("game"), "size": (64, 128)}
    with pytest.raises(ValueError, match=message):
        scenes.write(tmp_path, **{**settings, **change})
    assert not list(tmp_path.iterdir())


STREAM: dict[str, Any] = {"seed": 5, "domain": scenes.domain("game"), "to": scenes.domain("city"), "size": (64, 64)}


@pytest.mark.parametrize("layout", ["cityscapes", "gta5", "synthia", "kitti360"])
def test_the_images_of_a_stream_drift_in_the_order_of_their_ids(layout: str, tmp_path: Path) -> None:
    for out in (tmp_path / "a", tmp_path / "b"):
        scenes.write(out, num=5, layout=layout, start=8, **STREAM)
    dataset = open_dataset(layout, DatasetConfig(root=tmp_path / "a"), "train")
    drift = json.loads((tmp_path / "a/drift.json").read_text())
    assert drift == dict(zip(dataset.ids, (0, 0.25, 0.5, 0.75, 1), strict=True))
    for index, share in enumerate(drift.values()):
        own = scenes.domain(f"game-city-{share}")
        scene = scenes.render(own, scenes.scene_seed(5, "train", 8 + index), (64, 64))
        assert (dataset.read_image(index) == scene.image).all()
        assert dataset.read_sample(index, labels=True).label is not None
    first, second = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second


def test_steps_hold_their_level_and_parts_of_a_stream_add_up(tmp_path: Path) -> None:
    scenes.write(tmp_path, num=7, steps=3, **STREAM)
    scenes.write(tmp_path, num=2, start=7, split="train", **STREAM)
    drift = json.loads((tmp_path / "drift.json").read_text())
    assert list(drift.values()) == [0, 0, 0, 0.5, 0.5, 1, 1, 0, 1]
    assert list(drift) == open_dataset("cityscapes", DatasetConfig(root=tmp_path), "train").ids


def test_colours_of_a_stream_move_one_way(tmp_path: Path) -> None:
    scenes.write(tmp_path, num=40, steps=4, **STREAM)
    dataset = open_dataset("cityscapes", DatasetConfig(root=tmp_path), "train")
    images = [dataset.read_image(k).astype(int) for k in range(40)]
    colourful = np.array([(image.max(-1) - image.min(-1)).mean() for image in images]).reshape(4, 10).mean(1)
    assert (np.diff(colourful) < -1).all(), colourful
