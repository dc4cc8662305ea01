"""A folder of regions: a PNG of region ids for each image, ``areas.npy`` and ``index.json``.

The PNGs (16 bits, one channel, at the image file's resolution) are named by :func:`segue.files.file_of` of the image's
id. ``areas.npy`` is one table of all regions of all images, in the order of the index: pixels, and how many of them the
label ignores where there are labels. A budget is counted from it alone; no PNG is decoded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from segue.data.errors import DataError
from segue.data.images import Size, read_ids
from segue.data.regions.published import PublishedConfig
from segue.data.regions.slic import U16, SuperpixelConfig
from segue.files import file_of, read_json
from segue.settings import Settings

INDEX, AREAS = "index.json", "areas.npy"
FORMAT = "segue-regions-1"

U32 = npt.NDArray[np.uint32]


class Entry(Settings):
    """What the index says of one image."""

    size: Size
    regions: int
    """Ids are 0 to one less. Superpixels made here have all of them; published ones may have gaps, of area 0."""
    crc: int
    """CRC-32 of the PNG's bytes."""


class Index(Settings):
    """``index.json``."""

    format: str = FORMAT
    data: str
    split: str
    superpixels: SuperpixelConfig | PublishedConfig
    opencv: str
    labels: dict[str, Any] | None
    """Label space whose void is the ignored pixels (:meth:`segue.labels.LabelSpace.to_dict`); null without labels."""
    images: dict[str, Entry]


class Regions:
    """Regions on disk. ``area_px`` and ``ignored_px`` (T,): all regions of all images, see :meth:`rows`.

    ``ignored_px`` is None without labels, and 0 for an image that lacks one. ``DataError`` when the folder is not
    finished, or its index or areas are damaged.
    """

    area_px: U32
    ignored_px: U32 | None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = _index(folder)
        ends = np.cumsum([0, *(entry.regions for entry in self.index.images.values())])
        self._rows = {i: slice(int(a), int(b)) for i, a, b in zip(self.index.images, ends[:-1], ends[1:], strict=True)}
        table = self._areas(ends)
        self.area_px = table["area_px"]
        self.ignored_px = table["ignored_px"] if self.index.labels is not None else None

    @property
    def ids(self) -> list[str]:
        """Images, in the order of the tables."""
        return list(self.index.images)

    def rows(self, image_id: str) -> slice:
        """Where the regions of an image lie in the tables, by id; ``DataError`` for an image without regions.

        An id that no pixel has (:class:`Entry`) is in there with an area of 0, and is no region.
        """
        self.require([image_id])
        return self._rows[image_id]

    def require(self, ids: Iterable[str]) -> None:
        """``DataError`` unless all these images have regions."""
        if missing := [i for i in ids if i not in self._rows]:
            raise DataError(
                f"{self.folder} has no regions of {len(missing)} images, the first is {missing[0]!r}: make them for "
                f"this data set and split with 'segue data regions'"
            )

    def path(self, image_id: str) -> Path:
        """The PNG of an image."""
        return png_of(self.folder, image_id)

    def read(self, image_id: str) -> U16:
        """(H, W) region ids of an image. ``DataError`` for one without regions, and a PNG that is damaged or gone."""
        self.require([image_id])
        path, entry = self.path(image_id), self.index.images[image_id]
        if not whole(path, entry.crc):
            raise DataError(f"{path} is damaged or gone: run 'segue data regions' again, it makes what is missing")
        return np.asarray(read_ids(path), np.uint16).reshape(entry.size)

    def _areas(self, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        path, sizes = self.folder / AREAS, [entry.size for entry in self.index.images.values()]
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(_damaged(path)) from error
        if table.dtype != areas_type(self.index.labels is not None) or table.shape != (ends[-1],):
            raise DataError(_damaged(path))
        pixels = np.add.reduceat(table["area_px"].astype(np.int64), ends[:-1])
        if pixels.tolist() != [height * width for height, width in sizes]:
            raise DataError(_damaged(path))
        return np.asarray(table)


def areas_type(labelled: bool) -> np.dtype[np.void]:
    """Columns of ``areas.npy``."""
    return np.dtype([("area_px", "<u4"), *([("ignored_px", "<u4")] if labelled else [])])


def png_of(folder: Path, image_id: str) -> Path:
    """The PNG of an image's regions in a folder."""
    return folder / f"{file_of(image_id)}.png"


def whole(path: Path, crc: int) -> bool:
    """Whether a file is there with the bytes that it was written with."""
    return path.is_file() and zlib.crc32(path.read_bytes()) == crc


def _index(folder: Path) -> Index:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} holds no finished regions (no {INDEX} there): make them with 'segue data regions'")
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path} is no index of regions: choose another folder")
        index = Index.model_validate(content)
    except (ValidationError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_damaged(path)) from error
    if not index.images or any(entry.regions < 1 for entry in index.images.values()):
        raise DataError(_damaged(path))
    return index


def _damaged(path: Path) -> str:
    return f"{path} is damaged: delete {path.parent}, and make the regions again with 'segue data regions'"
