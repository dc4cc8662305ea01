"""Labels are counted once, whatever happens meanwhile; published files are written and read as they are."""

from __future__ import annotations

import itertools
import json
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
from segue.data.statistics_files import BY_CLASS, BY_FILE, LIST, NAMES
from segue.jobs.run import run
from segue.labels import load_space


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the label files that are read from now on."""
    files: list[str] = []
    real = datasets.read_ids

    def noted(file: object, channel: int | None = None) -> np.ndarray:
        files.append(Path(str(file)).name)
        return real(file, channel)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets, "read_ids", noted)
    return files


def opened(root: Path, **settings: object) -> tuple[Dataset, DatasetConfig]:
    config = DatasetConfig.model_validate({"dataset": str(root), **settings})
    return open_dataset("yard", config, "train"), config


def counted(root: Path, said: list[str] | None = None, **settings: object) -> list[list[int]]:
    return class_pixels(*opened(root, **settings), say=([] if said is None else said).append).tolist()


def labels(root: Path, *road_rows: int) -> Path:
    """A yard whose n-th label has ``road_rows[n]`` rows of road above grass, and one ignored pixel."""
    own(root, len(road_rows))
    for n, rows in enumerate(road_rows):
        label = np.full(SIZE, 2, np.uint8)
        label[:rows] = 1
        label[-1, -1] = 7
        save(root / f"labels/train/{n}.png", label)
    return root


def expected(*road_rows: int) -> list[list[int]]:
    height, width = SIZE
    return [[r * width - (r == height), max(0, (height - r) * width - 1)] for r in road_rows]


def by_hand(dataset: Dataset) -> list[list[int]]:
    return [[int((dataset.read_label(i) == c).sum()) for c in range(len(dataset.space))] for i in range(len(dataset))]


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


def test_published_files_have_the_published_form(tmp_path: Path) -> None:
    root = labels(tmp_path / "yard", 24, 0)
    done = segue("data", "statistics", root, "--out", tmp_path / "out")
    assert done.code == 0 and done.out.split() == [str(tmp_path / "out" / n) for n in NAMES]
    first, second = "labels/train/0_labelTrainIds.png", "labels/train/1_labelTrainIds.png"
    text = (tmp_path / "out" / LIST).read_text()
    assert text.startswith(f'[\n  {{\n    "0": 767,\n    "file": "{first}"\n  }},\n')
    assert json.loads(text) == [{"0": 767, "file": first}, {"1": 767, "file": second}]
    assert json.loads((tmp_path / "out" / BY_FILE).read_text()) == {first: {"0": 767}, second: {"1": 767}}
    assert json.loads((tmp_path / "out" / BY_CLASS).read_text()) == {"0": [[first, 767]], "1": [[second, 767]]}
    refused(segue("data", "statistics", root, "--out", tmp_path / "out", "--labels", "street7"), "drop --labels")


def published(root: Path, *road: int, name: Callable[[int], object] = lambda n: f"x/{n}_labelTrainIds.png") -> Path:
    """The three files, with ``road[n]`` pixels of road and 5 of grass in the n-th label."""
    rows = [(name(n), {"0": r, "1": 5}) for n, r in enumerate(road)]
    contents = {
        LIST: [{**c, "file": f} for f, c in rows],
        BY_FILE: {str(f): c for f, c in rows},
        BY_CLASS: {k: [[f, c[k]] for f, c in rows] for k in ("0", "1")},
    }
    root.mkdir(exist_ok=True)
    for file, content in contents.items():
        (root / file).write_text(json.dumps(content, indent=2))
    return root


@pytest.mark.parametrize(
    "name", ["x/{}_labelTrainIds.png", "D:\\data\\{}_labelTrainIds.png", "{}.png", "a/b/{}_labelIds.png"]
)
@pytest.mark.parametrize("kept", [*NAMES, None])
def test_published_files_replace_the_scan(name: str, kept: str | None, tmp_path: Path, read: list[str]) -> None:
    root = published(labels(tmp_path / "yard", 1, 2), 100, 200, name=lambda n: name.format(n))
    for file in NAMES:
        if kept not in (None, file):
            (root / file).unlink()
    said: list[str] = []
    assert counted(root, said) == [[100, 5], [200, 5]] and read == []
    assert said[0].startswith("class statistics of yard: 2 of 2 images from")
    elsewhere = published(tmp_path / "given", 7, 8)
    assert counted(root, statistics=str(elsewhere)) == [[7, 5], [8, 5]]
    assert counted(root, statistics=str(elsewhere / BY_CLASS)) == [[7, 5], [8, 5]]


def test_what_published_files_do_not_cover_is_counted(tmp_path: Path, read: list[str]) -> None:
    root = published(labels(tmp_path / "yard", 3), 100, 200)
    save(root / "images/train/9.png", picture(9))
    save(root / "labels/train/9.png", np.full(SIZE, 1, np.uint8))
    said: list[str] = []
    assert counted(root, said) == [[100, 5], [768, 0]] and read == ["9.png"]
    assert "1 entries belong to no image of the split, the first is x/1_labelTrainIds.png" in said[0]


def test_one_name_for_several_labels_is_told_and_counted(tmp_path: Path, read: list[str]) -> None:
    root = labels(tmp_path / "yard", 3)
    for part in ("a", "b"):
        save(root / f"images/train/{part}/1.png", picture(1))
        save(root / f"labels/train/{part}/1.png", np.full(SIZE, 2, np.uint8))
    said: list[str] = []
    assert counted(published(root, 100, 200), said) == [[100, 5], [0, 768], [0, 768]]
    assert "1 entries belong to several files of that name" in said[0] and read == ["1.png", "1.png"]


def test_positions_are_believed_after_a_look(tmp_path: Path) -> None:
    root = labels(tmp_path / "yard", 3, 5)
    rows = [{"0": road, "1": grass, "file": n} for n, (road, grass) in enumerate(expected(3, 5))]
    given = tmp_path / "given.json"
    given.write_text(json.dumps(rows))
    assert counted(root, statistics=str(given)) == expected(3, 5)
    given.write_text(json.dumps([{**row, "file": 1 - int(row["file"])} for row in rows]))
    with pytest.raises(DataError, match=r"by their position in a listing, and not in this one: .*labels/train/0\.png"):
        counted(root, statistics=str(given))
    given.write_text(json.dumps([{**row, "file": 4} for row in rows]))
    with pytest.raises(DataError, match="names image 4 of a listing, the data set has 2"):
        counted(root, statistics=str(given))


def test_unknown_classes_are_told_and_void_is_not_one(tmp_path: Path) -> None:
    root = labels(tmp_path / "yard", 3)
    (root / LIST).write_text(json.dumps([{"0": 4, "19": 3, "255": 8, "file": "0.png"}]))
    said: list[str] = []
    assert counted(root, said) == [[4, 0]]
    assert said[0].endswith("no class 19 in the data set, left out")


def test_contradictions_are_refused(tmp_path: Path) -> None:
    root = published(labels(tmp_path / "yard", 1, 2), 100, 200)
    rows = json.loads((root / LIST).read_text())
    (root / BY_FILE).write_text(json.dumps({r["file"]: {"0": 100, "1": 5} for r in rows}))
    with pytest.raises(DataError, match=r"contradiction, .*labels/train/1\.png has 200 and 100 pixels of class 0"):
        counted(root)
    (root / BY_FILE).unlink()
    (root / LIST).write_text(json.dumps([*rows, {**rows[0], "1": 6}]))
    with pytest.raises(DataError, match=r"contradiction, .*labels/train/0\.png has 5 and 6 pixels of class 1"):
        counted(root)
    (root / LIST).write_text(json.dumps([*rows, rows[0]]))
    assert counted(root) == [[100, 5], [200, 5]], "the same twice is none"


BROKEN = {
    "cut": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "hello",
    "a number": lambda text: "3",
    "no file": lambda text: '[{"0": 1}]',
    "negative": lambda text: '[{"0": -1, "file": "0.png"}]',
    "fraction": lambda text: '[{"0": 1.5, "file": "0.png"}]',
    "a name": lambda text: '[{"road": 1, "file": "0.png"}]',
    "nested": lambda text: "[" * 100_000,
    "a file that is none": lambda text: '[{"0": 1, "file": null}]',
    "pairs of three": lambda text: '{"0": [["0.png", 1, 2]]}',
    "list of numbers": lambda text: "[1, 2]",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_published_files_are_named(kind: str, tmp_path: Path) -> None:
    root = published(labels(tmp_path / "yard", 1, 2), 100, 200)
    path = root / LIST
    path.write_text(BROKEN[kind](path.read_text()))
    with pytest.raises(DataError, match=LIST):
        counted(root)


@pytest.mark.parametrize(("given", "word"), [("nothing", "cannot read"), ("yard", "holds none of")])
def test_given_statistics_must_be_there_and_fit(given: str, word: str, tmp_path: Path) -> None:
    root = labels(tmp_path / "yard", 1)
    with pytest.raises(DataError, match=word):
        counted(root, statistics=str(tmp_path / given))
    other = published(tmp_path / "other", 3, name=lambda n: f"{n + 5}.png")
    with pytest.raises(DataError, match="no entry belongs to an image of 'yard'"):
        counted(root, statistics=str(other))


def test_written_files_are_read_back(tmp_path: Path, read: list[str]) -> None:
    make("cityscapes", tmp_path / "data", 1)
    assert (
        segue("data", "statistics", "cityscapes:train", "--root", tmp_path / "data", "--out", tmp_path / "out").code
        == 0
    )
    read.clear()
    config = DatasetConfig(dataset="cityscapes", root=tmp_path / "data", statistics=tmp_path / "out")
    dataset = open_dataset("cityscapes", config, "train", load_space("street7"))
    pixels = class_pixels(dataset, config)
    assert read == [] and pixels.tolist() == by_hand(dataset)


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
