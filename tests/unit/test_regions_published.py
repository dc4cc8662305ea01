"""Superpixels of others taken over: their ids, gaps included, in a folder like our own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from helpers import miniatures
from helpers.command import files, refused, segue
from helpers.layouts import LAYOUTS
from segue.acquire.table import RegionTable
from segue.config import DatasetConfig
from segue.data import regions
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.images import read_ids
from segue.data.regions import Published, PublishedConfig, Regions, SuperpixelConfig
from segue.files import read_json

Maps = dict[str, npt.NDArray[np.uint8]]


def tree(name: str, root: Path) -> tuple[Dataset, Maps]:
    """A data set in its published layout with D2ADA's superpixels beside it: ids 0 … 39, some without a pixel."""
    miniatures.make(name, root)
    dataset, maps = open_dataset(name, DatasetConfig(root=root), "train"), {}
    for n, image in enumerate(dataset.ids):
        ids = np.delete(np.arange(40, dtype=np.uint8), [3 + n, 39])
        maps[image] = np.random.default_rng(n).choice(ids, LAYOUTS[name].size).astype(np.uint8)
        path = f"train/{image}_superpixel.png" if name == "cityscapes" else f"{image}.png"
        miniatures.save(root / "superpixel" / path, maps[image])
    return dataset, maps


@pytest.fixture(name="city")
def make_city(tmp_path: Path) -> Iterator[tuple[Dataset, Maps]]:
    yield tree("cityscapes", tmp_path / "city")


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "synthia"])
@pytest.mark.parametrize("inner", ["", "superpixel"])
def test_ids_stay_as_they_are(name: str, inner: str, tmp_path: Path) -> None:
    dataset, maps = tree(name, tmp_path / "data")
    out = tmp_path / "out"
    done = segue(
        "data", "regions", f"{name}:train", "--root", tmp_path / "data", "--published", tmp_path / "data" / inner,
        "--out", out, "--jobs", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == f"{len(maps)} images, 38 to 38 regions each, in {out}\n"
    found = Regions(out)
    assert found.index.superpixels == PublishedConfig(published="superpixel")
    assert read_json(out / "index.json")["superpixels"] == {"published": "superpixel"}
    assert found.ids == dataset.ids and found.ignored_px is not None
    for n, (image, want) in enumerate(maps.items()):
        assert read_ids(found.path(image)).dtype == np.uint16
        assert np.array_equal(found.read(image), want)
        void, rows = dataset.read_label(n) == 255, found.rows(image)
        assert found.index.images[image].regions == 39
        assert found.area_px[rows].tolist() == [(want == r).sum() for r in range(39)]
        assert found.ignored_px[rows].tolist() == [((want == r) & void).sum() for r in range(39)]
        assert found.area_px[rows][3 + n] == 0, "an id without pixels keeps its place"


def test_rows_of_a_table_are_the_ids_with_pixels(city: tuple[Dataset, Maps], tmp_path: Path) -> None:
    """What whoever fills a table does with a gap."""
    dataset, maps = city
    found = regions.make(dataset, tmp_path / "out", Published(tmp_path / "city", "train", dataset.ids))
    areas = [found.area_px[found.rows(i)] for i in dataset.ids]
    kept = [np.flatnonzero(area) for area in areas]
    table = RegionTable.build(
        dataset.ids,
        19,
        image=np.repeat(np.arange(len(kept)), [len(k) for k in kept]),
        region=np.concatenate(kept),
        area_px=np.concatenate([a[k] for a, k in zip(areas, kept, strict=True)]),
        predicted=np.zeros(sum(map(len, kept)), np.uint8),
    )
    assert len(table) == sum(len(np.unique(m)) for m in maps.values())


def test_an_interruption_damage_and_other_settings(city: tuple[Dataset, Maps], tmp_path: Path) -> None:
    dataset, _ = city
    published, out = Published(tmp_path / "city", "train", dataset.ids), tmp_path / "out"
    regions.make(dataset, tmp_path / "whole", published)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        regions.make(dataset, out, published, jobs=1, progress=stop)
    regions.make(dataset, out, published)
    assert files(out) == files(tmp_path / "whole")
    (out / next(p.name for p in out.glob("*.png"))).write_bytes(b"")
    regions.make(dataset, out, published)
    assert files(out) == files(tmp_path / "whole")
    with pytest.raises(DataError, match=r"superpixels \{'published': 'superpixel'\}, not \{'number': 40"):
        regions.make(dataset, out, SuperpixelConfig())
    with pytest.raises(DataError, match=r"\{'number': 4, .*not \{'published'"):
        regions.make(dataset, regions.make(dataset, tmp_path / "4", SuperpixelConfig(number=4)).folder, published)


def test_what_does_not_fit_is_told(city: tuple[Dataset, Maps], tmp_path: Path) -> None:
    dataset, maps = city
    first, last = dataset.ids[0], dataset.ids[-1]
    command = ("data", "regions", "cityscapes:train", "--root", tmp_path / "city", "--out", tmp_path / "out")
    one = tmp_path / f"city/superpixel/train/{first}_superpixel.png"
    height, width = maps[first].shape
    miniatures.save(one, maps[first][::2])
    sizes = (f"{width}x{height // 2} pixels", f"{first!r} is {width}x{height}")
    refused(segue(*command, "--published", tmp_path / "city"), str(one), *sizes)
    miniatures.save(one, np.zeros((height, width, 3), np.uint8))
    refused(segue(*command, "--published", tmp_path / "city"), str(one), "3 channels")
    one.write_bytes(one.read_bytes()[:40])
    refused(segue(*command, "--published", tmp_path / "city"), str(one), "ends early")
    one.unlink()
    what = f"no superpixels of 1 of {len(dataset)} images, the first is {first!r}: none of train/{first}_superpixel.png"
    refused(segue(*command, "--published", tmp_path / "city"), what)
    shutil.rmtree(tmp_path / "city/superpixel")
    refused(segue(*command, "--published", tmp_path / "gone"), "no folder", "gone")
    refused(segue(*command, "--published", tmp_path / "city", "--number", 4, "--compactness", 1), "--number, --compact")
    assert last in maps


def test_opencv_without_superpixels_is_enough(
    city: tuple[Dataset, Maps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, maps = city
    monkeypatch.delattr("cv2.ximgproc")
    found = regions.make(dataset, tmp_path / "out", Published(tmp_path / "city", "train", dataset.ids))
    assert np.array_equal(found.read(dataset.ids[0]), maps[dataset.ids[0]])
