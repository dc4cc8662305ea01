"""Data sets under a corruption, and those of which a list names the images; rankings matched to data sets."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command import refused, segue
from helpers.miniatures import make
from segue.config import DatasetConfig
from segue.data.buckets import ids_of_ranking, read_ranking
from segue.data.corruptions import corrupt
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.statistics import class_pixels

DRIVE = "2013_05_28_drive_{}_sync"


def opened(root: Path, **settings: Any) -> Dataset:
    config = DatasetConfig.model_validate({"root": root / "city", **settings})
    return open_dataset("cityscapes", config, "train")


def fog(severity: Any, **more: Any) -> dict[str, Any]:
    return {"corrupt": {"name": "fog", "severity": severity, **more}}


def changes(clean: Dataset, seen: Dataset) -> list[float]:
    pairs = [(clean.read_image(i).astype(float), seen.read_image(i).astype(float)) for i in range(len(clean))]
    return [float(np.abs(a - b).mean()) for a, b in pairs]


def test_training_and_scoring_see_the_corrupted_image_and_the_label_as_it_is(scene_data: Path) -> None:
    clean, seen = opened(scene_data), opened(scene_data, **fog(3))
    assert seen.ids == clean.ids and seen.labelled and str(seen.files(1)[0]) == str(clean.files(1)[0])
    image = seen.read_image(1)
    assert not np.array_equal(image, clean.read_image(1))
    sample, (scored, label) = seen.read_sample(1, True), seen.read_scored(1)
    assert np.array_equal(sample.image, image) and np.array_equal(scored, image)
    assert sample.label is not None and np.array_equal(sample.label, clean.read_label(1))
    assert np.array_equal(label, clean.read_label(1))


def test_an_image_depends_on_its_id_and_the_seed_alone(scene_data: Path) -> None:
    whole = opened(scene_data, **fog(3))
    part = opened(scene_data, include=[whole.ids[4]], **fog(3))
    again = pickle.loads(pickle.dumps(whole))
    assert np.array_equal(part.read_image(0), whole.read_image(4))
    assert np.array_equal(again.read_image(4), whole.read_image(4))
    other = opened(scene_data, **fog(3, seed=1))
    assert not np.array_equal(other.read_image(4), whole.read_image(4))


def test_severity_0_is_the_picture_and_each_step_changes_more(scene_data: Path) -> None:
    clean = opened(scene_data)
    means = [np.mean(changes(clean, opened(scene_data, **fog(n)))) for n in range(6)]
    assert means[0] == 0 and all(a < b for a, b in itertools.pairwise(means))


def test_corruption_comes_before_the_resize(scene_data: Path) -> None:
    from segue.data.images import resize_image

    full, small = opened(scene_data, **fog(2)), opened(scene_data, size=[32, 48], **fog(2))
    wanted = resize_image(full.read_image(0), (32, 48))
    assert np.array_equal(small.read_image(0), wanted) and np.array_equal(small.read_scored(0)[0], wanted)


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [([0, 5], [0, 1, 2, 3, 4, 5]), ([5, 0], [5, 4, 3, 2, 1, 0]), ([1, 2], [1, 1, 1, 2, 2, 2]), ([3, 3], [3] * 6)],
)
def test_a_range_of_severities_grows_through_the_list(ends: list[int], wanted: list[int], scene_data: Path) -> None:
    seen = opened(scene_data, **fog(ends))
    assert len(seen) == 6
    for index, severity in enumerate(wanted):
        alone = opened(scene_data, **fog(severity))
        assert np.array_equal(seen.read_image(index), alone.read_image(index)), index


def test_class_pixels_are_those_of_the_clean_labels(scene_data: Path) -> None:
    config = DatasetConfig(root=scene_data / "city")
    clean, seen = opened(scene_data), opened(scene_data, **fog(5))
    assert np.array_equal(class_pixels(clean, config), class_pixels(seen, config))


@pytest.mark.parametrize("severity", [6, -1, [0, 9], "much", [1, 2, 3]])
def test_a_severity_that_is_none(severity: Any) -> None:
    with pytest.raises(ValueError, match="severity"):
        DatasetConfig.model_validate(fog(severity))


def test_an_unknown_corruption(scene_data: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'fog'"):
        opened(scene_data, corrupt={"name": "fogg"})


def test_the_page_shows_it(scene_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = segue(
        "data", "show", "cityscapes:train", "--root", scene_data / "city", "--out", out, "--corrupt", "rain:0-5"
    )
    assert done.code == 0 and "6 images under rain 0 to 5" in out.read_text()
    refused(segue("data", "show", "cityscapes", "--root", scene_data / "city", "--corrupt", "fog:7"), "fog:7", "0 to 5")


def test_corrupt_is_pure(scene_data: Path) -> None:
    image = opened(scene_data).read_image(0)
    kept = image.copy()
    assert not np.array_equal(corrupt(image, "night", 4, 7), kept) and np.array_equal(image, kept)


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """Two drives with frames of equal numbers: 0000/250, 0000/251, 0002/250, 0002/4391, 0002/9 (no label)."""
    make("kitti360", tmp_path / "kitti")
    return tmp_path / "kitti"


def row(drive: str, number: int, start: str = "./datasets/data/KITTI-360/", **more: Any) -> dict[str, Any]:
    return {"image": f"{start}data_2d_raw/{DRIVE.format(drive)}/image_00/data_rect/{number:010d}.png", **more}


def listing(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def matched(tmp_path: Path, dataset: Dataset, rows: list[dict[str, Any]]) -> list[str | None]:
    places = ids_of_ranking(read_ranking(listing(tmp_path / "list.json", rows)), dataset)
    return [None if place is None else dataset.ids[place] for place in places]


def test_a_ranking_is_matched_by_the_ends_of_its_paths(kitti: Path, tmp_path: Path) -> None:
    dataset = open_dataset("kitti360", DatasetConfig(root=kitti), "all")
    rows = [row("0002", 250), row("0000", 251, "/media/x/KITTI-360/"), row("0003", 250), row("0000", 250, "")]
    rows.append({"image": row("0002", 9)["image"].replace("/", "\\")})
    wanted = [f"{DRIVE.format('0002')}/0000000250", f"{DRIVE.format('0000')}/0000000251", None]
    wanted += [f"{DRIVE.format('0000')}/0000000250", f"{DRIVE.format('0002')}/0000000009"]
    assert matched(tmp_path, dataset, rows) == wanted


def test_a_ranking_is_matched_to_a_prepared_copy(kitti: Path, tmp_path: Path) -> None:
    done = segue("data", "prepare", "kitti360:all", "--root", kitti, "--size", "32x64", "--out", tmp_path / "small")
    assert done.code == 0, done
    dataset = open_dataset("kitti360", DatasetConfig(root=tmp_path / "small"), "all")
    rows = [row("0002", 250), row("0000", 250), row("0009", 250)]
    assert matched(tmp_path, dataset, rows) == [
        f"{DRIVE.format('0002')}/0000000250",
        f"{DRIVE.format('0000')}/0000000250",
        None,
    ]


def test_a_ranking_of_other_images_or_of_bare_names(kitti: Path, tmp_path: Path) -> None:
    dataset = open_dataset("kitti360", DatasetConfig(root=kitti), "all")
    with pytest.raises(DataError, match=r"none of its 1 images is in data set 'kitti360', split 'all'; it lists"):
        matched(tmp_path, dataset, [row("0009", 1)])
    with pytest.raises(DataError, match="list images with their folders"):
        matched(tmp_path, dataset, [{"image": "0000000250.png"}])
    assert matched(tmp_path, dataset, [{"image": "0000004391.png"}]) == [f"{DRIVE.format('0002')}/0000004391"]


def test_a_list_chooses_the_images(kitti: Path, tmp_path: Path) -> None:
    path = listing(tmp_path / "val.json", [row("0002", 4391, val_set=True), row("0000", 250)])
    dataset = open_dataset("kitti360", DatasetConfig(root=kitti, listed=path), "every")
    assert dataset.ids == [f"{DRIVE.format('0000')}/0000000250", f"{DRIVE.format('0002')}/0000004391"]
    assert dataset.labelled and not dataset.unlabelled_ids and dataset.read_scored(1)[1].ndim == 2
    assert len(open_dataset("kitti360", DatasetConfig(root=kitti, listed=path, limit=1), "every")) == 1
    listing(path, [row("0000", 250), row("0000", 999)])
    with pytest.raises(
        DataError, match=r"1 of 2 images that .*val.json lists are not there, the first is .*0000000999"
    ):
        open_dataset("kitti360", DatasetConfig(root=kitti, listed=path), "every")
