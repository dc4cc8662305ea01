"""Splits listed by a JSON index, as the loader of CIL (Klingner et al., ITSC 2020; IFN_Dataloader, MIT) reads them.

``train.json``, ``validation.json`` and ``test.json`` lie in the data set's root beside ``basic_files.json``. Each is an
object of parallel lists: ``names[i]`` is a category ("color", "segmentation", "depth", …), ``files[i]`` its paths
relative to the root, ``positions[i]`` a row of four numbers for each of them, of which the first is the picture's place
in the whole data set. Its pictures are those that have a place in both categories that segmentation needs. The loader's
filter by city is ``include: ["aachen/*"]`` here, of a data set or of a step of a task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from segue.data.errors import DataError
from segue.data.listing import Pattern, first_id
from segue.data.store import Store

MARK = "basic_files.json"
"""What the folder of such an index always holds: a ``train.json`` alone may be anything."""
IMAGE, LABEL = "color", "segmentation"


def has_index(store: Store, name: str) -> bool:
    """Whether the root holds an index of that name."""
    return store.has(MARK, archives=False) and store.has(name, archives=False)


def read_index(store: Store, name: str, patterns: Sequence[Pattern]) -> dict[str, str]:
    """Id of each image -> its label's path, "" where the index has no labels, as :func:`segue.data.listing.read_list`.

    ``DataError`` names the file and what is wrong with it, also when no picture is in both categories; whether the
    images are there is not looked at.
    """
    where = store.describe(name)
    try:
        table = _table(json.loads(store.read(name)))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"no list {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{where} is no index of images ({reason}): make it again, or rename it") from error
    images, labels = table.get(IMAGE, {}), table.get(LABEL)
    places = sorted(images if labels is None else images.keys() & labels.keys())
    if not places:
        both = "" if labels is None else f" and {LABEL!r}"
        raise DataError(f"{where} lists no picture that has {IMAGE!r}{both}: make it again, or rename it")
    fields = patterns[0].fields
    return {first_id(images[p], patterns, fields) or images[p]: labels[p] if labels else "" for p in places}


def _table(content: Any) -> dict[str, dict[int, str]]:
    # category -> place -> path
    names, files, positions = content["names"], content["files"], content["positions"]
    if not len(names) == len(files) == len(positions):
        raise ValueError(f"{len(names)} names, {len(files)} lists of files, {len(positions)} of positions")
    rows = zip(names, files, positions, strict=True)
    return {name: _category(name, f, p) for name, f, p in rows if name in (IMAGE, LABEL)}


def _category(name: str, files: Any, positions: Any) -> dict[int, str]:
    if len(files) != len(positions):
        raise ValueError(f"{name}: {len(files)} files, but {len(positions)} positions")
    out: dict[int, str] = {}
    for path, position in zip(files, positions, strict=True):
        place = position[0]
        if not isinstance(path, str) or not isinstance(place, int):
            raise ValueError(f"{name}: {path!r} at {position!r}")
        if place in out:
            raise ValueError(f"{name}: {path} and {out[place]} have one place, {place}")
        out[place] = path.replace("\\", "/").lstrip("/")
    return out
