"""A survey that is cut off, repeated, asked for what it has not, or given a network that diverged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.held import SIZES, Held, Small
from segue.acquire import RegionTable, Superpixels, TableError, WholeImage, Windows
from segue.acquire.table import INDEX, append_column
from segue.data.regions import SuperpixelConfig, make
from segue.errors import UserError
from segue.labels import IGNORE
from segue.models.base import Output
from segue.scoring.inference import ask
from segue.scoring.protocols import NATIVE
from segue.survey import Look, SurveyError, growing, predicted_map, survey

COLUMNS = ("embedding", "prob", "entropy", "edge")
LOOK = Look(COLUMNS, Windows(radius_px=1, most=9))


def go(folder: Path, look: Look = LOOK, model: Small | None = None, dataset: Held | None = None, **more: Any) -> Any:
    told = {"identity": {"model": "a"}, **more}
    return survey(model or Small(), dataset or Held(), folder, look, device="cpu", **told)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


class Never(Small):
    def decode(self, x: torch.Tensor) -> Output:
        raise AssertionError("the network is asked again")


def stop(at: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return progress


def _append(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(data)

    return damage


def _cut(folder: Path) -> None:
    os.truncate(folder / "embedding.npy", (folder / "embedding.npy").stat().st_size - 1)


def _lost(folder: Path) -> None:
    (folder / "prob.npy").unlink()


@pytest.mark.parametrize(
    "left",
    [
        lambda folder: None,
        _append("embedding.npy", b"half a block of rows"),
        _append("survey.jsonl", b'{"image": "drive/2", "ro'),
        _append("survey.jsonl", b"\0\0\0\n"),
        _cut,
        _lost,
    ],
)
@pytest.mark.parametrize("at", [1, 2])
def test_killed_and_resumed_it_ends_with_the_same_bytes(at: int, left: Callable[[Path], None], tmp_path: Path) -> None:
    go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", progress=stop(at))
    with pytest.raises(TableError, match="no table of regions"):
        RegionTable.load(tmp_path / "cut")
    left(tmp_path / "cut")
    seen: list[tuple[int, int]] = []
    go(tmp_path / "cut", progress=lambda *done: seen.append(done))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert seen[-1] == (3, 3)
    first = {_cut: at, _lost: 1}.get(left, at + 1)
    assert seen[0] == (first, 3)


def test_killed_before_the_last_file_nothing_is_asked_again(tmp_path: Path) -> None:
    go(tmp_path)
    before = files(tmp_path)
    (tmp_path / INDEX).unlink()
    go(tmp_path, model=Never())
    assert files(tmp_path) == before


def test_the_bytes_are_those_of_a_table_that_is_saved(tmp_path: Path) -> None:
    go(tmp_path / "a").save(tmp_path / "b")
    written = files(tmp_path / "a")
    del written["survey.jsonl"]
    assert written == files(tmp_path / "b")


def test_a_finished_table_is_returned_at_once_with_columns_that_came_later(tmp_path: Path) -> None:
    table = go(tmp_path)
    append_column(tmp_path, "source_log_density", np.arange(len(table)))
    again = go(tmp_path, model=Never())
    assert again.names == sorted([*COLUMNS, "source_log_density"])


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {"model": "b"}},
        {"look": replace(LOOK, columns=("entropy",))},
        {"look": replace(LOOK, partition=Windows(radius_px=1, most=8))},
        {"dataset": Held(*SIZES[:2])},
        {"dataset": Held(size=(48, 64))},
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_anything_else_starts_anew(change: dict[str, Any], begun: bool, tmp_path: Path) -> None:
    go(tmp_path / "fresh", **change)
    try:
        go(tmp_path / "used", progress=stop(2) if begun else None)
    except KeyboardInterrupt:
        assert begun
    go(tmp_path / "used", **change)
    assert files(tmp_path / "used") == files(tmp_path / "fresh")


def test_a_damaged_table_is_made_again(tmp_path: Path) -> None:
    go(tmp_path)
    before = files(tmp_path)
    _lost(tmp_path)
    go(tmp_path)
    assert files(tmp_path) == before


def test_other_superpixels_start_anew(tmp_path: Path) -> None:
    tables = []
    for number in (6, 12):
        regions = make(Held(), tmp_path / f"regions{number}", SuperpixelConfig(number=number))
        tables.append(go(tmp_path / "t", Look(("entropy",), Superpixels(), regions)))
        assert len(tables[-1]) == len(regions.area_px)
        np.testing.assert_array_equal(tables[-1].area_px, regions.area_px)
        np.testing.assert_array_equal(tables[-1].ignored_px, regions.ignored_px)
    assert len(tables[0]) < len(tables[1])


@pytest.mark.parametrize("at", [1, 30])
def test_a_full_disk_is_one_message_and_nothing_is_lost(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path / "whole")
    real, calls = growing._put, []

    def put(file: Any, data: bytes) -> None:
        calls.append(0)
        if len(calls) == at:
            real(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(growing, "_put", put)
    with pytest.raises(UserError, match=r"the disk is full after [01] of 3 images in .*goes on from there"):
        go(tmp_path / "cut")
    monkeypatch.setattr(growing, "_put", real)
    go(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_short_writes_are_completed(tmp_path: Path) -> None:
    class Few:
        data = b""

        def write(self, rest: memoryview) -> int:
            self.data += bytes(rest[:3])
            return min(3, len(rest))

    file: Any = Few()
    growing._put(file, b"0123456789")
    assert file.data == b"0123456789"


@pytest.mark.parametrize(("weight", "words"), [("head", "logits are not finite"), ("encoder", "not finite")])
def test_a_network_that_diverged_is_told_with_the_image(weight: str, words: str, tmp_path: Path) -> None:
    class Diverges(Small):
        calls = 0

        def decode(self, x: torch.Tensor) -> Output:
            self.calls += 1
            if self.calls == 2:
                getattr(self, weight).data[0] = float("nan")
            return super().decode(x)

    with pytest.raises(SurveyError, match=f"image 'drive/1'.*{words}"):
        go(tmp_path, model=Diverges())
    with pytest.raises(SurveyError, match=f"image 'drive/0'.*{words}"):
        broken = Diverges()
        getattr(broken, weight).data[0] = float("inf")
        predicted_map(broken, Held(), 0, device="cpu")


def test_an_embedding_too_large_for_its_column_is_told(tmp_path: Path) -> None:
    model = Small()
    model.encoder.data *= 1e5
    model.head.data *= 1e-5
    go(tmp_path / "a", replace(LOOK, columns=("entropy",)), model=model)
    with pytest.raises(SurveyError, match="image 'drive/0': embedding is not finite, or too large"):
        go(tmp_path / "b", model=model)


def test_what_is_asked_for_in_vain(tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="does not fill source_log_density, taste; it fills entropy"):
        go(tmp_path, replace(LOOK, columns=("taste", "source_log_density")))
    with pytest.raises(SurveyError, match="domain_prob is what a discriminator says"):
        go(tmp_path, replace(LOOK, columns=("domain_prob",)))
    regions = make(Held(), tmp_path / "regions", SuperpixelConfig(number=6))
    other = Held(*SIZES, (40, 40))
    with pytest.raises(UserError, match=r"no regions of 1 images, the first is 'drive/3'"):
        go(tmp_path / "t", Look(("entropy",), Superpixels(), regions), dataset=other)
    with pytest.raises(SurveyError, match=r"image 'drive/0': .*superpixels of size \(45, 70\)"):
        go(tmp_path / "t", Look(("entropy",), Superpixels(), regions), dataset=Held(*([(40, 40)] * 3)))


def test_modes_are_as_before(tmp_path: Path) -> None:
    model = Small().train()
    go(tmp_path, model=model)
    predicted_map(model, Held(), 0, device="cpu")
    assert model.training


def test_ignored_pixels_come_from_labels_where_there_are_some(tmp_path: Path) -> None:
    look = Look(("entropy",), WholeImage())
    void = [(label == IGNORE).sum() for label in Held().labels]
    assert go(tmp_path / "a", look).ignored_px.tolist() == void
    bare = Held()
    bare.unlabelled_ids = ["drive/1"]
    assert go(tmp_path / "b", look, dataset=bare).ignored_px.tolist() == [void[0], 0, void[2]]
    assert go(tmp_path / "c", look, dataset=Held(labelled=False)).ignored_px.tolist() == [0, 0, 0]


def test_windows_keep_clear_of_what_was_bought(tmp_path: Path) -> None:
    masks = {f"drive/{n}": np.zeros(size, bool) for n, size in enumerate(SIZES)}
    masks["drive/0"][:20] = True
    masks["drive/1"][:] = True
    look = Look(("entropy", "embedding"), Windows(radius_px=1), bought=lambda i: masks[i] if i != "drive/2" else None)
    table = go(tmp_path, look)
    count = np.bincount(table.image, minlength=3)
    assert count[1] == 0 and min(count[0], count[2]) > 50
    assert (table.region[table.image == 0] // SIZES[0][1]).min() > 20
    everything = Look(("embedding",), Windows(radius_px=1), bought=lambda i: np.ones(SIZES[int(i[-1])], bool))
    assert go(tmp_path / "none", everything).statistic("embedding").shape == (0, 6)


@pytest.mark.parametrize("size", [None, (40, 60)])
def test_the_predicted_map_is_what_scoring_sees(size: tuple[int, int] | None) -> None:
    dataset, model = Held(size=size), Small(multiple=16)
    found = predicted_map(model, dataset, 1, device="cpu")
    with torch.inference_mode():
        expected = ask(model.eval(), [dataset.read_image(1)], NATIVE, SIZES[1])[0].ids()
    assert found.dtype == np.uint8 and len(np.unique(found)) > 2
    np.testing.assert_array_equal(found, expected)


def test_a_column_is_added_to_a_stored_table_and_replaced(tmp_path: Path) -> None:
    table = go(tmp_path)
    rows = len(table)
    append_column(tmp_path, "depth", np.arange(rows))
    np.testing.assert_array_equal(RegionTable.load(tmp_path).statistic("depth"), np.arange(rows))
    append_column(tmp_path, "depth", np.ones((rows, 3)))
    again = RegionTable.load(tmp_path)
    assert again.statistic("depth").shape == (rows, 3)
    np.testing.assert_array_equal(again.statistic("embedding"), table.statistic("embedding"))
    for name, values, words in [
        ("depth", np.arange(rows + 1), "for .* rows"),
        ("area_px", np.arange(rows), "is no name for a statistic"),
        ("depth", np.full(rows, np.nan), "not finite"),
    ]:
        with pytest.raises(TableError, match=words):
            append_column(tmp_path, name, values)
    assert RegionTable.load(tmp_path).statistic("depth").shape == (rows, 3)
