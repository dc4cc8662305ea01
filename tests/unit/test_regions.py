"""Superpixels on disk: the same bytes whatever the threads and interruptions, checked and counted."""

from __future__ import annotations

import errno
import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from helpers.command import files, refused, segue, started, wait_for
from helpers.miniatures import make as make_data
from helpers.miniatures import own, picture, save
from segue.config import DatasetConfig
from segue.data import regions
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.images import read_ids
from segue.data.regions import Regions, SuperpixelConfig, superpixels
from segue.data.regions.slic import MAX_REGIONS, largest
from segue.data.regions.write import JOURNAL, LOCK, PART
from segue.files import file_of

SIZE = (48, 64)
EIGHT = SuperpixelConfig(number=8)


def yard(folder: Path, number: int = 6) -> Dataset:
    """A labelled user's folder with pictures large enough to be cut."""
    root = own(folder, number, SIZE)
    return open_dataset(str(root), DatasetConfig(), "train")


def made(dataset: Dataset, out: Path, **options: Any) -> dict[str, bytes]:
    """The files of a finished folder."""
    regions.make(dataset, out, EIGHT, **options)
    return files(out)


def test_files_table_and_index_agree_with_the_pictures(tmp_path: Path) -> None:
    dataset = yard(tmp_path / "data")
    found = regions.make(dataset, tmp_path / "out", EIGHT, jobs=2)
    assert found.ids == dataset.ids
    names = {f"{i}.png" for i in dataset.ids} | {"index.json", "areas.npy"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert found.ignored_px is not None
    for n, image_id in enumerate(dataset.ids):
        data = found.path(image_id).read_bytes()
        assert struct.unpack(">IIBB", data[16:26]) == (*SIZE[::-1], 16, 0), "16 bits, one channel"
        ids, label = found.read(image_id), dataset.read_label(n)
        assert np.array_equal(ids, superpixels(dataset.read_image(n), EIGHT))
        rows = found.rows(image_id)
        count = found.index.images[image_id].regions
        assert ids.dtype == np.uint16 and np.unique(ids).tolist() == list(range(count))
        assert found.area_px[rows].tolist() == [(ids == r).sum() for r in range(count)]
        assert found.ignored_px[rows].tolist() == [((ids == r) & (label == 255)).sum() for r in range(count)]
    assert found.ignored_px.sum() == len(dataset), "one pixel in each picture"
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["superpixels"] == {"number": 8, "compactness": 10.0}
    assert index["images"]["0"]["regions"] == found.index.images["0"].regions


def test_areas_alone_are_read_for_a_budget(tmp_path: Path) -> None:
    """No PNG is decoded: they may even be gone."""
    dataset = yard(tmp_path / "data", 2)
    before = regions.make(dataset, tmp_path / "out", EIGHT)
    for path in (tmp_path / "out").glob("*.png"):
        path.unlink()
    found = Regions(tmp_path / "out")
    assert np.array_equal(found.area_px, before.area_px)
    assert found.rows("1").stop == len(found.area_px)
    with pytest.raises(DataError, match=r"1\.png is damaged or gone"):
        found.read("1")


def test_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    dataset = yard(tmp_path / "data", 8)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        whole = made(dataset, tmp_path / "1", jobs=1)
        cv2.setNumThreads(4)
        assert made(dataset, tmp_path / "3", jobs=3) == whole
    finally:
        cv2.setNumThreads(before)


def test_superpixels_do_not_depend_on_opencvs_threads() -> None:
    """One larger picture, which OpenCV does cut into stripes."""
    image, config = picture(3, (300, 400)), SuperpixelConfig(number=60)
    image = np.clip(image + np.random.default_rng(0).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    before = cv2.getNumThreads()
    try:
        found = []
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            found.append(superpixels(image, config))
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_regions_are_connected_near_the_number_and_follow_edges() -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, 80:] = (200, 40, 40)
    cv2.circle(image, (40, 60), 25, (30, 220, 60), -1)
    found = superpixels(image, SuperpixelConfig(number=48))
    assert found.max() + 1 == 48
    for r in range(found.max() + 1):
        assert cv2.connectedComponents((found == r).astype(np.uint8), connectivity=4)[0] == 2
    colour = image.astype(np.int64) @ [1, 256, 65536]
    pure = sum(np.unique(colour[found == r], return_counts=True)[1].max() for r in range(found.max() + 1))
    assert pure / colour.size > 0.98


def test_settings_matter() -> None:
    image = picture(5, (96, 128))
    counts = [superpixels(image, SuperpixelConfig(number=n)).max() + 1 for n in (4, 16, 64)]
    assert counts == sorted(counts) and counts[0] < counts[-1] / 4
    loose, square = (superpixels(image, SuperpixelConfig(number=16, compactness=c)) for c in (0.5, 100))
    assert not np.array_equal(loose, square)
    assert superpixels(picture(0, (5, 5)), SuperpixelConfig(number=1)).max() == 0


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.integers(0, 999))
def test_the_largest_pieces_stay(height: int, width: int, colours: int, number: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, colours, (height, width))
    pieces = np.zeros_like(picture)
    for colour in range(colours):
        found, count = ndimage.label(picture == colour)
        pieces += np.where(found > 0, found + pieces.max(), 0)
    pieces = rng.permutation(pieces.max() + 1)[pieces]  # numbered in no order
    found = largest(pieces, number)
    count = len(np.unique(pieces))
    assert found.dtype == np.uint16
    seen = list(dict.fromkeys(found.ravel().tolist()))
    assert seen == list(range(min(number, count))), "contiguous, in the order of first pixels"
    for region in seen:
        assert ndimage.label(found == region)[1] == 1, "in one piece"
    for piece in np.unique(pieces):
        assert len(np.unique(found[pieces == piece])) == 1, "pieces are not cut"
    areas = {p: (pieces == p).sum() for p in np.unique(pieces).tolist()}
    others = sorted((a for p, a in areas.items() if p != pieces[0, 0]), reverse=True)
    for piece, area in areas.items():
        alone = area > others[number - 1] if len(others) >= number else True
        if alone and piece != pieces[0, 0]:
            inside = [p for p in np.unique(pieces[found == found[pieces == piece][0]]) if p != piece]
            assert all(areas[p] <= area for p in inside if p != pieces[0, 0]), "two large pieces stay apart"


def test_dropped_pieces_join_the_left_or_upper_neighbour() -> None:
    pieces = np.array([[9, 9, 9, 4], [9, 9, 9, 4], [7, 5, 5, 5], [2, 5, 5, 5]])
    assert largest(pieces, 5).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [2, 3, 3, 3], [4, 3, 3, 3]]
    assert largest(pieces, 3).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 2, 2, 2], [0, 2, 2, 2]]
    assert largest(pieces, 2).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    assert largest(pieces[::-1], 1).max() == 0


def test_sixteen_bits_are_the_limit(tmp_path: Path) -> None:
    labels = np.arange(2 * MAX_REGIONS)[::-1].reshape(512, 256)
    found = largest(labels, MAX_REGIONS)
    assert found[0, 0] == 0 and found.max() == MAX_REGIONS - 1
    assert len(np.unique(found)) == MAX_REGIONS, "none is lost to a wrap-around"
    refused(segue("data", "regions", "x", "--out", tmp_path / "no", "--number", MAX_REGIONS + 1), "number", "65536")


def test_all_sixteen_bits_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = own(tmp_path / "data", 1, (256, 256))
    every = np.arange(MAX_REGIONS, dtype=np.uint16).reshape(256, 256)
    monkeypatch.setattr("segue.data.regions.write.superpixels", lambda image, config: every)
    found = regions.make(open_dataset(str(root), DatasetConfig(), "train"), tmp_path / "out")
    assert np.array_equal(found.read("0"), every)
    assert (found.area_px == 1).all() and len(found.area_px) == MAX_REGIONS


class Stopped(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("after", [1, 4])
def test_goes_on_after_an_interruption(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, out = yard(tmp_path / "data"), tmp_path / "out"
    whole = made(dataset, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        assert total == 6
        if done == after:
            raise Stopped

    with pytest.raises(Stopped):
        regions.make(dataset, out, EIGHT, jobs=1, progress=stop)
    with pytest.raises(DataError, match="no finished regions"):
        Regions(out)
    with (out / PART / JOURNAL).open("ab") as journal:
        journal.write(b'{"id": "5", "si')  # killed in the middle of a line, and of a file
    (out / ".5.png.123.tmp").write_bytes(b"half")
    damaged = out / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    calls = counted(monkeypatch)
    told: list[int] = []
    regions.make(dataset, out, EIGHT, jobs=1, progress=lambda done, total: told.append(done))
    assert files(out) == whole
    assert len(calls) == 6 - after + 1, "what is there and whole stays, what is damaged is made again"
    assert told == list(range(after, 7))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each image that is cut from now on."""
    calls: list[int] = []

    def count(image: Any, config: SuperpixelConfig) -> Any:
        calls.append(1)
        return superpixels(image, config)

    monkeypatch.setattr("segue.data.regions.write.superpixels", count)
    return calls


def test_kill_9(tmp_path: Path) -> None:
    """Killed while images are cut side by side; nothing that was finished is lost, and the end is the same."""
    dataset, out = yard(tmp_path / "data", 12), tmp_path / "out"
    command = ("data", "regions", dataset.name, "--number", 8, "--jobs", 2)
    assert segue(*command, "--out", tmp_path / "whole").code == 0
    slow = (
        "import time, segue.data.regions.write as m\nreal = m.superpixels\n"
        "def slow(*a):\n    time.sleep(0.05)\n    return real(*a)\nm.superpixels = slow\n"
    )
    journal = out / PART / JOURNAL
    with started(*command, "--out", out, code=slow) as running:
        wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 4, running)
        running.kill()
        running.wait()
    kept = [json.loads(line)["id"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    assert 4 <= len(kept) < 12
    times = {i: (out / f"{i}.png").stat().st_mtime_ns for i in kept}
    assert segue(*command, "--out", out).code == 0
    assert files(out) == files(tmp_path / "whole")
    assert {i: (out / f"{i}.png").stat().st_mtime_ns for i in kept} == times


def test_a_finished_folder_is_left_or_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, out = yard(tmp_path / "data", 5), tmp_path / "out"
    whole = made(dataset, out)
    calls = counted(monkeypatch)
    assert made(dataset, out) == whole and not calls
    broken = out / "2.png"
    other = read_ids(broken)[::-1]
    for content in (b"", whole["2.png"][:40], whole["1.png"], cv2.imencode(".png", other)[1].tobytes(), None):
        broken.unlink() if content is None else broken.write_bytes(content)
        with pytest.raises(DataError, match=r"2\.png is damaged or gone"):
            Regions(out).read("2")
        assert made(dataset, out) == whole
        assert len(calls) == 1
        calls.clear()


@pytest.mark.parametrize("name", ["index.json", "areas.npy"])
def test_a_damaged_table_is_told(name: str, tmp_path: Path) -> None:
    dataset, out = yard(tmp_path / "data", 2), tmp_path / "out"
    whole = made(dataset, out)[name]
    bad = [b"", whole[:-20], whole + b"x" * 8 if name == "index.json" else whole[:-8] + bytes(8)]
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    for content in (*bad, pickled.getvalue()):
        (out / name).write_bytes(content)
        for call in (lambda: Regions(out), lambda: regions.make(dataset, out, EIGHT)):
            with pytest.raises(DataError, match=f"{name} is damaged: delete"):
                call()
    assert (out / "0.png").is_file(), "nothing was thrown away"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    dataset, out = yard(tmp_path / "data", 3), tmp_path / "out"
    whole = made(dataset, out)
    two = open_dataset(dataset.name, DatasetConfig(limit=2), "train")
    with pytest.raises(
        DataError, match=r"superpixels \{'number': 8, .* not \{'number': 9.*another folder, or delete it"
    ):
        regions.make(dataset, out, SuperpixelConfig(number=9))
    with pytest.raises(DataError, match="made with other images: choose another folder"):
        regions.make(two, out, EIGHT)
    refused(
        segue("data", "regions", dataset.name, "--out", out, "--number", 8, "--compactness", 5), "compactness", "5.0"
    )
    refused(segue("data", "regions", dataset.name, "--out", out, "--number", 8, "--labels", "street7"), "other labels")
    assert files(out) == whole
    begun = tmp_path / "begun"
    with pytest.raises(TypeError):
        regions.make(dataset, begun, EIGHT, jobs=1, progress=lambda: None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="superpixels"):
        regions.make(dataset, begun, SuperpixelConfig(number=9))
    (begun / PART / JOURNAL).write_bytes(b"{\n")
    with pytest.raises(DataError, match=r"rows\.jsonl is damaged"):
        regions.make(dataset, begun, EIGHT)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    dataset = yard(tmp_path / "data", 2)
    before = files(tmp_path / "data")
    with pytest.raises(DataError, match="data holds other files: choose an empty folder"):
        regions.make(dataset, tmp_path / "data", EIGHT)
    (tmp_path / "data/index.json").write_text('{"format": "segue-labels-1"}')
    with pytest.raises(DataError, match=r"index\.json is no index of regions: choose another folder"):
        regions.make(dataset, tmp_path / "data", EIGHT)
    (tmp_path / "data/index.json").unlink()
    assert files(tmp_path / "data") == before


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    import fcntl

    dataset, out = yard(tmp_path / "data", 2), tmp_path / "out"
    (out / PART).mkdir(parents=True)
    with (out / PART / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process makes regions"):
            regions.make(dataset, out, EIGHT)
    assert made(dataset, out)


def test_unlabelled_and_partly_labelled_data(tmp_path: Path) -> None:
    root = own(tmp_path / "data", 4, SIZE)
    (root / "labels/train/2.png").unlink()
    found = regions.make(open_dataset(str(root), DatasetConfig(), "train"), tmp_path / "part", EIGHT)
    assert found.ignored_px is not None
    assert [int(found.ignored_px[found.rows(i)].sum()) for i in found.ids] == [1, 1, 0, 1]
    shutil.rmtree(root / "labels")
    found = regions.make(open_dataset(str(root), DatasetConfig(), "train"), tmp_path / "none", EIGHT)
    assert found.ignored_px is None and found.index.labels is None
    assert np.load(tmp_path / "none/areas.npy").dtype.names == ("area_px",)


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "synthia", "kitti360"])
def test_published_layouts_at_the_resolution_of_their_files(name: str, tmp_path: Path) -> None:
    make_data(name, tmp_path / "data")
    dataset = open_dataset(name, DatasetConfig(root=tmp_path / "data"), "train")
    found = regions.make(dataset, tmp_path / "images RGB", EIGHT)
    for n, image_id in enumerate(dataset.ids):
        assert found.read(image_id).shape == dataset.read_image(n).shape[:2]
        assert found.path(image_id).name == f"{file_of(image_id)}.png"
    found.require(dataset.ids)
    with pytest.raises(DataError, match="no regions of 1 images, the first is 'other'"):
        found.rows("other")


def test_a_damaged_picture_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    dataset, out = yard(tmp_path / "data", 4), tmp_path / "out"
    path = tmp_path / "data/images/train/3.png"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    command = ("data", "regions", dataset.name, "--out", out, "--number", 8, "--jobs", 1)
    refused(segue(*command), str(path))
    assert len((out / PART / JOURNAL).read_bytes().splitlines()) == 4
    path.write_bytes(data)
    done = segue(*command)
    assert done.code == 0 and "4 images" in done.out and "8 regions each" in done.out


def test_a_full_disk_is_told_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, out = yard(tmp_path / "data", 4), tmp_path / "out"
    real = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if "2.png" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match=r"disk is full after 2 of 4 images .* goes on from there"):
            regions.make(dataset, out, EIGHT, jobs=1)
    assert made(dataset, out) == made(dataset, tmp_path / "whole")


def test_a_clash_of_opencv_packages_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = yard(tmp_path / "data", 2)
    monkeypatch.delattr(cv2, "ximgproc")
    outcome = segue("data", "regions", dataset.name, "--out", tmp_path / "out")
    refused(outcome, "cv2.ximgproc", "pip uninstall -y opencv-python", "pip install opencv-contrib-python-headless")


def test_a_long_or_odd_id_is_one_file(tmp_path: Path) -> None:
    root = own(tmp_path / "data", 1, SIZE)
    key = "a b%/" + "x" * 200
    save(root / f"images/train/{key}.png", picture(1, SIZE))
    dataset = open_dataset(str(root), DatasetConfig(), "train")
    found = regions.make(dataset, tmp_path / "out", EIGHT)
    assert key in found.ids
    assert found.read(key).shape == SIZE
