"""Damage inside a zip archive, and inside a memory-mapped copy."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuzz.damage import cut, flip, overwrite
from helpers.miniatures import own
from segue.config import DatasetConfig
from segue.data import audit
from segue.data.dataset import open_dataset
from segue.data.errors import DataError
from segue.data.prepare import prepare

Pixels = list[tuple[np.ndarray, np.ndarray]]


def pixels(root: Path) -> Pixels:
    """All images and labels, copied out of any memory map."""
    dataset = open_dataset("yard", DatasetConfig(root=root), "train")
    return [(dataset.read_image(i).copy(), dataset.read_label(i).copy()) for i in range(len(dataset))]


def same(a: Pixels, b: Pixels) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)
    )


def outcome(root: Path, whole: Pixels, name: str) -> str:
    """ "refused" (``DataError`` that names the file), "checked" (by ``data check`` alone) or "harmless"."""
    told = ""
    try:
        now = pixels(root)
    except DataError as error:
        told = str(error)
        assert name in told, told
    try:
        found = [p for p in audit.check(str(root)) if not p.warning]
    except DataError as error:
        assert name in str(error), error
        found = []
        assert told, f"data check refuses what reads well: {error}"
        return "refused"
    if told:
        assert found, f"data check misses what readers refuse: {told}"
        return "refused"
    if found:
        return "checked"
    assert same(now, whole), "other pixels, and nobody complains"
    return "harmless"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip of three images and labels, stored and deflated in turn."""
    root = own(tmp_path / "yard")
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for n, member in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
            method = zipfile.ZIP_DEFLATED if n % 2 else zipfile.ZIP_STORED
            file.write(member, f"yard/{member.relative_to(root)}", method)
    return path


@pytest.mark.parametrize(("damage", "number"), [(flip, 50), (cut, 15), (overwrite, 25)])
def test_damaged_zip(damage: Callable[..., bytes], number: int, archive: Path, tmp_path: Path) -> None:
    whole = pixels(archive / "yard")
    data = archive.read_bytes()
    outcomes = []
    for seed in range(number):
        path = tmp_path / f"{seed}.zip"
        path.write_bytes(damage(data, np.random.default_rng(seed)))
        if b"dataset.yaml" not in path.read_bytes():
            continue
        try:
            outcomes.append(outcome(path / "yard", whole, path.name))
        except AssertionError as failure:
            # a member whose name was hit is another file, or none: it is missed by its pair, or nothing knows of it
            assert "other pixels" in str(failure), failure
            assert len(pixels(path / "yard")) != len(whole) or renamed(path, archive), failure
            outcomes.append("renamed")
    assert outcomes.count("refused") > len(outcomes) // 3, outcomes


def renamed(path: Path, archive: Path) -> bool:
    with zipfile.ZipFile(path) as now, zipfile.ZipFile(archive) as then:
        return now.namelist() != then.namelist()


RAW_FILES = ("images.u8", "labels.u8", "memory_map.json", "dataset.yaml")


@pytest.mark.parametrize("file", RAW_FILES)
@pytest.mark.parametrize(("damage", "number"), [(flip, 12), (cut, 8), (overwrite, 8)])
def test_damaged_memory_map(file: str, damage: Callable[..., bytes], number: int, tmp_path: Path) -> None:
    root = tmp_path / "yard"
    copy = tmp_path / "copy"
    prepare(str(own(root)), (16, 20), copy, format="raw").run()
    whole = pixels(copy)
    data = (copy / file).read_bytes()
    for seed in range(number):
        (copy / file).write_bytes(damage(data, np.random.default_rng(seed)))
        if file == "dataset.yaml":
            # a YAML text has no checksum: it is refused, or means something else
            try:
                pixels(copy)
            except DataError as error:
                assert str(copy) in str(error) or "yard" in str(error), error
            continue
        result = outcome(copy, whole, str(copy))
        assert result != "harmless" or file == "memory_map.json"
    (copy / file).write_bytes(data)
    assert audit.check(str(copy)) == []
