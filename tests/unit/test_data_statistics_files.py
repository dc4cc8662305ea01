"""Class statistics in the form that other tools publish: read, checked, written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.command import refused, segue
from helpers.counting import by_hand, counted, expected, labels
from helpers.miniatures import SIZE, make, picture, save
from segue.config import DatasetConfig
from segue.data.dataset import open_dataset
from segue.data.errors import DataError
from segue.data.statistics import class_pixels
from segue.data.statistics_files import BY_CLASS, BY_FILE, LIST, NAMES
from segue.labels import load_space


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
