"""Weights of labels on their way from file to batch: on the pixels of their label after every transform."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from helpers.labelling import Flags
from helpers.toys import SPACE, Pictures
from segue.config import TransformConfig
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.data.relabelled import Relabelled
from segue.data.view import View
from segue.labels import IGNORE, U8
from segue.pseudo_labels import Writer

SETTINGS: list[dict[str, Any]] = [
    {},
    {"flip": 1.0},
    {"scale": (0.6, 1.7), "crop": (40, 52)},
    {"scale": (0.4, 0.6), "crop": (64, 64)},
    {"crop": (48, 48), "max_class_share": 0.6, "rare_class": None},
    {"scale": (0.7, 1.3), "crop": (48, 64), "augment": "H-RP-HF"},
    {"crop": (64, 96), "augment": "B-GS-R"},
    {"crop": (48, 64), "augment": {"steps": [{"name": "flip"}]}, "flip": 0.5},
]


class Shapes(Dataset):
    """Smooth pictures with blocky labels."""

    def __init__(self, name: str = "shapes", size: tuple[int, int] | None = None) -> None:
        self.pictures = Pictures((66, 90), (66, 90), (66, 90), (66, 90), seed=7)
        super().__init__(name, SPACE, self.pictures.ids, size)
        self.labelled = True
        self.split = "train"

    def _image(self, index: int) -> Any:
        return self.pictures.images[index]

    def read_label(self, index: int) -> U8:
        return self.pictures.labels[index]


def written(folder: Path, dataset: Shapes, size: tuple[int, int] = (66, 90)) -> Path:
    """Labels of the set at ``size``, and weights that are 40 times the label, from 40 on."""
    with Writer(folder, SPACE, dataset.ids, {"split": "train"}, weighted=True) as writer:
        for index, image_id in enumerate(dataset.ids):
            ids = cv2.resize(dataset.read_label(index), size[::-1], interpolation=cv2.INTER_NEAREST)
            known = ids != IGNORE
            classes = np.where(known, ids, 0).astype(np.uint8)
            writer.add(image_id, classes, np.ones(size, np.float32), refused=~known, weight=40 * classes + 40)
        writer.finish(lambda counted: np.zeros(counted.num_classes))
    return folder


def batches(datasets: list[Dataset], settings: dict[str, Any], workers: int = 0, count: int = 3) -> list[Any]:
    stream = Stream(datasets, None, TransformConfig(**{"flip": 0, **settings}), (0, "s"), 4, True, workers)
    source = stream.iterate()
    out = [next(source)[0] for _ in range(count)]
    source.close()  # type: ignore[attr-defined]
    return out


@pytest.mark.parametrize("size", [None, (33, 45), (100, 140)])
@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_stay_on_the_pixels_of_their_label(
    settings: dict[str, Any], size: tuple[int, int] | None, tmp_path: Path
) -> None:
    dataset = Shapes(size=size)
    made = size or (66, 90)
    for batch in batches([Relabelled(dataset, written(tmp_path / "a", dataset, made))], settings):
        assert batch.weight.dtype == torch.float32 and batch.weight.shape == batch.label.shape
        expected = torch.where(batch.label == IGNORE, 0, 40 * batch.label.int() + 40)
        assert torch.equal((255 * batch.weight).round().int(), expected)
        assert len(batch.label.unique()) > 3 and not batch.weight[~batch.pixel].any()


def test_other_data_of_the_stream_is_fully_trusted_and_streams_without_weights_have_none(tmp_path: Path) -> None:
    plain, changed = Shapes("plain"), Shapes()
    changed.ids = [f"other/{n}" for n in range(4)]
    weighted = Relabelled(changed, written(tmp_path / "a", changed))
    settings = {"scale": (0.5, 1.0), "crop": (48, 64), "augment": "B-GS-R"}
    for workers in (0, 1):
        mixed = batches([plain, weighted], settings, workers, 4)
        domains = [m.domain for batch in mixed for m in batch.meta]
        assert {"plain", "shapes"} == set(domains)
        for batch in mixed:
            if batch.weight is None:
                assert {m.domain for m in batch.meta} == {"plain"}
                continue
            for weight, label, meta in zip(batch.weight, batch.label, batch.meta, strict=True):
                full = meta.domain == "plain"
                assert (weight == 1).all() if full else (weight[label != IGNORE] < 0.9).all()
    before, after = batches([plain], settings), batches([Shapes("plain")], settings)
    assert all(a.weight is None and torch.equal(a.label, b.label) for a, b in zip(before, after, strict=True))


def test_weights_change_nothing_else_of_a_batch(tmp_path: Path) -> None:
    dataset = Shapes()
    folder = written(tmp_path / "a", dataset)
    index = json.loads((folder / "index.json").read_text())
    for row in index["images"].values():
        del row["weight"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.glob("*.png"):
        (bare / path.name).write_bytes(path.read_bytes())
    (bare / "index.json").write_text(json.dumps(index))
    settings = {"scale": (0.5, 1.5), "crop": (48, 64), "augment": "H-RP-HF", "flip": 0.5}
    for a, b in zip(*(batches([Relabelled(dataset, f)], settings) for f in (folder, bare)), strict=True):
        assert b.weight is None and a.weight is not None
        assert torch.equal(a.image, b.image) and torch.equal(a.label, b.label) and torch.equal(a.pixel, b.pixel)
        assert a.label_count == b.label_count and a.meta == b.meta


def test_views_and_archives_keep_weights_and_no_label_no_weight(tmp_path: Path) -> None:
    dataset = Shapes()
    folder = written(tmp_path / "a", dataset)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    whole = Relabelled(dataset, folder).read_sample(2, True).weight
    for other in (View(Relabelled(dataset, folder), [2]), Relabelled(View(dataset, [2]), tmp_path / "a.zip")):
        assert np.array_equal(other.read_sample(0, True).weight, whole)
    assert Relabelled(dataset, folder).read_sample(0, False).weight is None
    assert Shapes().read_sample(0, True).weight is None


def test_damaged_and_missing_weights_are_named(tmp_path: Path) -> None:
    dataset = Shapes()
    folder = written(tmp_path / "a", dataset)
    damaged = folder / "drive%2F1+weight.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"drive%2F1\+weight\.png.*truncated"):
        Relabelled(dataset, folder).read_sample(1, True)
    cv2.imwrite(str(damaged), np.zeros((10, 20), np.uint8))
    with pytest.raises(DataError, match=r"weight\.png is 20x10 pixels, index\.json says 90x66: delete the folder"):
        Relabelled(dataset, folder).read_sample(1, True)
    damaged.unlink()
    with pytest.raises(DataError, match=r"1 of 8 label files are not in .*drive%2F1\+weight\.png: delete the folder"):
        Relabelled(dataset, folder)
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace("drive%2F1+weight.png", "../weight.png"))
    with pytest.raises(DataError, match="is no file name"):
        Relabelled(dataset, folder)


def test_a_weight_must_be_given_where_it_is_asked_for(tmp_path: Path) -> None:
    classes = np.zeros((3, 4), np.uint8)
    with Writer(tmp_path / "a", SPACE, ["x"], {}, weighted=True) as writer, pytest.raises(ValueError, match="missing"):
        writer.add("x", classes, np.ones((3, 4)))
    with Writer(tmp_path / "b", SPACE, ["x"], {}) as writer, pytest.raises(ValueError, match="not asked for"):
        writer.add("x", classes, np.ones((3, 4)), weight=classes)
    assert Flags([1]).read_sample(0, False).weight is None
