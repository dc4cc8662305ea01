"""Label maps that lie as PNGs in a folder, made by whatever program, scored without a network or torch.

A file belongs to an image when its path ends like the image's id or file name, or the other way round; of Cityscapes
names the first three fields decide (``aachen_000000_000019*.png``, the rule of the official evaluator). Values are
train ids or the label space's label ids: whichever can explain all of them. Where both can and the scores differ,
``encoding`` must say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segue.data.dataset import Dataset
from segue.data.images import read_ids
from segue.errors import UserError
from segue.files import file_of
from segue.labels import IGNORE, U8, UNKNOWN, LabelSpace, nearest
from segue.scoring.reading import ahead
from segue.scoring.result import Result, Tally, labelled_indices

SHOWN = 5  # files that a message names

CITYSCAPES = re.compile(r"([^/_]+_\d{6}_\d{6})(?:_.*)?")


@dataclass(frozen=True)
class _Item:
    index: int
    path: Path
    label: U8
    values: np.ndarray[Any, Any]


def score_predictions(
    folder: Path,
    dataset: Dataset,
    views: Sequence[str] = ("all",),
    *,
    encoding: str | None = None,
    boundary: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Score the PNGs below ``folder`` on every labelled image of ``dataset`` under the protocol ``native``.

    ``Result.extras`` tells the ``encoding`` and the number and names of ``extra_files`` that belong to no image.
    ``UserError`` for missing files, files of another size than the label, values that are no ids, and ambiguity.
    """
    indices, labels = labelled_indices(dataset), dataset.space
    tables = _tables(labels)
    if encoding is not None:
        if encoding not in tables:
            raise UserError(f"unknown encoding {encoding!r}{nearest(encoding, list(tables))}")
        tables = {encoding: tables[encoding]}
    tallies = {name: Tally(labels, views, boundary=boundary) for name in tables}
    found, extra = find(folder, dataset)
    missing = [dataset.ids[i] for i in indices if i not in found]
    if missing:
        raise UserError(f"{folder} holds no prediction for {_some(missing)} of {len(indices)} images{_hint(extra)}")

    def read(index: int) -> _Item:
        return _Item(index, found[index], dataset.read_label(index), read_ids(found[index]))

    wrong: list[str] = []
    for done, item in enumerate(ahead(read, indices), 1):
        if item.values.shape != item.label.shape:
            (h, w), (lh, lw) = item.values.shape, item.label.shape
            wrong.append(f"{item.path} is {w}x{h} pixels, the label {lw}x{lh}")
        else:
            _add(item, dataset.ids[item.index], tables, tallies)
        if progress is not None:
            progress(done, len(indices))
    if wrong:
        raise UserError(f"predictions must have the size of their labels: {_some(wrong)}")
    name = _only(tallies, folder)
    extras: dict[str, Any] = {"encoding": name, "extra_files": {"number": len(extra), "first": extra[:SHOWN]}}
    return tallies[name].result(len(dataset.ids) - len(indices), extras=extras)


def find(folder: Path, dataset: Dataset) -> tuple[dict[int, Path], list[str]]:
    """Files of images by index, and the files (relative) that belong to none; ``UserError`` for ambiguous ones."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    by_last: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for index, image_id in enumerate(dataset.ids):
        for name in _names(dataset, index, image_id):
            parts = tuple(name.split("/"))
            by_last.setdefault(parts[-1], []).append((index, parts))
    found: dict[int, Path] = {}
    extra: list[str] = []
    for path in sorted(folder.rglob("*.png")):
        relative = path.relative_to(folder).with_suffix("").as_posix()
        images = _images(tuple(relative.split("/")), by_last)
        if len(images) > 1:
            raise UserError(f"{path} could belong to {_some([dataset.ids[i] for i in sorted(images)])} images")
        for index in images:
            if index in found:
                raise UserError(f"{found[index]} and {path} could both be the prediction of {dataset.ids[index]!r}")
            found[index] = path
        if not images:
            extra.append(path.relative_to(folder).as_posix())
    return found, extra


def _names(dataset: Dataset, index: int, image_id: str) -> set[str]:
    file = dataset.files(index)[0]
    names = {image_id, file_of(image_id)} | ({file.path.rpartition(".")[0]} if file is not None else set())
    official = CITYSCAPES.fullmatch(image_id.rpartition("/")[2])
    return names | ({official[1]} if official else set())


def _images(parts: tuple[str, ...], by_last: dict[str, list[tuple[int, tuple[str, ...]]]]) -> set[int]:
    """Images whose name ends like the file's, or the other way round."""
    official = CITYSCAPES.fullmatch(parts[-1])
    out = {index for index, name in by_last.get(official[1], []) if len(name) == 1} if official else set()
    for index, name in by_last.get(parts[-1], []):
        length = min(len(name), len(parts))
        if name[-length:] == parts[-length:]:
            out.add(index)
    return out


def _tables(labels: LabelSpace) -> dict[str, U8]:
    """Of each encoding, the train id of every value; 254 where it has no meaning, 255 for void."""
    train, file = (np.full(256, UNKNOWN, np.uint8) for _ in range(2))
    train[IGNORE] = file[IGNORE] = IGNORE
    train[: len(labels)] = range(len(labels))
    file[0] = IGNORE  # void, unless 0 is a class
    for number, value in enumerate(labels.ids):
        if value <= IGNORE:
            file[value] = number
    return {"trainid": train, "labelid": file}


def _add(item: _Item, name: str, tables: dict[str, U8], tallies: dict[str, Tally]) -> None:
    if item.values.dtype != np.uint8:
        raise UserError(f"{item.path} holds {item.values.dtype} values: predictions are 8-bit PNGs of ids")
    for encoding in list(tallies):
        prediction = np.asarray(cv2.LUT(item.values, tables[encoding]), np.uint8)
        if (prediction == UNKNOWN).any():
            del tallies[encoding]
        else:
            tallies[encoding].add(name, item.label, prediction)
    if not tallies:
        known = " or ".join({"trainid": "train ids", "labelid": "label ids"}[k] for k in tables)
        values = np.unique(item.values)
        shown = ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
        raise UserError(f"{item.path} holds the values {shown}: with the files before it, these are no {known}")


def _only(tallies: dict[str, Tally], folder: Path) -> str:
    first, *rest = tallies
    if any(not np.array_equal(tallies[k].total.counts, tallies[first].total.counts) for k in rest):
        raise UserError(f"the values in {folder} could be train ids or label ids; say which with --encoding")
    return first


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return f"{len(names)} ({shown})" if len(names) > 1 else shown


def _hint(extra: Sequence[str]) -> str:
    return f"; files that belong to no image: {_some(extra)}" if extra else ""
