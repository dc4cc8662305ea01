"""The JSON index of CIL's loader: which pictures it means, what is wrong with a damaged one, what it lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import miniatures, published
from segue.config import DatasetConfig
from segue.convert import plan
from segue.data import scenes
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.ifn_index import has_index, read_index
from segue.data.listing import Pattern
from segue.data.store import Store
from segue.errors import UserError
from segue.foreign.erfnet import CIL_ORDER
from segue.foreign.files import located
from segue.labels import load_space
from segue.models.build import build_model

PATTERNS = [Pattern("leftImg8bit/{split}/{key}_leftImg8bit.png", "train")]
CITIES = ("aachen", "erfurt", "jena")


def image(city: str, number: int) -> str:
    return f"leftImg8bit/train/{city}/{city}_{number:06d}_leftImg8bit.png"


def label(city: str, number: int) -> str:
    return f"gtFine/train/{city}/{city}_{number:06d}_gtFine_labelIds.png"


def category(files: list[str], places: list[int]) -> tuple[list[str], list[list[int]]]:
    """One entry of ``files`` and of ``positions``."""
    return files, [[place, 0, 0, k] for k, place in enumerate(places)]


def index(**given: tuple[list[str], list[list[int]]]) -> dict[str, Any]:
    """An index object of the given categories, with the lists that are of no use here."""
    files, positions = (list(column) for column in zip(*given.values(), strict=True))
    empty: list[Any] = [[] for _ in given]
    more = {"types": [".png"] * len(given), "filters": empty, "folders": empty, "numerical_values": [None] * len(given)}
    return {"names": list(given), "files": files, "positions": positions, **more}


def write(root: Path, content: Any, name: str = "train.json") -> Store:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (root / "basic_files.json").write_text("{}")
    return Store(root)


def test_only_pictures_that_are_in_all_categories(tmp_path: Path) -> None:
    given = index(
        depth=category(["disparity/1.png"], [1]),
        color=category([image("aachen", k) for k in range(4)], [0, 10, 20, 30]),
        segmentation=category([label("aachen", k) for k in (3, 1)], [30, 10]),
    )
    found = read_index(write(tmp_path, given), "train.json", PATTERNS)
    assert list(found.items()) == [(f"aachen/aachen_{k:06d}", label("aachen", k)) for k in (1, 3)], "of depth only one"
    del given["names"][2], given["files"][2], given["positions"][2]
    found = read_index(write(tmp_path, given), "train.json", PATTERNS)
    assert len(found) == 4 and set(found.values()) == {""}, "without labels: every picture"


def test_paths_of_another_system_and_of_another_layout(tmp_path: Path) -> None:
    given = index(color=category([image("jena", 1).replace("/", "\\"), "/photos/7.png"], [0, 1]))
    assert list(read_index(write(tmp_path, given), "train.json", PATTERNS)) == ["jena/jena_000001", "photos/7.png"]


GOOD = index(
    color=category([image("jena", 1), image("jena", 2)], [0, 1]),
    segmentation=category([label("jena", 1), label("jena", 2)], [0, 1]),
)
DAMAGED: list[tuple[str, Any]] = [
    ("no index", "{"),
    ("no index", "[1, 2]"),
    ("no index", "3"),
    ("no list 'files'", {k: v for k, v in GOOD.items() if k != "files"}),
    ("1 lists of files", GOOD | {"files": GOOD["files"][:1]}),
    ("2 files, but 1 positions", GOOD | {"positions": [GOOD["positions"][0][:1], GOOD["positions"][1]]}),
    ("one place, 0", GOOD | {"positions": [[[0, 0, 0, 0], [0, 0, 0, 1]], GOOD["positions"][1]]}),
    ("no index", GOOD | {"positions": [[3, 4], [5, 6]]}),
    ("no index", GOOD | {"positions": [[[], []], [[], []]]}),
    ("no index", GOOD | {"files": [[1, 2], [3, 4]]}),
    ("no index", GOOD | {"names": None}),
    ("no picture that has 'color' and 'segmentation'", GOOD | {"positions": [GOOD["positions"][0], [[7], [8]]]}),
    ("no picture that has 'color'", index(depth=category(["a.png"], [0]))),
    ("no picture that has 'color'", GOOD | {"names": [], "files": [], "positions": []}),
]


@pytest.mark.parametrize(("words", "content"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_index_is_told_with_its_file(words: str, content: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_index(write(tmp_path, content), "train.json", PATTERNS)
    assert str(tmp_path / "train.json") in str(error.value) and words in str(error.value)
    assert "rename it" in str(error.value)


def test_a_json_file_alone_is_no_index(tmp_path: Path) -> None:
    store = write(tmp_path, GOOD)
    assert has_index(store, "train.json") and not has_index(store, "test.json")
    (tmp_path / "basic_files.json").unlink()
    assert not has_index(store, "train.json")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Cityscapes with two images of each city below what ``IFN_DIR_DATASET`` names."""
    root = tmp_path / "Dataset/cityscapes"
    scenes.write(root, num=1, seed=1, domain=scenes.domain("city"), size=(64, 128), split="val")
    spec_ids = np.array([7, 8, 11, 26], np.uint8)
    for city in CITIES:
        for number in (1, 2):
            miniatures.save(root / image(city, number), miniatures.picture(number, (8, 16)))
            miniatures.save(root / label(city, number), np.resize(spec_ids, (8, 16)))
    return root


def opened(split: str = "train", **config: Any) -> Dataset:
    return open_dataset("cityscapes", DatasetConfig(**config), split)


def test_an_index_lists_the_split_of_the_folder_that_the_variable_names(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IFN_DIR_DATASET", str(tree.parent))
    for name in ("SEGUE_DATA", "CITYSCAPES_DATASET"):
        monkeypatch.delenv(name, raising=False)
    assert len(opened()) == 6
    listed = [("jena", 2), ("aachen", 1), ("erfurt", 1)]
    files = {"color": image, "segmentation": label}
    write(tree, index(**{k: category([make(*x) for x in listed], [5, 0, 3]) for k, make in files.items()}))
    found = opened()
    assert found.ids == ["aachen/aachen_000001", "erfurt/erfurt_000001", "jena/jena_000002"]
    assert found.root == tree and not found.unlabelled_ids and found.read_label(0).shape == (8, 16)
    assert opened(include=("erfurt/*",)).ids == ["erfurt/erfurt_000001"]
    assert len(opened("val")) == 1, "no validation.json: the folder"


def test_an_index_that_is_older_than_the_folder(tree: Path) -> None:
    write(tree, index(color=category([image("jena", 9)], [0]), segmentation=category([label("jena", 9)], [0])))
    with pytest.raises(DataError, match=r"not below.*jena/jena_000009"):
        opened(root=tree)


def test_validation_json_is_val(tree: Path) -> None:
    write(tree, "{", "validation.json")
    with pytest.raises(DataError, match=r"validation\.json is no index"):
        opened("val", root=tree)
    assert len(opened(root=tree)) == 6


def test_checkpoints_are_found_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Checkpoints/erfnet/erfnet_incremental_set12/models"
    for epoch in (9, 99, 199):
        (folder / f"weights_{epoch}").mkdir(parents=True)
        torch.save(published.erfnet(11), folder / f"weights_{epoch}/model.pth")
    last = folder / "weights_199/model.pth"
    monkeypatch.delenv("IFN_DIR_CHECKPOINT", raising=False)
    assert located(Path("erfnet_incremental_set12")) == Path("erfnet_incremental_set12")
    assert located(folder.parent) == last, "a folder of its code by its path"
    monkeypatch.setenv("IFN_DIR_CHECKPOINT", str(tmp_path / "Checkpoints"))
    monkeypatch.chdir(tmp_path)
    assert located(Path("erfnet_incremental_set12")) == last
    assert located(Path("erfnet/erfnet_incremental_set12/models/weights_9/model.pth")) == folder / "weights_9/model.pth"
    (tmp_path / "model.pth").write_bytes(b"")
    assert located(Path("model.pth")) == Path("model.pth"), "what is here comes first"
    found = plan(Path("erfnet_incremental_set12"))
    assert found.path == last and not found.faults
    model = build_model({"name": "erfnet", "weights": "erfnet_incremental_set12"}, 19)
    given = published.erfnet(11)
    torch.testing.assert_close(model.encoder.initial_block.conv.weight, given["encoder.initial_block.conv.weight"])
    with pytest.raises(UserError, match="no weights file erfnet_set9"):
        plan(Path("erfnet_set9"))


@pytest.mark.parametrize(("outputs", "words"), [(5, "in the order of CIL's task"), (19, "CIL"), (6, "")])
def test_the_order_of_the_outputs_is_told(outputs: int, words: str, tmp_path: Path) -> None:
    torch.save(published.erfnet(outputs), tmp_path / "model.pth")
    foreign = plan(tmp_path / "model.pth").foreign
    space = load_space("cityscapes19")
    expected = tuple(space.classes[i] for i in CIL_ORDER[:outputs]) if outputs != 6 else None
    assert foreign.classes == expected
    told = [note for note in foreign.notes if "order" in note]
    assert bool(told) == (outputs != 6) and words in " ".join(told)
