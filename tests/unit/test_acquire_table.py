"""Tables of regions: what they refuse, selections that copy nothing, folders that can be moved and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.region_tables import table
from segue.acquire import RegionTable, TableError
from segue.acquire.table import INDEX

GOOD: dict[str, Any] = {
    "image": [0, 0, 1],
    "region": [0, 3, 0],
    "area_px": [10, 20, 30],
    "ignored_px": [0, 20, 5],
    "predicted": [1, 0, 2],
    "statistics": {"entropy": [0.1, 0.2, 0.3]},
}


def build(**change: Any) -> RegionTable:
    return RegionTable.build(["a/0.png", "a/1.png"], 3, **{**GOOD, **change})


def test_a_good_table() -> None:
    t = build()
    assert len(t) == 3
    assert t.cost_px.tolist() == [10, 0, 25]
    np.testing.assert_allclose(t.statistic("entropy"), [0.1, 0.2, 0.3], atol=1e-4)
    assert build(ignored_px=None).cost_px.tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": [0, 0]}, "one length"),
        ({"image": [0, 0, 2]}, "image 2 of 2"),
        ({"image": [0, 0, -1]}, "must lie in 0"),
        ({"image": [0.0, 0.0, 1.0]}, "whole numbers"),
        ({"region": [0, 0, 0]}, "image 'a/0.png', region 0"),
        ({"region": [3, 0, 0]}, "ordered by image and region"),
        ({"image": [1, 0, 0]}, "ordered by image and region"),
        ({"area_px": [0, 20, 30]}, "at least 1 pixel"),
        ({"area_px": [2**31, 20, 30]}, "must lie in 0"),
        ({"ignored_px": [0, 21, 5]}, "part of its area"),
        ({"predicted": [1, 3, 2]}, "class 3 of 3"),
        ({"predicted": [1, 256, 2]}, "must lie in 0"),
        ({"statistics": {"entropy": [0.1, 0.2]}}, "for 3 rows"),
        ({"statistics": {"entropy": [0.1, np.nan, 0.2]}}, "not finite"),
        ({"statistics": {"entropy": [0.1, 7e4, 0.2]}}, "not finite as float16"),
        ({"statistics": {"prob": np.ones((3, 4))}}, r"\(3, 3\)"),
        ({"statistics": {"embedding": np.ones((3, 4, 2))}}, "for 3 rows"),
        ({"statistics": {"../entropy": [0.1, 0.2, 0.3]}}, "no name for a statistic"),
        ({"statistics": {"region": [0.1, 0.2, 0.3]}}, "no name for a statistic"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TableError, match=words):
        build(**change)


def test_equal_image_ids_are_refused() -> None:
    with pytest.raises(TableError, match="different ids"):
        RegionTable.build(["a", "a"], 3, **GOOD)


def test_log_densities_keep_their_range_and_say_where_they_are_unknown() -> None:
    t = build(statistics={"source_log_density": [-1e6, np.nan, 3.25]})
    np.testing.assert_array_equal(t.statistic("source_log_density"), np.float32([-1e6, np.nan, 3.25]))


def test_a_selection_reads_the_same_memory() -> None:
    embedding = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float16)
    t = table(100, embedding=embedding)
    mask = np.arange(100) % 3 == 1
    some = t.take(mask).take([1, 5, 20])
    assert np.shares_memory(some._stored["embedding"], embedding)
    assert some.region.tolist() == t.region[[4, 16, 61]].tolist()
    np.testing.assert_array_equal(some.statistic("embedding"), embedding[[4, 16, 61]].astype(np.float32))
    np.testing.assert_array_equal(np.concatenate(list(some.blocks("embedding", 2))), some.statistic("embedding"))
    with pytest.raises(ValueError, match="rising order"):
        t.take([5, 2])


@pytest.mark.parametrize("rows", [None, [0, 7, 8], []])
def test_saved_moved_and_mapped(tmp_path: Path, rows: list[int] | None) -> None:
    t = table(50) if rows is None else table(50).take(rows)
    t.save(tmp_path / "a" / "pool")
    (tmp_path / "a").rename(tmp_path / "b")
    again = RegionTable.load(tmp_path / "b" / "pool")
    assert (again.images, again.num_classes, again.names) == (t.images, t.num_classes, t.names)
    for name in ("image", "region", "area_px", "ignored_px", "predicted"):
        np.testing.assert_array_equal(getattr(again, name), getattr(t, name))
    for name in t.names:
        np.testing.assert_array_equal(again.statistic(name), t.statistic(name))
    if rows != []:
        assert isinstance(again._stored["embedding"], np.memmap)
    assert np.load(tmp_path / "b" / "pool" / "embedding.npy").dtype == np.float16


def test_saved_over_the_folder_that_it_is_read_from(tmp_path: Path) -> None:
    table(50).save(tmp_path)
    RegionTable.load(tmp_path).take([3, 4]).save(tmp_path)
    np.testing.assert_array_equal(RegionTable.load(tmp_path).statistic("prob"), table(50).statistic("prob")[[3, 4]])


def test_an_unfinished_folder_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(20).save(tmp_path)

    def broken(self: RegionTable, name: str) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(RegionTable, "blocks", broken)
    with pytest.raises(OSError, match="disk full"):
        table(30).save(tmp_path)
    with pytest.raises(TableError, match="no table of regions"):
        RegionTable.load(tmp_path)


def _cut(folder: Path) -> None:
    path = folder / "embedding.npy"
    path.write_bytes(path.read_bytes()[:-3])


def _pickled(folder: Path) -> None:
    np.save(folder / "entropy.npy", np.array([{}] * 20, object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "embedding.npy is missing or damaged"),
        (_pickled, "entropy.npy is missing or damaged"),
        (lambda f: (f / "prob.npy").unlink(), "prob.npy is missing or damaged"),
        (lambda f: (f / "prob.npy").write_bytes(b""), "prob.npy is missing or damaged"),
        (lambda f: np.save(f / "edge.npy", np.zeros(3, np.float16)), r"holds float16 \(3,\)"),
        (lambda f: np.save(f / "region.npy", np.zeros(20, np.int32)), "is damaged: rows are ordered"),
        (lambda f: (f / INDEX).write_text("{"), "table.json is damaged"),
        (lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace('"rows":20', '"rows":21')), "do not fit"),
        (lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace('"edge"', '"../edge"')), "do not fit"),
        (lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace('"area_px"', '"area"')), "do not fit"),
        (lambda f: shutil.rmtree(f), "no table of regions"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    table(20).save(tmp_path / "pool")
    damage(tmp_path / "pool")
    with pytest.raises(TableError, match=words):
        RegionTable.load(tmp_path / "pool")
