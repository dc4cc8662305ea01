"""What ``segue data prepare`` and ``segue data pack`` share: which images go where, how they are resized, the YAML.

A copy keeps image ids, split names, class names and maps, so rare-class statistics, include patterns and recipes go on
working. Labels hold train ids of the copy's label space: one byte whatever the source has (SYNTHIA has 16 bits), and
255 = not labelled is all that is left of the many void ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import cv2
import numpy as np
import yaml

from segue.data.catalog import DatasetSpec
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.images import Size, resize_image, resize_label
from segue.labels import U8

T = TypeVar("T")
R = TypeVar("R")

SCORED = ("val", "test")
"""Splits whose names begin so are scored, and scores are at the label's own resolution: it is kept by default."""

# Of all levels, strategies and filters at 512x1024 with sensor noise, the fastest to decode that compresses: runs and
# Huffman codes without matches, rows minus the row above (benchmarks/cache.py).
FAST_PNG = (
    cv2.IMWRITE_PNG_COMPRESSION,
    1,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_UP,
)
# Label maps are long runs: matches without filters make them smallest, and 0.5 ms to decode.
LABEL_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)


@dataclass
class Row:
    """One image to copy with its label. ``own_size``: the label keeps its resolution. ``uses``: (split, id)."""

    dataset: Dataset
    index: int
    own_size: bool
    uses: list[tuple[str, str]] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether the image has a label."""
        return self.dataset.labelled and self.dataset.ids[self.index] not in self.dataset.unlabelled_ids

    def read(self, size: Size) -> tuple[U8, U8 | None]:
        """Image at ``size`` and label in train ids, exactly as the reader resizes; ``DataError`` names the file."""
        if not self.labelled:
            return resize_image(self.dataset.read_image(self.index), size), None
        image, label = self.dataset.read_scored(self.index)
        return resize_image(image, size), label if self.own_size else resize_label(label, size)


def rows_of(splits: Mapping[str, Dataset], native_labels: bool | None) -> list[Row]:
    """What to copy; an image that several splits share (GTA5's val is part of train) comes once.

    ``native_labels``: labels keep their resolution; None: those of splits that are scored (``SCORED``) do.
    """
    rows: dict[Any, Row] = {}
    for split, dataset in splits.items():
        own_size = keeps_size(split, native_labels)
        for index, image_id in enumerate(dataset.ids):
            file = dataset.files(index)[0]
            key = (split, index) if file is None else (str(file), own_size)
            rows.setdefault(key, Row(dataset, index, own_size)).uses.append((split, image_id))
    return list(rows.values())


def keeps_size(split: str, native_labels: bool | None) -> bool:
    """Whether the labels of a split keep their resolution."""
    return split.startswith(SCORED) if native_labels is None else native_labels


class Layout:
    """Where the files of a copy lie: ``images/SPLIT/ID`` and ``labels/SPLIT/ID``.

    A split whose images are all part of a larger one (GTA5's val of train) has a list file and no images of its own.
    """

    def __init__(self, splits: Mapping[str, Dataset], native_labels: bool | None, suffix: str) -> None:
        self.splits = splits
        self.native_labels = native_labels
        self.suffix = suffix
        self.homes: dict[str, str] = {}
        held: dict[str, dict[str, str]] = {}
        for split in sorted(splits, key=lambda s: -len(splits[s])):
            dataset = splits[split]
            mine = {i: str(dataset.files(n)[0]) for n, i in enumerate(dataset.ids) if dataset.files(n)[0] is not None}
            # a list file takes a line apart at spaces
            shared = len(mine) == len(dataset) and not any(" " in i for i in mine)
            found = (h for h, files in held.items() if shared and mine.items() <= files.items())
            self.homes[split] = next(found, split)
            held[split] = mine

    def images(self, row: Row) -> list[str]:
        """Image files that a row is written to."""
        return [f"images/{split}/{key}{self.suffix}" for split, key in row.uses if self.homes[split] == split]

    def labels(self, row: Row) -> list[str]:
        """Label files that a row is written to."""
        if not row.labelled:
            return []
        return list(dict.fromkeys(f"labels/{self._label_folder(split)}/{key}.png" for split, key in row.uses))

    def lists(self) -> dict[str, str]:
        """List files of the splits without images of their own, and their content."""
        return {
            f"{split}.txt": "\n".join(dataset.ids) + "\n"
            for split, dataset in self.splits.items()
            if self.homes[split] != split
        }

    def describe(self) -> dict[str, Any]:
        """What ``dataset.yaml`` says about files."""
        files = {"path": "labels/{split}/{key}.png", "ids": "trainid"}
        parts: dict[str, Any] = {}
        for split, home in self.homes.items():
            part: dict[str, Any] = {} if home == split else {"folder": home, "list": f"{split}.txt"}
            if keeps_size(split, self.native_labels):
                path = f"labels/{self._label_folder(split)}/{{key}}.png"
                part["labels"] = [{**files, "path": path, "own_size": True}]
            elif self._label_folder(split) != home:
                part["labels"] = [{**files, "path": f"labels/{split}/{{key}}.png"}]
            parts[split] = part
        ordered_parts = {split: parts[split] for split in self.splits}
        return {"image": f"images/{{split}}/{{key}}{self.suffix}", "labels": [files], "splits": ordered_parts}

    def _label_folder(self, split: str) -> str:
        home = self.homes[split]
        same = keeps_size(home, self.native_labels) == keeps_size(split, self.native_labels)
        return home if same else split


def description(name: str, spec: DatasetSpec | None, labels: str | None, files: Mapping[str, Any]) -> str:
    """``dataset.yaml`` of a copy. ``labels``: the space that it was mapped to; ``files``: what it says about files."""
    content: dict[str, Any] = {"name": name}
    if labels is not None or spec is None:
        content["space"] = labels
    elif spec.space is not None:
        content["space"] = spec.space
    else:
        content["classes"] = spec.native().to_dict()["classes"]
    if labels is None and spec is not None and spec.maps:
        content["maps"] = {k: dict(v) for k, v in spec.maps.items()}
    return yaml.safe_dump({**content, **files}, sort_keys=False, allow_unicode=True, width=120)


def encode_as(suffix: str, image: U8, options: Sequence[int]) -> bytes:
    """(H, W) or RGB (H, W, 3) as the bytes of a file with these ``cv2`` options."""
    ok, data = cv2.imencode(suffix, image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1]), options)
    if not ok:
        raise DataError(f"cannot encode an image of shape {image.shape} as {suffix}")
    return bytes(data)


def ordered(call: Callable[[T], R], items: Iterable[T], workers: int | None) -> Iterator[R]:
    """``map`` in threads (decoders release the interpreter's lock), in order, with a bounded number of results kept."""
    workers = workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers, "segue-copy")
    rest = iter(items)
    waiting: list[Future[R]] = []
    try:
        waiting += [pool.submit(call, item) for item in islice(rest, 2 * workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(call, item) for item in islice(rest, 1)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spaced."""
    total = len(items)
    return [items[k * total // count] for k in range(count)] if count < total else list(items)
