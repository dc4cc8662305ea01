"""What D2ADA's code (Wu et al., ECCV 2022) has bought, as the beginning of a group of rounds: ``datalist_0X.pkl``.

The file holds paths on the machine that wrote it and ids of regions in its superpixel PNGs. Images are found again by
the end of the path, regions only in a folder that was made from the same PNGs (``segue data regions --published``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

from segue.acquire.cost import CostModel
from segue.acquire.plain_pickle import read_plain
from segue.acquire.state import U16, Asked, Row
from segue.data.dataset import Dataset
from segue.data.regions import PublishedConfig, Regions
from segue.errors import UserError
from segue.labels import IGNORE

MOST_REGIONS = 2**24
SHOWN = 3

Bought = dict[str, tuple[int, ...]]


class DatalistError(UserError):
    """A datalist that is none, contradicts itself, or is of other images or regions."""


@dataclass(frozen=True)
class Datalist:
    """A datalist; superpixel files by the path that it was written with, and the ids of their regions."""

    path: Path
    labelled: Bought
    """Bought regions, in the order of buying."""
    pool: Bought
    """Regions that could still be bought."""
    source: tuple[str, ...]
    """Labelled source images."""


def read_datalist(path: Path) -> Datalist:
    """Read ``datalist_0X.pkl``; nothing in it is executed. ``UserError`` says what is wrong with the file."""
    content = read_plain(path)
    keys = ("src_label_im_idx", "trg_label_im_idx", "trg_pool_im_idx", "trg_label_suppix", "trg_pool_suppix")
    if not isinstance(content, dict) or (missing := [key for key in keys if key not in content]):
        what = f"it has no {', '.join(missing)}" if isinstance(content, dict) else f"it is {type(content).__name__}"
        raise DatalistError(f"{path} is no datalist of regions: {what}")
    source, labelled, pool = (_triples(path, key, content[key]) for key in keys[:3])
    found = Datalist(
        path,
        _regions(path, "trg_label_suppix", content["trg_label_suppix"], labelled),
        _regions(path, "trg_pool_suppix", content["trg_pool_suppix"], pool),
        tuple(image for image, _, _ in source),
    )
    for name in found.labelled.keys() & found.pool.keys():
        if both := set(found.labelled[name]) & set(found.pool[name]):
            raise _damaged(path, f"region {min(both)} of {name} is bought and in the pool")
    return found


def match(datalist: Datalist, ids: Iterable[str]) -> dict[str, list[int]]:
    """Bought regions by the id of their image in ``ids``, in the order of buying.

    ``DatalistError`` for paths that end in no id, and for two that end in the same one.
    """
    known = frozenset(ids)
    given = {path: _image_of(path, known) for path in datalist.labelled}
    if unknown := [path for path, image in given.items() if image is None]:
        raise DatalistError(
            f"{datalist.path}: {len(unknown)} of {len(given)} images are not among the {len(known)} of the data set: "
            f"{_some(unknown)}; is it the list of another data set or split, or does the recipe leave images out?"
        )
    twice = [image for image, number in Counter(given.values()).items() if number > 1]
    if twice:
        paths = [path for path, image in given.items() if image == twice[0]]
        raise DatalistError(f"{datalist.path}: {len(paths)} paths stand for image {twice[0]!r}: {_some(paths)}")
    return {image: list(datalist.labelled[path]) for path, image in given.items() if image is not None}


def begin(
    datalist: Datalist, dataset: Dataset, regions: Regions, cost: CostModel | None = None
) -> tuple[list[Row], Mapping[str, U16]]:
    """What :func:`segue.acquire.state.write_round` needs to store the bought regions: rows, and maps read on demand.

    No model chose here, so ``predicted`` is 255 and there is no score. ``DatalistError`` for regions that were not made
    from published PNGs or lack one of these; ``DataError`` for images without regions.
    """
    if not isinstance(regions.index.superpixels, PublishedConfig):
        raise DatalistError(
            f"region ids of {datalist.path} are those of its own superpixels, and {regions.folder} holds others: make "
            f"a folder from those with 'segue data regions {dataset.name}:{dataset.split} --published DIR'"
        )
    bought = match(datalist, dataset.ids)
    regions.require(bought)
    rows: list[Row] = []
    masks = Asked(lambda image, _: regions.read(image), bought)
    for image, chosen in bought.items():
        area_px, ignored_px = _areas(regions, image)
        if absent := [r for r in chosen if r >= len(area_px) or not area_px[r]]:
            raise DatalistError(
                f"{datalist.path}: image {image!r} has no region {absent[0]} in {regions.folder}: its superpixels are "
                f"not those that were bought from"
            )
        clicks = (cost or CostModel()).clicks_of(masks[image], len(chosen))
        rows += [
            Row(
                image=image,
                region=region,
                part=part,
                area_px=area_px[region],
                ignored_px=ignored_px[region],
                predicted=IGNORE,
                clicks=clicks[part - 1],
            )
            for part, region in enumerate(chosen, 1)
        ]
    return rows, masks


def _areas(regions: Regions, image_id: str) -> tuple[list[int], list[int]]:
    at = regions.rows(image_id)
    area_px: list[int] = regions.area_px[at].tolist()
    return area_px, [0] * len(area_px) if regions.ignored_px is None else regions.ignored_px[at].tolist()


def _image_of(path: str, ids: frozenset[str]) -> str | None:
    parts = path.removesuffix(".png").removesuffix("_superpixel").split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))  # the longest that is an id
    return next((tail for tail in tails if tail in ids), None)


def _triples(path: Path, key: str, value: Any) -> list[list[str]]:
    if not isinstance(value, list):
        raise _damaged(path, f"{key} is no list")
    for row in value:
        if not isinstance(row, list) or not all(isinstance(name, str) for name in row):
            raise _damaged(path, f"{key} holds {_short(row)} where an image, a label and superpixels are expected")
        if len(row) != 3 or any("," in name for name in row):
            raise DatalistError(
                f"{path}: {key} holds {_short(row)}; that code joins paths with commas, so none may have one: rename "
                f"the folder, and replace it in the list"
            )
    return value


def _regions(path: Path, key: str, value: Any, images: Sequence[Sequence[str]]) -> Bought:
    if not isinstance(value, dict):
        raise _damaged(path, f"{key} is no dict")
    listed = Counter(row[2] for row in images)
    if twice := [name for name, number in listed.items() if number > 1]:
        raise _damaged(path, f"an image is listed twice with {twice[0]}")
    if missing := [name for name in listed if name not in value]:
        raise _damaged(path, f"{key} has nothing of {missing[0]}, which an image is listed with")
    if sum(len(ids) for ids in value.values() if isinstance(ids, list)) > MOST_REGIONS:
        raise _damaged(path, f"{key} holds more than {MOST_REGIONS} regions")
    for name, ids in value.items():
        if name not in listed:
            raise _damaged(path, f"{key} holds {_short(name)}, which no image is listed with")
        if not isinstance(ids, list) or any(type(i) is not int or not 0 <= i < 2**16 for i in ids):
            raise _damaged(path, f"{key} holds {_short(ids)} for {name} where region ids are expected")
        if len(set(ids)) != len(ids):
            raise _damaged(path, f"{key} holds a region of {name} twice")
    return {name: tuple(ids) for name, ids in value.items()}


def _damaged(path: Path, what: str) -> DatalistError:
    return DatalistError(f"{path} is damaged: {what}")


def _short(value: Any) -> str:
    bounded = Repr()  # what a crafted file holds can be endless when it is written out
    bounded.maxstring = bounded.maxother = 120
    return bounded.repr(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
