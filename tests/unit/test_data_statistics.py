"""Labels are counted once, whatever happens meanwhile; published files are written and read as they are."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.command import WAIT_S, refused, segue
from helpers.counting import by_hand, counted, expected, labels, opened
from helpers.fingerprint import fingerprint
from helpers.miniatures import SIZE, make, own, picture, save
from helpers.recipes import recipe
from segue import engine, recipes
from segue.config import DatasetConfig
from segue.data import dataset as datasets
from segue.data import memory_map
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.statistics import class_pixels, histogram
from segue.jobs.run import run
from segue.labels import load_space


@pytest.mark.parametrize(("name", "kind"), [("gta5", 0), ("cityscapes", 1), ("synthia", 0), ("camvid", 0)])
def test_one_scan_serves_every_label_space(name: str, kind: int, tmp_path: Path, read: list[str]) -> None:
    make(name, tmp_path / "data", kind)
    config = DatasetConfig(dataset=name, root=tmp_path / "data")
    for space in (None, "street7", None):
        dataset = open_dataset(name, config, "train", load_space(space) if space else None)
        wanted = by_hand(dataset)
        read.clear()
        assert class_pixels(dataset, config).tolist() == wanted
        assert len(read) == (len(dataset) if read else 0)
    assert read == []


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1000, 300), (4100, 4201)])
def test_histogram_is_exact(shape: tuple[int, int]) -> None:
    ids = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ids[ids == 3] = 4
    ids[:-1] = 3  # in the largest an odd number above 2**24: more than single precision counts
    assert np.array_equal(histogram(ids), np.bincount(ids.ravel(), minlength=256))
    assert np.array_equal(histogram(ids[:, ::2]), np.bincount(ids[:, ::2].ravel(), minlength=256))


def test_only_changed_and_new_labels_are_counted_again(tmp_path: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", 3, 5, 24)
    before = set(root.rglob("*"))
    assert counted(root) == expected(3, 5, 24) and sorted(read) == ["0.png", "1.png", "2.png"]
    read.clear()
    assert counted(root) == expected(3, 5, 24) and read == []
    assert set(root.rglob("*")) == before, "nothing is written into the data"
    changed = root / "labels/train/1.png"
    status = changed.stat()
    save(changed, np.full(SIZE, 1, np.uint8))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    save(root / "images/train/3.png", picture(3))
    save(root / "labels/train/3.png", np.full(SIZE, 2, np.uint8))
    assert counted(root)[1:] == [[768, 0], *expected(24), [0, 768]] and sorted(read) == ["1.png", "3.png"]
    assert counted(root, limit=2) == [*expected(3), *expected(24)]


def test_labels_in_archives_are_told_by_their_checksums(tmp_path: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", 3, 5)

    times = itertools.count(1)

    def pack() -> Path:
        with zipfile.ZipFile(tmp_path / "yard.zip", "w") as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root))
        os.utime(tmp_path / "yard.zip", (0, next(times)))  # two within one tick of the clock would look the same
        return tmp_path / "yard.zip"

    changed, plain = root / "labels/train/0.png", [cv2.IMWRITE_PNG_COMPRESSION, 0]
    cv2.imwrite(str(changed), np.full(SIZE, 1, np.uint8), plain)
    assert counted(pack()) == [[768, 0], *expected(5)] and len(read) == 2
    length = changed.stat().st_size
    cv2.imwrite(str(changed), np.full(SIZE, 2, np.uint8), plain)
    assert changed.stat().st_size == length
    read.clear()
    assert counted(pack()) == [[0, 768], *expected(5)] and read == ["0.png"]


def test_memory_maps_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = own(tmp_path / "yard", 0)
    writer = memory_map.Writer(root, SIZE)
    for n in range(3):
        writer.append(picture(n), np.full(SIZE, n % 2, np.uint8))
    writer.finish({"train": (["0", "1"], [0, 1]), "val": (["0"], [2])})
    writer.close()
    assert counted(root) == [[768, 0], [0, 768]]
    config = DatasetConfig(dataset=str(root))
    assert class_pixels(open_dataset("yard", config, "val"), config).tolist() == [[768, 0]]
    monkeypatch.setattr(memory_map.MemoryMapDataset, "_label_bytes", None)
    assert counted(root) == [[768, 0], [0, 768]]


def test_labels_without_files_are_counted_at_every_start(tmp_path: Path) -> None:
    class Drawn(Dataset):
        def read_label(self, index: int) -> np.ndarray:
            return np.full(SIZE, (0, 7, 255)[index], np.uint8)

    drawn = Drawn("drawn", load_space("cityscapes19"), ["0", "1", "2"], None)
    drawn.labelled = True
    said: list[str] = []
    pixels = class_pixels(drawn, DatasetConfig(), say=said.append)
    assert pixels.sum() == 2 * 768 and pixels[0, 0] == pixels[1, 7] == 768
    assert said == ["the labels of 'drawn' cannot be recognised again: they are counted at every start"]
    with pytest.raises(DataError, match="no label files that 'statistics' could name"):
        class_pixels(drawn, DatasetConfig(statistics=tmp_path))


def test_damaged_labels_are_named_and_the_others_kept(tmp_path: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", *range(8))
    good = {n: (root / f"labels/train/{n}.png").read_bytes() for n in (2, 5)}
    for n, data in good.items():
        (root / f"labels/train/{n}.png").write_bytes(data[:40])
    with pytest.raises(DataError) as caught:
        counted(root)
    assert all(str(root / f"labels/train/{n}.png") in str(caught.value) for n in good)
    assert "2 labels of 'yard' cannot be counted" in str(caught.value)
    for n, data in good.items():
        (root / f"labels/train/{n}.png").write_bytes(data)
    read.clear()
    assert counted(root) == expected(*range(8)) and sorted(read) == ["2.png", "5.png"]


def test_values_outside_the_map_are_named_from_the_cache_too(tmp_path: Path) -> None:
    root = labels(tmp_path / "yard", 1, 2)
    save(root / "labels/train/1.png", np.full(SIZE, 9, np.uint8))
    for _ in range(2):
        with pytest.raises(DataError, match=r"labels/train/1\.png: label values 9 \(in 1 labels\) are not in the map"):
            counted(root)
    (root / "dataset.yaml").write_text((root / "dataset.yaml").read_text().replace("7: null", "7: null, 9: grass"))
    assert counted(root) == [*expected(1), [0, 768]]


def slowly(root: Path, log: Path, go: Path) -> None:
    """Count in a process of its own, which notes every label, and waits with the tenth until ``go`` exists."""
    real = datasets.read_ids

    def noted(file: object, channel: int | None = None) -> np.ndarray:
        with log.open("a") as stream:
            stream.write(f"{file}\n")
        while Path(str(file)).stem == "9" and not go.exists():
            time.sleep(0.01)
        return real(file, channel)  # type: ignore[arg-type]

    datasets.read_ids = noted  # type: ignore[assignment]
    counted(root)


def start(*arguments: Path) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=slowly, args=arguments)
    child.start()
    return child  # type: ignore[return-value]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_kill_at_any_moment_loses_nothing_that_was_counted(tmp_path: Path, cache: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", *([4] * 30))

    def kept() -> int:
        paths = list(cache.glob("statistics/*.sqlite"))
        with closing(sqlite3.connect(paths[0] if paths else ":memory:")) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'counts'").fetchall()
            return int(connection.execute("SELECT count(*) FROM counts").fetchone()[0]) if tables else 0

    child = start(root, tmp_path / "log", tmp_path / "go")
    wait_for(lambda: kept() >= 9)
    child.kill()
    child.join()
    found = kept()
    assert 9 <= found < 30
    assert counted(root) == expected(*([4] * 30))
    assert len(read) == 30 - found and "9.png" in read


def test_ctrl_c_stops_soon_and_keeps_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    root = labels(tmp_path / "yard", *([4] * 40))
    real = datasets.read_ids
    done: list[str] = []

    def stopping(file: object, channel: int | None = None) -> np.ndarray:
        time.sleep(0.01)
        if Path(str(file)).name == "12.png":
            raise KeyboardInterrupt
        ids = real(file, channel)  # type: ignore[arg-type]
        done.append(Path(str(file)).name)
        return ids

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datasets, "read_ids", stopping)
        counted(root)
    assert 2 <= len(done) < 39
    read.clear()
    assert counted(root) == expected(*([4] * 40))
    assert sorted(done + read) == sorted(f"{n}.png" for n in range(40))


def test_one_process_counts_and_the_others_wait(tmp_path: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", *([4] * 12))
    log, go = tmp_path / "log", tmp_path / "go"
    child = start(root, log, go)
    wait_for(log.exists)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        go.touch()

    assert class_pixels(*opened(root), say=say).tolist() == expected(*([4] * 12))
    child.join()
    assert child.exitcode == 0 and "waiting for it" in said[0]
    assert len(log.read_text().splitlines()) == 12 and read == []


@pytest.mark.parametrize("place", ["file/sub", "yard/cache"])
def test_a_cache_that_cannot_be_used_is_told(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    root = labels(tmp_path / "yard", 3)
    (tmp_path / "file").touch()
    (tmp_path / "spare").mkdir()
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / place))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    said: list[str] = []
    for _ in range(2):
        assert counted(root, said) == expected(3)
    assert len(read) == 1 and "set SEGUE_CACHE to a folder that stays" in said[0] and str(tmp_path / place) in said[0]
    assert not (root / "cache").exists()
    monkeypatch.setattr("tempfile.tempdir", str(root))
    with pytest.raises(DataError, match=r"no folder for the cache: .* set SEGUE_CACHE to one that can be written"):
        counted(root)


@pytest.mark.parametrize("junk", [b"", b"not a database", b"SQLite format 3\0" + bytes(84) + b"x" * 4000])
def test_a_damaged_cache_is_made_anew(junk: bytes, tmp_path: Path, cache: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", 3, 4)
    counted(root)
    (path,) = cache.glob("statistics/*.sqlite")
    path.write_bytes(junk)
    said: list[str] = []
    assert counted(root, said) == expected(3, 4) and len(read) == 4
    assert junk == b"" or "is damaged: it is made anew" in said[0]


def test_the_table_and_its_refusals(tmp_path: Path) -> None:
    root = labels(tmp_path / "yard", 1, 20)
    done = segue("data", "statistics", root, "--temperature", "inf", "--min-px", "600")
    header, road, grass = (line.split() for line in done.out.splitlines()[1:])
    assert header[:2] == ["class", "pixels"] and "600" in header
    assert road == ["road", "672", "43.807", "2", "1", "0.5"]
    assert grass == ["grass", "862", "56.193", "2", "1", "0.5"]
    for path in (root / "labels/train").iterdir():
        path.unlink()
    refused(segue("data", "statistics", root), "has no labels to count")


def test_a_recipe_with_rare_classes_resumes_to_the_same_bytes(
    scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(**rare: object) -> recipes.Recipe:
        data = recipe(scene_data, iterations=2, checkpoint_every=1, evaluate_every=2)
        data["stages"] = data["stages"][:1]
        data["stages"][0]["streams"] = {"source": {"rare_class": {"min_px": 30, "temperature": 0.05, **rare}}}
        return recipes.load(data)

    run(given(), tmp_path / "whole", device="cpu")
    assert (tmp_path / "cache/statistics").is_dir()

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.checkpoint, "prune", dying)
        with pytest.raises(KeyboardInterrupt):
            run(given(), tmp_path / "killed", device="cpu")
    run(given(), tmp_path / "killed", resume=True, device="cpu")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
    run(given(temperature=float("inf")), tmp_path / "other", device="cpu")
    assert fingerprint(tmp_path / "other") != fingerprint(tmp_path / "whole")
    with pytest.raises(recipes.ConfigError, match="did you mean 'train'"):
        run(given(classes=["trian"]), tmp_path / "named", device="cpu")
