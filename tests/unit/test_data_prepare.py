"""``segue data prepare``: exactly what the reader would resize, self-describing, interruptible, checked."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command import files, refused, segue
from helpers.miniatures import make, own, save
from segue.config import DatasetConfig, TransformConfig
from segue.data import audit, prepare
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.data.memory_map import IMAGES, INDEX, LABELS, MemoryMapDataset
from segue.data.reference import parse
from segue.data.transforms import apply, draws
from segue.labels import load_space

SIZE = (16, 20)
FORMATS = prepare.FORMATS
PLAIN = TransformConfig(flip=0)


def opened(name: str, root: Path, split: str = "train", space: str | None = None, **config: Any) -> Dataset:
    return open_dataset(name, DatasetConfig(root=root, **config), split, load_space(space) if space else None)


def written(name: str, root: Path | None, out: Path, format: str, **options: Any) -> Path:
    prepare.prepare(name, SIZE, out, format=format, root=root, workers=2, **options).run()
    return out


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["cityscapes", "gta5", "camvid", "synthia"])
def test_equals_what_the_reader_resizes(name: str, format: str, tmp_path: Path) -> None:
    make(name, tmp_path / "files")
    copy = written(name, tmp_path / "files", tmp_path / "copy", format)
    source, target = opened(name, tmp_path / "files", size=SIZE), opened(name, copy)
    assert target.ids == source.ids
    assert target.space == source.space
    for index in range(len(source)):
        assert np.array_equal(target.read_image(index), source.read_image(index))
        whole, small = source.read_sample(index, True), target.read_sample(index, True)
        expected = apply(whole.image, whole.label, source.size, PLAIN, draws(0, index))
        assert np.array_equal(small.image, expected.image)
        assert expected.label is not None
        assert np.array_equal(small.label, expected.label)
    assert audit.check(name, root=copy) == []


@pytest.mark.parametrize("format", FORMATS)
def test_scored_splits_keep_label_resolution(format: str, tmp_path: Path) -> None:
    make("cityscapes", tmp_path / "files")
    copy = written("cityscapes", tmp_path / "files", tmp_path / "copy", format)
    source = opened("cityscapes", tmp_path / "files", "val", size=SIZE)
    for space in (None, "street7"):
        target = opened("cityscapes", copy, "val", space)
        image, label = target.read_scored(0)
        expected = opened("cityscapes", tmp_path / "files", "val", space).read_label(0)
        assert np.array_equal(image, source.read_image(0))
        assert np.array_equal(label, expected)
    assert target.read_sample(0, True).label.shape == SIZE  # type: ignore[union-attr]
    assert not opened("cityscapes", copy, "test").labelled
    for native, shape in ((True, source.read_label(0).shape), (False, SIZE)):
        other = written("cityscapes", tmp_path / "files", tmp_path / f"{native}", format, native_labels=native)
        for split in ("train", "val"):
            assert opened("cityscapes", other, split).read_label(0).shape == shape


@pytest.mark.parametrize("format", FORMATS)
def test_a_user_folder_keeps_classes_maps_and_patterns(format: str, tmp_path: Path) -> None:
    root = own(tmp_path / "files", 5, extra="maps: {street7: {grass: sidewalk}}\n")
    copy = written(str(root), None, tmp_path / "copy", format)
    assert opened(str(copy), copy, space="street7", exclude=["[12]"]).ids == ["0", "3", "4"]
    for space in (None, "street7"):
        source, target = opened(str(root), root, space=space, size=SIZE), opened(str(copy), copy, space=space)
        sample = source.read_sample(2, True)
        expected = apply(sample.image, sample.label, SIZE, PLAIN, draws(0)).label
        assert np.array_equal(target.read_label(2), expected)  # type: ignore[arg-type]
    shutil.rmtree(root)
    assert audit.check(str(copy)) == [], "a copy stands alone"


@pytest.mark.parametrize("format", FORMATS)
def test_mapped_labels_and_a_copy_of_a_copy(format: str, tmp_path: Path) -> None:
    make("camvid", tmp_path / "files")
    copy = written("camvid", tmp_path / "files", tmp_path / "copy", format, labels="street7")
    assert opened("camvid", copy).space.name == "street7"
    second = written("camvid", copy, tmp_path / "second", "raw")
    for split in ("train", "val"):
        a, b = opened("camvid", copy, split), opened("camvid", second, split)
        assert all(np.array_equal(x, y) for x, y in zip(a.read_scored(1), b.read_scored(1), strict=True))


def test_shared_images_are_stored_once(tmp_path: Path) -> None:
    make("gta5", tmp_path / "files")
    for native in (False, None):
        options = {"splits": ("val", "train", "fit"), "native_labels": native}
        for format in FORMATS:
            copy = written("gta5", tmp_path / "files", tmp_path / f"{format}-{native}", format, **options)
            train, val, fit = (opened("gta5", copy, split) for split in ("train", "val", "fit"))
            assert sorted(val.ids + fit.ids) == train.ids == opened("gta5", tmp_path / "files").ids
            if format == "png":
                assert len(list((copy / "images").rglob("*.png"))) == len(train)
            else:
                shared = len(train) + (0 if native is False else len(val))
                assert (copy / IMAGES).stat().st_size == shared * SIZE[0] * SIZE[1] * 3
            source = opened("gta5", tmp_path / "files", "val", size=SIZE)
            image, label = val.read_scored(0)
            assert np.array_equal(image, source.read_image(0))
            assert label.shape == (SIZE if native is False else source.read_label(0).shape)
            assert fit.read_label(0).shape == SIZE
            assert audit.check(str(copy)) == []


class Stopped(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("after", [1, 4])
def test_goes_on_after_an_interruption(format: str, after: int, tmp_path: Path) -> None:
    root = own(tmp_path / "files", 6)
    whole = files(written(str(root), None, tmp_path / "copy", format))
    shutil.rmtree(tmp_path / "copy")

    def stop(done: int, total: int) -> None:
        if done == after:
            raise Stopped

    with pytest.raises(Stopped):
        prepare.prepare(str(root), SIZE, tmp_path / "copy", format=format, workers=1).run(stop)
    with pytest.raises(DataError, match=r"no dataset\.yaml there"):
        opened(str(tmp_path / "copy"), tmp_path / "copy")
    if format == "raw":
        # killed in the middle of a write: half a row, half a line
        for name in (IMAGES, LABELS, "rows.jsonl"):
            with (tmp_path / "copy" / name).open("ab") as file:
                file.write(b"[1")
    plan = prepare.prepare(str(root), SIZE, tmp_path / "copy", format=format)
    assert 0 < len(plan.todo) <= 6 - after
    plan.run()
    assert files(tmp_path / "copy") == whole
    again = prepare.prepare(str(root), SIZE, tmp_path / "copy", format=format)
    assert again.finished and not again.todo
    again.run()
    assert files(tmp_path / "copy") == whole


def test_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    root = own(tmp_path / "files")
    with pytest.raises(DataError, match=r"files holds other files: choose an empty folder"):
        prepare.prepare(str(root), SIZE, root)
    copy = written(str(root), None, tmp_path / "copy", "png")
    before = files(copy)
    with pytest.raises(DataError, match=r"was prepared with size \[16, 20\], not \[8, 8\]"):
        prepare.prepare(str(root), (8, 8), copy)
    with pytest.raises(DataError, match="was prepared with format png, not raw"):
        prepare.prepare(str(root), SIZE, copy, format="raw")
    save(root / "images/train/9.png", np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"list of files has changed.*another folder, or delete it"):
        prepare.prepare(str(root), SIZE, copy)
    (copy / prepare.RECORD).write_text("{")
    with pytest.raises(DataError, match=r"prepared\.json is damaged"):
        prepare.prepare(str(root), SIZE, copy)
    (copy / prepare.RECORD).write_bytes(before[prepare.RECORD])
    assert files(copy) == before


@pytest.mark.parametrize("format", FORMATS)
def test_check_tells_that_the_source_has_changed(format: str, tmp_path: Path) -> None:
    root = own(tmp_path / "files", 4)
    copy = written(str(root), None, tmp_path / "copy", format)
    (root / "images/train/0.png").unlink()
    save(root / "images/train/new.png", np.zeros((24, 32, 3), np.uint8))
    save(root / "images/train/1.png", np.zeros((24, 32, 3), np.uint8))
    (problem,) = audit.check(str(copy))
    assert problem.kind == "stale" and problem.warning
    assert "1 new, 1 gone, 1 of another size" in problem.message
    assert segue("data", "check", copy, "--workers", 0).code == 0, "a warning is no fault"


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_source_file_is_named_and_mended(format: str, tmp_path: Path) -> None:
    root = own(tmp_path / "files", 6)
    whole = files(written(str(root), None, tmp_path / "whole", format))
    path = root / "images/train/4.png"
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(40))
    command = ("data", "prepare", root, "--size", "16x20", "--out", tmp_path / "copy", "--format", format)
    refused(segue(*command, "--workers", 1), str(path))
    path.write_bytes(data)
    done = segue(*command)
    assert done.code == 0, done
    assert files(tmp_path / "copy") == whole


def test_full_disk_keeps_what_is_written(tmp_path: Path) -> None:
    root = own(tmp_path / "files", 6)
    whole = files(written(str(root), None, tmp_path / "whole", "raw"))
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    row_bytes = SIZE[0] * SIZE[1] * 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * row_bytes + 100, kept[1]))
    try:
        with pytest.raises(DataError, match=r"disk is full after 3 of 6 images.*same command again"):
            written(str(root), None, tmp_path / "copy", "raw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    plan = prepare.prepare(str(root), SIZE, tmp_path / "copy", format="raw")
    assert len(plan.todo) == 3
    plan.run()
    assert files(tmp_path / "copy") == whole


def test_space_is_checked_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = own(tmp_path / "files", 6)
    plan = prepare.prepare(str(root), SIZE, tmp_path / "copy", format="raw")
    assert plan.needed_bytes() == 6 * SIZE[0] * SIZE[1] * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 0, 10))  # type: ignore[attr-defined]
    done = segue("data", "prepare", root, "--size", "16x20", "--out", tmp_path / "copy")
    refused(done, "needs about", "are free")
    assert not (tmp_path / "copy").exists()


def test_raw_images_are_views_and_workers_open_them_anew(tmp_path: Path) -> None:
    copy = written(str(own(tmp_path / "files", 8)), None, tmp_path / "copy", "raw")
    dataset = opened(str(copy), copy)
    assert isinstance(dataset, MemoryMapDataset)
    image = dataset.read_image(0)
    assert not image.flags.owndata and not image.flags.writeable
    assert dataset._maps and not pickle.loads(pickle.dumps(dataset))._maps, "no pixels travel"
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).read_image(7), dataset.read_image(7))
    batches = []
    for workers in (0, 2):
        stream = Stream([dataset], None, TransformConfig(crop=(8, 8), brightness=0.3), (0, "s", "x"), 4, True, workers)
        iterator = stream.iterate()
        batches.append([next(iterator)[0] for _ in range(3)])
    for a, b in zip(*batches, strict=True):
        assert (a.image == b.image).all() and (a.label == b.label).all()


def _shorter(copy: Path) -> None:
    os.truncate(copy / IMAGES, 100)


def _no_labels(copy: Path) -> None:
    (copy / LABELS).unlink()


def _bad_index(copy: Path) -> None:
    (copy / INDEX).write_text('{"size": [16, 20]}')


def _wrong_rows(copy: Path) -> None:
    text = (copy / INDEX).read_text()
    (copy / INDEX).write_text(text.replace('"rows":[0,', '"rows":[77,'))


@pytest.mark.parametrize("damage", [_shorter, _no_labels, _bad_index, _wrong_rows])
def test_a_damaged_copy_is_refused_when_opened(damage: Any, tmp_path: Path) -> None:
    copy = written(str(own(tmp_path / "files")), None, tmp_path / "copy", "raw")
    damage(copy)
    with pytest.raises(DataError, match=str(copy)):
        opened(str(copy), copy)


def test_check_finds_one_changed_byte_of_a_copy(tmp_path: Path) -> None:
    copy = written(str(own(tmp_path / "files")), None, tmp_path / "copy", "raw")
    with (copy / IMAGES).open("r+b") as file:
        file.seek(SIZE[0] * SIZE[1] * 3 + 5)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    (problem,) = audit.check(str(copy))
    assert problem.kind == "damaged" and "image '1'" in problem.message


MODULE = """
import numpy as np
class Frames:
    classes = ["road", "living"]
    def __init__(self, split="train"):
        self.number = {"train": 4, "val": 2}[split]
    def __len__(self):
        return self.number
    def __getitem__(self, i):
        return np.full((24, 32, 3), 10 * i, np.uint8), np.tile(np.array([0, 1, 255, -1]), 192).reshape(24, 32)
"""


def test_python_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames_for_segue.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "python:frames_for_segue:Frames"
    copy = written(f"{name}:val", None, tmp_path / "copy", "raw", labels="street7")
    target = opened(str(copy), copy, "val")
    assert target.ids == ["000000", "000001"] and target.space.name == "street7"
    assert target.read_image(1).mean() == 10
    assert target.read_label(0).tolist() == np.tile([0, 2, 255, 255], 192).reshape(24, 32).tolist()
    assert audit.check(f"{name}:val", labels="street7") == []
    assert [p.kind for p in audit.check(str(copy))] == []
    refused(segue("data", "check", name), "--labels")


def test_names_and_splits(tmp_path: Path) -> None:
    pairs = {
        "camvid": ("camvid", ""),
        "camvid:val": ("camvid", "val"),
        "real.zip/camvid:val": ("real.zip/camvid", "val"),
        "/data/a:b/c": ("/data/a:b/c", ""),
        "/data/a:b/c:fit": ("/data/a:b/c", "fit"),
        "python:module:Class": ("python:module:Class", ""),
        "python:a.module:Class:val": ("python:a.module:Class", "val"),
        "camvid:": ("camvid:", ""),
    }
    assert {text: parse(text) for text in pairs} == pairs
    (tmp_path / "odd:name").mkdir()
    assert parse(str(tmp_path / "odd:name")) == (str(tmp_path / "odd:name"), "")


def test_commands_refuse_clearly(tmp_path: Path) -> None:
    root = own(tmp_path / "files")
    base = ["data", "prepare", root, "--out", tmp_path / "copy"]
    refused(segue(*base, "--size", ""), "HEIGHTxWIDTH")
    refused(segue(*base, "--size", "16x20", "--format", "row"), "'row'", "did you mean 'raw'")
    refused(segue(*base, "--size", "16x20", "--labels", "street8"), "did you mean 'street7'")
    assert not (tmp_path / "copy").exists()
