"""A folder of labels that grows: PNGs of train ids and ``index.json``, as :mod:`segue.data.relabelled` reads them.

PNGs appear whole under the name that follows from the image's id; the index comes last, by :meth:`LabelFolder.save`. A
process that was killed before that leaves what the index knew before, or newer pixels of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.errors import DataError
from segue.data.images import read_ids, write_image
from segue.data.relabelled import FORMAT, INDEX, Row, read_index
from segue.data.store import Store
from segue.files import file_of, write_json
from segue.labels import U8, LabelSpace


class LabelFolder:
    """Labels of ``labels``' classes for images of one split; what the folder holds already is taken up.

    ``DataError`` for a damaged index, and for labels of other classes or another split.
    """

    def __init__(self, folder: Path, labels: LabelSpace, split: str) -> None:
        self.folder = folder
        self.labels = labels
        self.split = split
        self._images: dict[str, Row] = {}
        if (folder / INDEX).is_file():
            index = read_index(Store(folder))
            if (index.labels.classes, index.split) != (labels.classes, split):
                raise DataError(
                    f"{folder} holds labels of {index.labels.name!r}, split {index.split!r}, not of {labels.name!r}, "
                    f"split {split!r}: choose another folder"
                )
            self._images = dict(index.images)

    @property
    def ids(self) -> list[str]:
        """Images that have a label, sorted."""
        return sorted(self._images)

    def read(self, image_id: str) -> U8:
        """(H, W) uint8 as it was put. ``KeyError`` for an image without a label, ``DataError`` for a damaged file."""
        row = self._images[image_id]
        label = np.asarray(read_ids(self.folder / row.file), np.uint8)
        if label.shape != row.size:
            raise DataError(
                f"{self.folder / row.file} is not of size {row.size}, as {INDEX} says: make the labels again"
            )
        return label

    def put(self, image_id: str, label: U8) -> None:
        """Store (H, W) uint8 train ids of an image, 255 = not labelled, over an earlier label."""
        name = f"{file_of(image_id)}.png"
        write_image(self.folder / name, label)
        self._images[image_id] = Row(name, (label.shape[0], label.shape[1]))

    def save(self, info: Mapping[str, Any] | None = None) -> None:
        """Write the index; ``info``: more for it that no reader needs."""
        images = {i: {"file": row.file, "size": list(row.size)} for i, row in sorted(self._images.items())}
        write_json(
            self.folder / INDEX,
            {"format": FORMAT, "labels": self.labels.to_dict(), "split": self.split, **(info or {}), "images": images},
        )
