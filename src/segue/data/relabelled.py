"""A data set with the labels of a folder in place of its own: how pseudo-labels are read.

The folder holds PNGs of train ids and ``index.json``, which says for each image id which file is its label, so the
order of a loader never matters. Labels have the size at which the images were read when they were made
(``own_label_size``): resized to an image's larger file and then to that size again, they come out as they are. Where
labels were made with trust, a second PNG of the same size says how far each pixel of one is trusted, in 255ths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.data.dataset import Dataset, Sample, map_ids
from segue.data.errors import DataError
from segue.data.images import Size, read_ids, resize_label
from segue.data.store import File, Store
from segue.labels import U8, LabelSpace, build_map, space_from_dict

INDEX = "index.json"
FORMAT = "segue-labels-1"
"""``format`` of the index. The other keys that readers need: ``labels`` (:meth:`LabelSpace.to_dict`), ``split``, and
``images`` (id to ``file``, ``size``, height and width, and maybe ``weight``, a second file)."""


@dataclass(frozen=True)
class Row:
    """Of one image the label's file, its (height, width), and the file of its weights, if it has any."""

    file: str
    size: Size
    weight: str | None = None


@dataclass(frozen=True)
class Index:
    """What an index says: the label space, the split, and a row for each image id."""

    labels: LabelSpace
    split: str
    images: dict[str, Row]


class Relabelled(Dataset):
    """The images of ``inner`` and the labels of ``folder`` (or of an archive).

    ``partly``: only the images that have a label there; else ``DataError`` for any that has none, and always for a
    folder without a whole index and for labels of other classes.
    """

    def __init__(self, inner: Dataset, folder: Path, *, partly: bool = False) -> None:
        store = Store(folder)
        index = read_index(store)
        places = [n for n, i in enumerate(inner.ids) if i in index.images or not partly]
        super().__init__(inner.name, inner.space, [inner.ids[n] for n in places], inner.size)
        self._inner = inner
        self._places = places
        self._store = store
        self.root = store.root
        self.split = inner.split
        self._check(index)
        self._labels = [index.images[image_id] for image_id in self.ids]
        self.label_map = build_map(self.space, None, dict(enumerate(self.space.classes)))
        self.coverage = self.label_map.coverage
        self.labelled = True
        self.own_label_size = True

    def files(self, index: int) -> tuple[File | None, File | None]:
        """Image file, None where there is none, and label file."""
        return self._inner.files(self._places[index])[0], File(self._store, self._labels[index].file)

    def read_sample(self, index: int, labels: bool) -> Sample:
        """See :class:`Dataset`; with the weights of a label that has some."""
        sample = super().read_sample(index, labels)
        name = self._labels[index].weight
        if sample.label is None or name is None:
            return sample
        weight = np.asarray(self._read(index, name), np.uint8)
        return replace(sample, weight=resize_label(weight, sample.image.shape[:2]))

    def read_label(self, index: int) -> U8:
        """(H, W) uint8 train ids at the size at which they were made. ``DataError`` names the file."""
        assert self.label_map is not None  # always
        return map_ids(self.label_map, self.read_file_ids(index), str(self.files(index)[1]))

    def read_file_ids(self, index: int) -> npt.NDArray[Any]:
        """(H, W) train ids as the file holds them, 255 = not labelled. ``DataError`` names the file."""
        return self._read(index, self._labels[index].file)

    def label_stamp(self, index: int) -> tuple[str, str]:
        """See :class:`Dataset`: the label's path; size and time, or in an archive size and checksum."""
        file = File(self._store, self._labels[index].file)
        return file.path, file.stamp()

    def describe(self, index: int) -> str:
        """The image, for messages."""
        return self._inner.describe(self._places[index])

    def colorize(self, label: U8) -> U8:
        """(H, W) train ids to an (H, W, 3) RGB picture."""
        return self._inner.colorize(label)

    def _image(self, index: int) -> U8:
        return self._inner._image(self._places[index])

    def _read(self, index: int, name: str) -> npt.NDArray[Any]:
        file, size = File(self._store, name), self._labels[index].size
        ids = read_ids(file)
        if ids.shape != size:
            (h, w), (wanted_h, wanted_w) = ids.shape, size
            raise DataError(f"{file} is {w}x{h} pixels, {INDEX} says {wanted_w}x{wanted_h}: {_AGAIN}")
        return ids

    def _check(self, index: Index) -> None:
        where = f"the labels in {self.root}"
        if index.labels.classes != self.space.classes:
            other = sorted(set(index.labels.classes) ^ set(self.space.classes))
            raise DataError(
                f"{where} are of label space {index.labels.name!r}, data set {self.name!r} is read in "
                f"{self.space.name!r}; they differ in {', '.join(other[:6]) or 'the order of classes'}: label the "
                f"images with a model of these classes"
            )
        absent = [i for i in self.ids if i not in index.images]
        if absent:
            raise DataError(
                f"{where} are of {len(index.images)} other images: {len(absent)} of {len(self)} images of data set "
                f"{self.name!r} are not in {INDEX}, the first is {absent[0]!r}; label these too, or leave them out "
                f"with 'include' or 'exclude'"
            )
        rows = [index.images[i] for i in self.ids]
        wanted = [row.file for row in rows] + [row.weight for row in rows if row.weight is not None]
        if gone := [name for name in wanted if not self._store.has(name)]:
            raise DataError(
                f"{len(gone)} of {len(wanted)} label files are not in {self.root}, the first is {gone[0]}: {_AGAIN}"
            )


def relabelled(inner: Dataset, folder: Path) -> Dataset:
    """:class:`Relabelled`, or ``inner`` as it is where ``folder`` holds the labels of another split."""
    return Relabelled(inner, folder) if read_index(Store(folder)).split == inner.split else inner


_AGAIN = "delete the folder and make the labels again"


def read_index(store: Store) -> Index:
    """The index of a folder of labels; ``DataError`` without one, and for one that is damaged."""
    if not store.has(INDEX):
        raise DataError(
            f"{store.root} has no {INDEX}: give a folder that `segue pseudo-label` has finished (the same command "
            f"again goes on where it stopped)"
        )
    try:
        content = json.loads(store.read(INDEX))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        images = {image_id: _row(row) for image_id, row in content["images"].items()}
        return Index(space_from_dict(content["labels"]), str(content["split"]), images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read {store.root / INDEX} ({error}): {_AGAIN}") from error


def _row(row: dict[str, Any]) -> Row:
    weight = row.get("weight")
    return Row(_plain(row["file"]), _size(*row["size"]), None if weight is None else _plain(weight))


def _plain(name: str) -> str:
    if not name.endswith(".png") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} is no file name")
    return name


def _size(height: int, width: int) -> Size:
    return int(height), int(width)
