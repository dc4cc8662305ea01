"""Labels from a folder in place of a data set's own: reading, statistics, checks, training, and faults."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from helpers.fingerprint import fingerprint
from helpers.labelling import Flags
from helpers.miniatures import own
from helpers.recipes import recipe
from segue.config import DatasetConfig, TransformConfig
from segue.data import audit
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.images import Size, resize_label
from segue.data.loaders import Stream
from segue.data.relabelled import Relabelled
from segue.data.statistics import class_pixels
from segue.labels import IGNORE, LabelSpace, load_space
from segue.pseudo_labels import Writer

SPACE = load_space("cityscapes19")


def write(folder: Path, dataset: Dataset, label: Callable[[int], Any]) -> Path:
    """A folder that holds exactly ``label(index)`` of every image."""
    with Writer(folder, dataset.space, dataset.ids, {"split": dataset.split}) as writer:
        for index, image_id in enumerate(dataset.ids):
            ids = label(index)
            known = ids != IGNORE
            writer.add(image_id, np.where(known, ids, 0).astype(np.uint8), known.astype(np.float32))
        writer.finish(lambda counted: np.full(counted.num_classes, 0.5))
    return folder


def city(root: Path, split: str = "train", **settings: Any) -> Dataset:
    return open_dataset("city", DatasetConfig(dataset="cityscapes", root=root / "city", **settings), split, SPACE)


@pytest.fixture(scope="module")
def shifted(scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of ``city:train`` that are its own, each class one further."""
    dataset = city(scene_data)

    def label(index: int) -> Any:
        ids = dataset.read_label(index)
        return np.where(ids == IGNORE, IGNORE, (ids + 1) % len(SPACE))

    return write(tmp_path_factory.mktemp("shifted") / "labels", dataset, label)


def test_images_stay_and_labels_are_those_of_the_folder(scene_data: Path, shifted: Path) -> None:
    plain, changed = city(scene_data), city(scene_data, labels=shifted)
    assert (changed.ids, changed.name, changed.split, len(changed)) == (plain.ids, "city", "train", len(plain))
    assert changed.labelled and not changed.unlabelled_ids
    changed.require_labels()
    for index, image_id in enumerate(plain.ids):
        before, after = plain.read_sample(index, True), changed.read_sample(index, True)
        assert np.array_equal(before.image, after.image)
        assert before.label is not None and after.label is not None
        known = before.label != IGNORE
        assert np.array_equal(after.label[known], (before.label[known] + 1) % 19), image_id
        assert (after.label[~known] == IGNORE).all()
    assert changed.describe(0) == plain.describe(0)
    assert str(changed.files(0)[1]).startswith(str(shifted))


def test_a_part_of_the_images_needs_a_part_of_the_labels(scene_data: Path, shifted: Path) -> None:
    changed = city(scene_data, labels=shifted, limit=2, size=(32, 48))
    assert len(changed) == 2
    image, label = changed.read_scored(1)
    assert image.shape == (32, 48, 3) and label.shape == (64, 96), "labels keep the size that they were made at"
    assert np.array_equal(label, city(scene_data, labels=shifted).read_label(3))


def test_other_splits_keep_their_labels(scene_data: Path, shifted: Path) -> None:
    plain, other = city(scene_data, "val"), city(scene_data, "val", labels=shifted)
    assert type(other) is type(plain) and np.array_equal(plain.read_label(0), other.read_label(0))


def test_archive_statistics_stream_and_audit(scene_data: Path, shifted: Path, tmp_path: Path, read: list[str]) -> None:
    archive = tmp_path / "labels.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in shifted.iterdir():
            file.write(path, path.name)
    for folder in (shifted, archive):
        config = DatasetConfig(dataset="cityscapes", root=scene_data / "city", labels=folder)
        dataset = open_dataset("city", config, "train", SPACE)
        expected = [np.bincount(dataset.read_label(i).ravel(), minlength=256)[:19] for i in range(len(dataset))]
        assert np.array_equal(class_pixels(dataset, config, say=len), expected)
        assert np.array_equal(class_pixels(dataset, config, say=len), expected), "from the cache"
        assert list(audit.problems({"train": dataset})) == []
        stream = Stream([dataset], None, TransformConfig(flip=0), (0,), 6, True, workers=0)
        (batch,) = next(stream.iterate())
        for label, meta in zip(batch.label, batch.meta, strict=True):
            assert np.array_equal(label, dataset.read_label(dataset.ids.index(meta.id)))
    assert not [name for name in read if "gtFine" in name], "no label of the data set's own is opened"


def test_a_python_or_unlabelled_data_set_gets_labels(tmp_path: Path) -> None:
    folder = own(tmp_path / "yard")
    shutil.rmtree(folder / "labels")
    plain = open_dataset(str(folder), DatasetConfig(), "train")
    assert not plain.labelled
    labels = write(tmp_path / "labels", plain, lambda index: np.full((24, 32), index % 2, np.uint8))
    dataset = open_dataset(str(folder), DatasetConfig(labels=labels), "train")
    assert dataset.labelled and [int(dataset.read_label(i).max()) for i in range(3)] == [0, 1, 0]
    assert dataset.coverage is not None and not dataset.coverage.lines()
    assert Relabelled(plain, labels).colorize(dataset.read_label(1))[0, 0].tolist() == [0, 200, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.floats(1, 3), st.floats(1, 3)), st.integers(0, 99)
)
def test_a_label_of_the_training_size_survives_the_way_over_the_files_size(
    size: Size, factor: tuple[float, float], seed: int
) -> None:
    label = np.random.default_rng(seed).integers(0, 19, size).astype(np.uint8)
    file_size = round(size[0] * factor[0]), round(size[1] * factor[1])
    assert np.array_equal(resize_label(resize_label(label, file_size), size), label)


def test_a_run_trains_on_them(scene_data: Path, shifted: Path, tmp_path: Path) -> None:
    """The same labels from a folder give the same run, bit for bit; other labels give another one."""
    truth = write(tmp_path / "truth", city(scene_data), city(scene_data).read_label)
    given = recipe(scene_data, "supervised")
    given["stages"][1]["data"] = {"source": "city:train"}
    found = {}
    for name, overrides in {
        "own": [],
        "truth": [f"data.city.labels={truth}"],
        "other": [f"data.city.labels={shifted}"],
    }.items():
        segue.run(given, tmp_path / name, overrides=overrides, device="cpu")
        found[name] = fingerprint(tmp_path / name)
    first, second = "0_first/weights", "1_second/weights"
    assert found["own"][second] == found["truth"][second] != found["other"][second]
    assert len({run[first] for run in found.values()}) == 1


class Renamed(Flags):
    """The same images in another label space."""

    def __init__(self) -> None:
        super().__init__([0, 1])
        self.space = LabelSpace(
            "six", (*self.space.classes, "f"), (*self.space.colors, (1, 1, 1)), (*self.space.ids, 1)
        )


def test_labels_that_do_not_fit_say_why(scene_data: Path, tmp_path: Path) -> None:
    flags = Flags([0, 1])
    labels = write(tmp_path / "labels", flags, lambda index: np.full((8, 9), index, np.uint8))
    with pytest.raises(DataError, match=r"are of label space 'five'.*'six'; they differ in f: label the images"):
        Relabelled(Renamed(), labels)
    with pytest.raises(
        DataError, match=r"1 of 3 images of data set 'flags' are not in index\.json, the first is 'n/2'"
    ):
        Relabelled(Flags([0, 1, 2]), labels)
    with pytest.raises(DataError, match="no folder or archive"):
        Relabelled(flags, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no index\.json: give a folder that `segue pseudo-label` has finished"):
        Relabelled(flags, tmp_path)
    dataset = Relabelled(flags, labels)
    cv2.imwrite(str(labels / "n%2F1.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"n%2F1\.png is 8x8 pixels, index\.json says 9x8: delete the folder"):
        dataset.read_label(1)
    cv2.imwrite(str(labels / "n%2F1.png"), np.full((8, 9), 77, np.uint8))
    with pytest.raises(DataError, match=r"n%2F1\.png: label values 77"):
        dataset.read_label(1)
    (labels / "n%2F1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"n%2F1\.png"):
        dataset.read_label(1)
    (labels / "n%2F1.png").unlink()
    with pytest.raises(
        DataError, match=r"1 of 2 label files are not in .*, the first is n%2F1\.png: delete the folder"
    ):
        Relabelled(flags, labels)


GOOD = {"format": "segue-labels-1", "labels": Flags([0]).space.to_dict(), "split": "train", "images": {}}
DAMAGED = [
    "",
    "[1]",
    "null",
    json.dumps({**GOOD, "format": "other"}),
    json.dumps({**GOOD, "labels": {"name": "x"}}),
    json.dumps({**GOOD, "images": [1]}),
    json.dumps({**GOOD, "images": {"n/0": {"file": "a.png"}}}),
    json.dumps({**GOOD, "images": {"n/0": {"file": "../a.png", "size": [1, 1]}}}),
    json.dumps({**GOOD, "images": {"n/0": {"file": 3, "size": [1, 1]}}}),
    json.dumps({**GOOD, "images": {"n/0": {"file": "a.png", "size": "no"}}}),
    json.dumps({**GOOD, "images": {"n/0": {"file": "a.png", "size": 7}}}),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"cannot read .*index\.json .*: delete the folder and make the labels again"):
        Relabelled(Flags([0]), tmp_path)
    (tmp_path / "index.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot read"):
        Relabelled(Flags([0]), tmp_path)
