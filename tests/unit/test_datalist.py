"""D2ADA's lists of bought regions: read without running anything, matched to our images, stored as a round."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from helpers import miniatures
from helpers.layouts import LAYOUTS
from segue.acquire.cost import CostModel, boundary_vertices
from segue.acquire.datalist import DatalistError, begin, match, read_datalist
from segue.acquire.plain_pickle import MOST_BYTES, PickleError, read_plain
from segue.acquire.state import RoundInfo, write_round
from segue.config import DatasetConfig
from segue.data import regions
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.regions import Published, Regions, SuperpixelConfig
from segue.errors import UserError

ROOT = "/home/they/data/Cityscapes"
CITY = ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313")
Content = dict[str, Any]


def triple(image: str, root: str = ROOT, split: str = "train") -> list[str]:
    """The three paths that the published code keeps of a Cityscapes image."""
    return [
        f"{root}/leftImg8bit/{split}/{image}_leftImg8bit.png",
        f"{root}/gtFine/{split}/{image}_gtFine_labelIds.png",
        f"{root}/superpixel/{split}/{image}_superpixel.png",
    ]


def content(bought: dict[str, list[int]], pool: dict[str, list[int]] | None = None, **where: str) -> Content:
    """What ``dump_datalist`` writes."""
    labelled = {name: triple(name, **where) for name in bought}
    left = {name: triple(name, **where) for name in pool or {}}
    source = [[f"/gta/{kind}/00001.png" for kind in ("images", "labels", "superpixel")]]
    return {
        "src_label_im_idx": source,
        "trg_label_im_idx": list(labelled.values()),
        "trg_pool_im_idx": list(left.values()),
        "trg_label_suppix": {labelled[name][2]: ids for name, ids in bought.items()},
        "trg_pool_suppix": {left[name][2]: ids for name, ids in (pool or {}).items()},
    }


def stored(folder: Path, what: Any, protocol: int | None = None) -> Path:
    """A pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "datalist_01.pkl"
    path.write_bytes(pickle.dumps(what, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    given = content({CITY[0]: [7, 3]}, {CITY[0]: [0, 1], CITY[1]: list(range(40))})
    found = read_datalist(stored(tmp_path, given, protocol))
    one, two = (triple(name)[2] for name in CITY)
    assert found.labelled == {one: (7, 3)} and found.pool == {one: (0, 1), two: tuple(range(40))}
    assert found.source == ("/gta/images/00001.png",)


def test_a_list_of_the_published_size(tmp_path: Path) -> None:
    """24,904 source and 2,975 target images, paths joined to NumPy's text as that code does it."""
    names = np.array([f"superpixel/train/aachen/aachen_{n:06d}_000019_superpixel.png" for n in range(2975)])
    pool = [[ROOT + "/" + name for name in (n, n, n)] for n in names]
    given = content({CITY[1]: [1]})
    given["src_label_im_idx"] = [[f"{ROOT}/{kind}/{n:05d}.png" for kind in "abc"] for n in range(24904)]
    given["trg_pool_im_idx"] = pool
    given["trg_pool_suppix"] = {row[2]: list(range(40)) for row in pool}
    found = read_datalist(stored(tmp_path, given))
    assert len(found.pool) == 2975 and len(found.source) == 24904


class Malicious:
    """Makes a folder when it is unpickled, which stands for anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_executed(protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = stored(tmp_path / "in", {**content({CITY[0]: [1]}), "more": Malicious(made)}, protocol)
    with pytest.raises(PickleError, match=r"is not opened: it holds more than plain containers .*can run any program"):
        read_datalist(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists(), "the file would have done it"


@pytest.mark.parametrize(
    "operations",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL, REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"Psome id\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x02}q\x00b.",  # BUILD
        b"\x80\x02)\x86\x86.",  # TUPLE2
    ],
)
def test_every_way_to_other_objects_is_refused(operations: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(operations)
    with pytest.raises(PickleError, match=r"x\.pkl is not opened"):
        read_plain(path)


def test_numpy_objects_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, content({CITY[0]: [np.int64(3)]}))  # type: ignore[list-item]
    with pytest.raises(PickleError, match="numpy"):
        read_datalist(path)


def test_a_few_bytes_do_not_ask_for_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    with pytest.raises(PickleError, match="memo is not in order"):
        read_plain(path)
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(PickleError, match="larger than 64 MiB"):
        read_plain(path)
    shared: list[int] = list(range(2**14))
    rows = {f"{n}_superpixel.png": shared for n in range(2000)}
    given = content({})
    given["trg_label_im_idx"], given["trg_label_suppix"] = [["a", "b", name] for name in rows], rows
    with pytest.raises(DatalistError, match="more than 16777216 regions"):
        read_datalist(stored(tmp_path, given))


def damaged_files() -> Iterator[tuple[str, bytes]]:
    whole = pickle.dumps(content({CITY[0]: [1]}))
    yield "empty", b""
    yield "cut", whole[: len(whole) // 2]
    yield "text", b"no pickle at all"
    yield "a page", b"<!doctype html>"
    yield "an unhashable key", b"]]s."
    yield "no such memo", b"\x80\x02h\x05."
    yield "an empty stack", b"\x80\x02aaa."


@pytest.mark.parametrize(("kind", "data"), list(damaged_files()))
def test_damaged_pickles_are_told(kind: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    with pytest.raises(PickleError, match=r"x\.pkl is damaged or no pickle"):
        read_plain(path)
    with pytest.raises(PickleError, match="cannot read"):
        read_plain(tmp_path / "gone.pkl")


def wrong(change: Callable[[Content], Any], **where: str) -> Any:
    given = content({CITY[0]: [1, 2]}, {CITY[0]: [3], CITY[1]: [0, 1]}, **where)
    changed = change(given)
    return given if changed is None else changed


def doubled(depth: int) -> list[Any]:
    """Few bytes in a file, 2**depth when written out."""
    return [doubled(depth - 1)] * 2 if depth else []


WRONG: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a list": (lambda c: [1, 2], "is no datalist of regions: it is list"),
    "scan mode": (lambda c: [c.pop(k) for k in [*c] if "suppix" in k] and c, "it has no trg_label_suppix, trg_pool"),
    "no rows": (lambda c: c.update(trg_pool_im_idx="x"), "trg_pool_im_idx is no list"),
    "numbers": (lambda c: c["trg_pool_im_idx"].append([1, 2, 3]), r"trg_pool_im_idx holds \[1, 2, 3\] where an image"),
    "joined": (lambda c: c["src_label_im_idx"].append(["a,b,c"]), "joins paths with commas"),
    "no dict": (lambda c: c.update(trg_label_suppix=[]), "trg_label_suppix is no dict"),
    "twice": (lambda c: c["trg_label_im_idx"].append(triple(CITY[0])), "an image is listed twice with .*aachen_0"),
    "unlisted": (lambda c: c["trg_label_im_idx"].clear(), "which no image is listed with"),
    "without": (lambda c: c["trg_pool_suppix"].clear(), "trg_pool_suppix has nothing of .*aachen_0"),
    "text ids": (lambda c: c["trg_label_suppix"].update({triple(CITY[0])[2]: ["1"]}), "where region ids are expected"),
    "negative": (lambda c: c["trg_label_suppix"].update({triple(CITY[0])[2]: [-1]}), "where region ids are expected"),
    "a bool": (lambda c: c["trg_label_suppix"].update({triple(CITY[0])[2]: [True]}), "where region ids are expected"),
    "repeated": (lambda c: c["trg_label_suppix"].update({triple(CITY[0])[2]: [1, 1]}), "holds a region of .* twice"),
    "nested": (lambda c: c["trg_label_suppix"].update({triple(CITY[0])[2]: doubled(60)}), "where region ids are"),
    "both": (lambda c: c["trg_pool_suppix"].update({triple(CITY[0])[2]: [2]}), "region 2 of .* is bought and in the"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_contradicts_itself_is_told(kind: str, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    assert read_datalist(stored(tmp_path / "whole", wrong(lambda c: None)))
    with pytest.raises(DatalistError, match=message):
        read_datalist(stored(tmp_path, wrong(change)))


def test_a_comma_in_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatalistError, match="joins paths with commas, so none may have one: rename the folder"):
        read_datalist(stored(tmp_path, content({CITY[0]: [1]}, root="/data/a,b")))


@pytest.mark.parametrize("root", [ROOT, "data", "/"])
def test_images_are_found_by_the_end_of_their_path(root: str, tmp_path: Path) -> None:
    found = read_datalist(stored(tmp_path, content({CITY[1]: [5, 2], CITY[0]: [0]}, root=root)))
    assert list(match(found, [*CITY, "ulm/x"]).items()) == [(CITY[1], [5, 2]), (CITY[0], [0])]


@pytest.mark.parametrize(("folder", "name"), [("GTA5", "00007"), ("RAND_CITYSCAPES", "0000007")])
def test_targets_without_folders(folder: str, name: str, tmp_path: Path) -> None:
    path = f"/data/{folder}/superpixel/{name}.png"
    given = {**content({}), "trg_label_im_idx": [["i", "l", path]], "trg_label_suppix": {path: [4]}}
    assert match(read_datalist(stored(tmp_path, given)), ["00008", name]) == {name: [4]}


def test_images_that_do_not_match_are_told(tmp_path: Path) -> None:
    found = read_datalist(stored(tmp_path, content({CITY[0]: [1], CITY[1]: [1], "ulm/ulm_1": [2]})))
    with pytest.raises(DatalistError, match=r"2 of 3 images are not among the 1 of .*bochum.*ulm_1.*split"):
        match(found, [CITY[0]])
    both = content({CITY[0]: [1]})
    other = content({CITY[0]: [2]}, root="/elsewhere")
    both["trg_label_im_idx"] += other["trg_label_im_idx"]
    both["trg_label_suppix"] |= other["trg_label_suppix"]
    with pytest.raises(DatalistError, match=f"2 paths stand for image '{CITY[0]}': /home/they.*/elsewhere"):
        match(read_datalist(stored(tmp_path, both)), CITY)


def region_map(seed: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Blocks with ids of which 2 is missing."""
    small = np.random.default_rng(seed).permutation(np.array([0, 1, 3, 4, 5, 6, 7, 8, 9], np.uint8)).reshape(3, 3)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


@pytest.fixture(name="city")
def make_city(tmp_path: Path) -> tuple[Dataset, Regions]:
    """Cityscapes in small, and its regions adopted from published PNGs."""
    miniatures.make("cityscapes", tmp_path / "city")
    dataset = open_dataset("cityscapes", DatasetConfig(root=tmp_path / "city"), "train")
    for n, image in enumerate(dataset.ids):
        path = tmp_path / f"city/superpixel/train/{image}_superpixel.png"
        miniatures.save(path, region_map(n, LAYOUTS["cityscapes"].size))
    published = Published(tmp_path / "city", "train", dataset.ids)
    return dataset, regions.make(dataset, tmp_path / "regions", published, jobs=1)


def test_bought_regions_become_a_round(city: tuple[Dataset, Regions], tmp_path: Path) -> None:
    dataset, held = city
    bought = {dataset.ids[1]: [8, 0, 3], dataset.ids[0]: [5]}
    pool = {image: [r for r in range(10) if r != 2 and r not in bought.get(image, [])] for image in dataset.ids}
    cost = CostModel(seconds_per_click=1)
    found = read_datalist(stored(tmp_path, content(bought, pool)))
    rows, masks = begin(found, dataset, held, cost)
    assert [(r.image, r.region, r.part) for r in rows] == [
        (dataset.ids[1], 8, 1),
        (dataset.ids[1], 0, 2),
        (dataset.ids[1], 3, 3),
        (dataset.ids[0], 5, 1),
    ]
    assert list(masks) == [dataset.ids[1], dataset.ids[0]] and len(masks) == 2
    for row in rows:
        region = held.read(row.image) == row.region
        void = dataset.read_label(dataset.ids.index(row.image)) == 255
        assert np.array_equal(masks[row.image] == row.part, region)
        assert (row.area_px, row.ignored_px) == (region.sum(), (region & void).sum())
        assert row.clicks == cost.clicks(np.array([boundary_vertices(region)]))[0]
        assert (row.predicted, row.score) == (255, None)
    with pytest.raises(KeyError):
        masks["other"]
    stored_round = write_round(tmp_path / "round_0", info(dataset, rows), rows, masks)
    assert stored_round.rows == rows and len(stored_round.missing()) == 4
    assert np.array_equal(stored_round.asked(dataset.ids[1]), masks[dataset.ids[1]])


def info(dataset: Dataset, rows: list[Any]) -> RoundInfo:
    return RoundInfo(
        group="d2ada",
        round=0,
        data="city:train",
        split=dataset.split,
        labels=dataset.space.to_dict(),
        annotator="truth",
        acquisition={"name": "datalist"},
        partition={"name": "superpixels"},
        model="",
        seed=0,
        pool_px=1,
        budget_px=0,
        labelled_px=0,
        ignored_px=0,
        regions=len(rows),
        images=2,
        clicks=sum(r.clicks for r in rows),
        minutes=0,
    )


def test_other_regions_are_refused(city: tuple[Dataset, Regions], tmp_path: Path) -> None:
    dataset, held = city
    found = read_datalist(stored(tmp_path, content({dataset.ids[0]: [1]})))
    ours = regions.make(dataset, tmp_path / "ours", SuperpixelConfig(number=4))
    with pytest.raises(DatalistError, match=r"its own superpixels.*regions cityscapes:train --published DIR"):
        begin(found, dataset, ours)
    for absent in (2, 10):
        with pytest.raises(DatalistError, match=f"has no region {absent} in"):
            begin(read_datalist(stored(tmp_path, content({dataset.ids[0]: [1, absent]}))), dataset, held)
    images = len(dataset)
    one = open_dataset("cityscapes", DatasetConfig(root=tmp_path / "city", limit=1), "train")
    published = Published(tmp_path / "city", "train", one.ids)
    less = regions.make(one, tmp_path / "less", published)
    assert images > 1
    with pytest.raises(DataError, match="no regions of 1 images"):
        begin(read_datalist(stored(tmp_path, content({dataset.ids[1]: [1]}))), dataset, less)
    assert issubclass(DatalistError, UserError) and issubclass(PickleError, UserError)
