"""Every entry of the catalog: a miniature in its official layout opens, reads, maps, streams and audits clean."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.miniatures import KEYS, PALETTE, SIZE, UNLABELLED, file_ids, make
from segue.config import DatasetConfig, TransformConfig
from segue.data import audit, catalog
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.labels import IGNORE, load_space

ENTRIES = catalog.catalog_names()
KINDS = [(name, kind) for name in ENTRIES for kind in range(len(catalog.load(name).labels))]
REAL = os.environ.get("SEGUE_REAL_DATA")


def opened(name: str, root: Path, split: str = "train", space: str | None = None) -> Dataset:
    target = load_space(space) if space else None
    return open_dataset(name, DatasetConfig(root=root), split, target)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_reads_images_and_maps_labels(name: str, kind: int, tmp_path: Path) -> None:
    spec = make(name, tmp_path, kind)
    dataset = opened(name, tmp_path)
    assert dataset.ids == sorted(KEYS) and dataset.labelled and not dataset.unlabelled_ids
    image, label = dataset.read_image(1), dataset.read_label(1)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    raw = file_ids(spec, spec.labels[kind], 1)
    native = spec.native()
    names = spec.labels[kind].names(native)
    expected = [IGNORE if names.get(int(v)) is None else native.index(str(names[int(v)])) for v in raw.ravel()]
    assert label.ravel().tolist() == expected
    assert set(label.ravel()) == {*range(len(native)), IGNORE}


CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.mark.parametrize(
    ("name", "kind", "valid", "known"),
    [
        ("cityscapes", 0, list(range(19)), 19),
        ("cityscapes", 1, CITYSCAPES_IDS, 34),
        ("gta5", 0, CITYSCAPES_IDS, 35),
        ("gta5", 1, list(range(19)), 19),
        ("camvid", 0, list(range(11)), 12),
        ("idd_lite", 0, list(range(7)), 7),
    ],
)
def test_ids_are_the_published_ones(name: str, kind: int, valid: list[int], known: int) -> None:
    spec = catalog.load(name)
    names = spec.labels[kind].names(spec.native())
    assert [i for i in sorted(names) if names[i] is not None] == valid
    assert [names[i] for i in valid] == list(spec.native().classes)
    assert sorted(names) == list(range(known)), "every id that official files hold is known, no other"


@pytest.mark.parametrize("name", ENTRIES)
def test_every_split_opens(name: str, tmp_path: Path) -> None:
    spec = make(name, tmp_path)
    for split in spec.splits:
        dataset = opened(name, tmp_path, split)
        assert len(dataset) > 0
        assert dataset.labelled == (split not in UNLABELLED)


@pytest.mark.parametrize("name", ENTRIES)
def test_streams_a_labelled_and_an_unlabelled_batch(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    dataset = opened(name, tmp_path)
    for labelled in (True, False):
        stream = Stream([dataset], None, TransformConfig(crop=(16, 16)), (0, "s", "x"), 2, labelled, workers=0)
        (batch,) = next(stream.iterate(0))
        assert batch.image.shape == (2, 3, 16, 16) and batch.label.shape == (2, 16, 16)
        assert bool((batch.label != IGNORE).any()) == labelled
        assert batch.pixel.all()
        assert [m.domain for m in batch.meta] == [name, name]


@pytest.mark.parametrize("name", ENTRIES)
def test_audits_clean_and_shows(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "data")
    assert [str(p) for p in audit.check(name, root=tmp_path / "data")] == []
    page = audit.show(name, tmp_path / "page.html", root=tmp_path / "data").read_text()
    assert len(page) < 5_000_000 and page.count("<img") == 2 * len(KEYS)
    for label in catalog.load(name).native().classes:
        assert label in page


@pytest.mark.parametrize("name", PALETTE)
def test_palette_labels_are_stored_as_indices(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    path = opened(name, tmp_path).paths(0)[1]
    assert path is not None
    with Image.open(path) as image:
        assert image.mode == "P"


def test_gta5_shares_are_disjoint_and_complete(tmp_path: Path) -> None:
    make("gta5", tmp_path)
    train, val, fit = (opened("gta5", tmp_path, s).ids for s in ("train", "val", "fit"))
    assert sorted(val + fit) == train and val == train[::50]


def test_cityscapes_prefers_the_label_kind_that_covers_more(tmp_path: Path) -> None:
    make("cityscapes", tmp_path, 0)
    make("cityscapes", tmp_path, 1)
    assert str(opened("cityscapes", tmp_path).paths(0)[1]).endswith("labelTrainIds.png")
    next((tmp_path / "gtFine/train").rglob("*_labelTrainIds.png")).unlink()
    dataset = opened("cityscapes", tmp_path)
    assert str(dataset.paths(0)[1]).endswith("labelIds.png") and not dataset.unlabelled_ids


def test_idd_lite_instance_files_are_no_stray_labels(tmp_path: Path) -> None:
    make("idd_lite", tmp_path)
    label = tmp_path / f"gtFine/train/{KEYS[0]}_label.png"
    label.with_name(label.name.replace("_label", "_inst_label")).write_bytes(label.read_bytes())
    assert audit.check("idd_lite", root=tmp_path) == []


def test_camvid_covers_street7(tmp_path: Path) -> None:
    make("camvid", tmp_path)
    coverage = opened("camvid", tmp_path, space="street7").coverage
    assert coverage is not None
    assert coverage.merged == {
        "living": ("pedestrian", "bicyclist"),
        "roadside": ("pole", "sign", "fence"),
        "far": ("building", "tree"),
    }
    assert coverage.lost == () and coverage.missing == ()


def test_cityscapes_covers_street7(tmp_path: Path) -> None:
    make("cityscapes", tmp_path)
    dataset = opened("cityscapes", tmp_path, space="street7")
    coverage = dataset.coverage
    assert coverage is not None
    assert coverage.lost == () and coverage.missing == ()
    assert coverage.merged["sidewalk"] == ("sidewalk", "terrain")
    assert coverage.merged["living"] == ("person", "rider")
    assert coverage.merged["vehicle"] == ("car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert set(dataset.read_label(0).ravel()) == {*range(7), IGNORE}


def test_idd_lite_to_camvid_says_how_to_declare_a_map(tmp_path: Path) -> None:
    make("idd_lite", tmp_path)
    coverage = opened("idd_lite", tmp_path, space="camvid11").coverage
    assert coverage is not None and set(coverage.lost) == {"sidewalk", "living", "vehicle", "roadside", "far"}
    assert "car" in coverage.missing


@pytest.mark.skipif(not REAL, reason="SEGUE_REAL_DATA (folder with camvid and idd_lite) is not set")
@pytest.mark.parametrize(
    ("name", "split", "number"),
    [("camvid", "train", 367), ("camvid", "val", 101), ("idd_lite", "train", 1403), ("idd_lite", "val", 204)],
)
def test_real_data(name: str, split: str, number: int) -> None:
    dataset = opened(name, Path(str(REAL)) / name, split, "street7")
    assert len(dataset) == number and not dataset.unlabelled_ids
    shares, labelled, counted = audit.class_shares(dataset, limit=20)
    assert counted == 20 and labelled > 0.8 and min(shares) > 0


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'cityscapes'"):
        open_dataset("cityscape", DatasetConfig(), "train")
