"""Data set classes of the user's: ``python:module:Class``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from segue.config import DatasetConfig, TransformConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.labels import load_space

MODULE = """
from collections import namedtuple
import numpy as np, torch
from PIL import Image

Row = namedtuple("Row", "name id train_id")
IMAGE = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
LABEL = np.tile(np.array([0, 1, 2, 255, -1], np.int64), 16).reshape(8, 10)

class Base:
    cmap = np.arange(768, dtype=np.uint8).reshape(256, 3)
    def __init__(self, root="", split="train", images="pil", number=5):
        self.images, self.number, self.split, self.root = images, number, split, root
    def __len__(self):
        return self.number
    @classmethod
    def decode_target(cls, mask):
        return cls.cmap[mask]
    def __getitem__(self, i):
        image = {"pil": lambda: Image.fromarray(IMAGE), "numpy": lambda: IMAGE,
                 "uint8": lambda: torch.from_numpy(IMAGE).permute(2, 0, 1),
                 "float": lambda: torch.from_numpy(IMAGE).permute(2, 0, 1) / 255,
                 "normalised": lambda: torch.from_numpy(IMAGE).permute(2, 0, 1) / 100 - 1}[self.images]()
        label = {"pil": LABEL, "uint8": torch.from_numpy(LABEL), "float": torch.from_numpy(LABEL)[None]}
        return image, label.get(self.images, LABEL)

class Named(Base):
    classes = [Row("void", 0, 255), Row("living", 24, 2), Row("Sky", 23, 0), Row("road", 7, 1)]

class Many(Base):
    num_classes = 21

class Bare(Base):
    def __getitem__(self, i):
        return super().__getitem__(i)[0]

class Broken(Base):
    def __getitem__(self, i):
        if i:
            raise RuntimeError("disk on fire")
        return super().__getitem__(i)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_data", raising=False)


def opened(cls: str, split: str = "val", root: Path | None = None, **options: object) -> Dataset:
    config = DatasetConfig(dataset=f"python:their_data:{cls}", options=dict(options), root=root)
    return open_dataset("theirs", config, split, load_space("street7"))


@pytest.mark.parametrize("images", ["pil", "numpy", "uint8", "float"])
def test_pictures_and_labels_of_every_kind(images: str) -> None:
    dataset = opened("Base", images=images)
    sample = dataset.read_sample(1, labels=True)
    assert np.array_equal(sample.image, np.arange(240, dtype=np.uint8).reshape(8, 10, 3))
    assert sample.label is not None and sample.label[0, :5].tolist() == [0, 1, 2, 255, 255]
    assert len(dataset) == 5 and dataset.ids[1] == "000001" and dataset.labelled


def test_split_and_root_reach_the_constructor(tmp_path: Path) -> None:
    inner = opened("Base", split="val", root=tmp_path)._inner  # type: ignore[attr-defined]
    assert (inner.split, inner.root) == ("val", str(tmp_path))


def test_class_names_map_onto_the_space_and_decode_target_colours() -> None:
    dataset = opened("Named")
    assert dataset.read_label(0)[0, :5].tolist() == [6, 0, 2, 255, 255]
    assert dataset.colorize(np.array([[2]], np.uint8))[0, 0].tolist() == [6, 7, 8]


def test_unlabelled_class_streams_as_a_target() -> None:
    dataset = opened("Bare")
    assert not dataset.labelled
    (batch,) = next(Stream([dataset], None, TransformConfig(), (0,), 2, False, workers=0).iterate())
    assert batch.image.shape == (2, 3, 8, 10)


@pytest.mark.parametrize("workers", [0, 1])
def test_their_errors_name_item_and_class(workers: int) -> None:
    stream = Stream([opened("Broken")], None, TransformConfig(), (0,), 5, False, workers=workers)
    with pytest.raises(DataError, match=r"^item \d of their_data:Broken failed: RuntimeError: disk on fire$"):
        next(stream.iterate())


def test_settings_that_cannot_work() -> None:
    with pytest.raises(DataError, match="without normalisation"):
        opened("Base", images="normalised").read_image(0)
    with pytest.raises(DataError, match="num_classes is 21, label space 'street7' has 7"):
        opened("Many")
    with pytest.raises(DataError, match=r"their_data:Base\(sise=3, split='val'\) failed: TypeError"):
        opened("Base", sise=3)
    with pytest.raises(DataError, match="cannot import python:their_data:Bass"):
        opened("Bass")
    with pytest.raises(DataError, match="PYTHONPATH"):
        open_dataset("t", DatasetConfig(dataset="python:nowhere:X"), "train", load_space("street7"))


def test_limit_keeps_the_right_items() -> None:
    config = DatasetConfig(dataset="python:their_data:Base", limit=2)
    dataset = open_dataset("theirs", config, "val", load_space("street7"))
    assert dataset.ids == ["000000", "000002"]
