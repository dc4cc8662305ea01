"""``segue data prepare --format raw``: images and labels as two plain files, read through memory maps.

``images.u8`` holds row after row of H x W x 3 bytes (RGB), ``labels.u8`` one byte a pixel (train ids of the data set's
space), ``memory_map.json`` which rows a split has, where each label lies, and a CRC-32 of each row's bytes. Nothing is
decoded and nothing copied: an image is a read-only view of the page cache, which all processes share. A worker process
opens the maps for itself when it first reads.

While it is being written, ``rows.jsonl`` holds one line a finished row; writing goes on behind the last whole one.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from pydantic import ValidationError

from segue.config import DatasetConfig
from segue.data.catalog import DatasetSpec
from segue.data.dataset import Dataset, choose, map_ids
from segue.data.errors import DataError
from segue.data.images import Size
from segue.files import write_text
from segue.labels import U8, LabelSpace, build_map, nearest
from segue.settings import Settings

INDEX = "memory_map.json"
IMAGES = "images.u8"
LABELS = "labels.u8"
JOURNAL = "rows.jsonl"


class Place(NamedTuple):
    """Where a label lies in ``labels.u8``."""

    offset: int
    height: int
    width: int
    crc: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + self.height * self.width


class Rows(Settings):
    """The images of one split: their ids, and the row of each."""

    ids: tuple[str, ...]
    rows: tuple[int, ...]


class Index(Settings):
    """``memory_map.json``."""

    size: Size
    image_crc: tuple[int, ...]
    """CRC-32 of the bytes of each image row."""
    labels: tuple[tuple[int, int, int, int] | None, ...]
    """(offset, height, width, CRC-32) of the label of each row; null without a label."""
    splits: dict[str, Rows]


def holds(root: Path) -> bool:
    """Whether a folder is a finished memory-mapped copy."""
    return (root / INDEX).is_file()


class MemoryMapDataset(Dataset):
    """One split of a memory-mapped copy; ``DataError`` when its index or files are not whole."""

    def __init__(
        self, name: str, root: Path, spec: DatasetSpec, split: str, config: DatasetConfig, space: LabelSpace
    ) -> None:
        index = _load(root)
        if split not in index.splits:
            raise DataError(f"data set {name!r} has no split {split!r}{nearest(split, list(index.splits))}")
        part = index.splits[split]
        super().__init__(name, space, choose(part.ids, config), config.size)
        self.split = split
        if not self.ids:
            raise DataError(
                f"data set {name!r}: none of its {len(part.ids)} images of split {split!r} is left by "
                f"include={list(config.include)} exclude={list(config.exclude)}"
            )
        self.own_label_size = True
        self.root: Path = root
        self._file_size = index.size
        row_of = dict(zip(part.ids, part.rows, strict=True))
        self._rows = [row_of[i] for i in self.ids]
        self._crc = [index.image_crc[row] for row in self._rows]
        self._places = [None if (at := index.labels[row]) is None else Place(*at) for row in self._rows]
        self.unlabelled_ids = [i for i, place in zip(self.ids, self._places, strict=True) if place is None]
        self.labelled = len(self.unlabelled_ids) < len(self.ids)
        native = spec.native()
        self.label_map = build_map(space, native, dict(enumerate(native.classes)))
        self.coverage = self.label_map.coverage if self.labelled else None
        if not self.labelled:
            self.unlabelled_ids = []
        self._maps: dict[str, mmap.mmap] = {}

    def read_label(self, index: int) -> U8:
        """(H, W) uint8 train ids at the resolution of the copy, or of the source's file where that was kept."""
        assert self.label_map is not None
        return map_ids(self.label_map, self.read_file_ids(index), f"label of {self.describe(index)}")

    def read_file_ids(self, index: int) -> U8:
        """(H, W) uint8 train ids of the copy's own label space."""
        place = self._places[index]
        if place is None:
            raise DataError(f"{self.describe(index)} has no label")
        return self._label_bytes(place)

    def label_stamp(self, index: int) -> tuple[str, str] | None:
        """See :class:`Dataset`: where the label lies, its size and stored checksum."""
        place = self._places[index]
        return None if place is None else (str(place.offset), f"{place.height} {place.width} {place.crc}")

    def describe(self, index: int) -> str:
        """The image, for messages."""
        return f"image {self.ids[index]!r} of {self.root / IMAGES}"

    def faults(self, index: int) -> list[str]:
        """What is wrong with the stored bytes of an image or its label, by their checksums."""
        out = []
        if _crc(self._image(index)) != self._crc[index]:
            out.append(f"{self.describe(index)} is damaged (its checksum differs): prepare the data again")
        place = self._places[index]
        if place is not None and _crc(self._label_bytes(place)) != place.crc:
            out.append(f"label of {self.describe(index)} is damaged (its checksum differs): prepare the data again")
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def _image(self, index: int) -> U8:
        height, width = self._file_size
        data = np.frombuffer(self._open(IMAGES), np.uint8, height * width * 3, self._rows[index] * height * width * 3)
        return data.reshape(height, width, 3)

    def _label_bytes(self, place: Place) -> U8:
        data = np.frombuffer(self._open(LABELS), np.uint8, place.height * place.width, place.offset)
        return data.reshape(place.height, place.width)

    def _open(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            try:
                with (self.root / name).open("rb") as file:
                    self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise DataError(f"cannot read {self.root / name}: {error.strerror}") from error
        return self._maps[name]


class Writer:
    """Appends rows to a copy, behind those that an earlier run finished; ``done`` says how many there are."""

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder = folder
        self._size = size
        self._journal = (folder / JOURNAL).open("ab+", buffering=0)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder} is in use by another process") from error
        self._image_crc: list[int] = []
        self._places: list[Place | None] = []
        self._images, self._labels = self._take_up()

    @property
    def done(self) -> int:
        """Rows written so far, by this run and earlier ones."""
        return len(self._image_crc)

    def append(self, image: U8, label: U8 | None) -> None:
        """Write one row; it counts once its line is in the journal."""
        crc = _crc(image)
        _write(self._images, np.ascontiguousarray(image).data)
        place = None
        if label is not None:
            height, width = label.shape
            place = Place(self._labels.tell(), height, width, _crc(label))
            _write(self._labels, np.ascontiguousarray(label).data)
        _write(self._journal, memoryview(json.dumps([crc, place]).encode() + b"\n"))
        self._image_crc.append(crc)
        self._places.append(place)

    def finish(self, splits: Mapping[str, tuple[Sequence[str], Sequence[int]]]) -> None:
        """Write the index: ids and rows of each split. The copy can be opened from now on."""
        parts = {name: Rows(ids=tuple(ids), rows=tuple(rows)) for name, (ids, rows) in splits.items()}
        index = Index(size=self._size, image_crc=tuple(self._image_crc), labels=tuple(self._places), splits=parts)
        write_text(self._folder / INDEX, index.model_dump_json())

    def close(self) -> None:
        """Close the files."""
        for file in (self._images, self._labels, self._journal):
            file.close()

    def _take_up(self) -> tuple[BinaryIO, BinaryIO]:
        self._journal.seek(0)
        lines = self._journal.read().split(b"\n")
        row_bytes = self._size[0] * self._size[1] * 3
        files = [(self._folder / name).open("ab", buffering=0) for name in (IMAGES, LABELS)]
        held = [file.seek(0, 2) for file in files]
        kept = label_end = 0
        for line in lines[:-1]:
            try:
                crc, at = json.loads(line)
                place = None if at is None else Place(*at)
            except (ValueError, TypeError):
                break
            end = label_end if place is None else place.end
            if (self.done + 1) * row_bytes > held[0] or end > held[1]:
                break
            label_end, kept = end, kept + len(line) + 1
            self._image_crc.append(crc)
            self._places.append(place)
        for file, end in zip((*files, self._journal), (self.done * row_bytes, label_end, kept), strict=True):
            file.truncate(end)
            file.seek(0, 2)
        return files[0], files[1]


def _crc(array: U8) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _write(file: BinaryIO, data: memoryview) -> None:
    # An unbuffered write may be short, on a disk that fills up for one.
    data = data.cast("B")
    while data:
        data = data[file.write(data) :]


def _load(root: Path) -> Index:
    path = root / INDEX
    try:
        index = Index.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise DataError(f"{path} is damaged: prepare the data again ({error.errors()[0]['msg']})") from error
    rows = len(index.image_crc)
    places = [Place(*at) for at in index.labels if at is not None]
    wrong = (
        len(index.labels) != rows
        or any(len(p.ids) != len(p.rows) or not all(0 <= r < rows for r in p.rows) for p in index.splits.values())
        or any(p.offset < 0 or p.height < 1 or p.width < 1 for p in places)
    )
    if wrong:
        raise DataError(f"{path} is damaged: its numbers do not fit together; prepare the data again")
    needed = {IMAGES: rows * index.size[0] * index.size[1] * 3, LABELS: max((p.end for p in places), default=0)}
    for name, length in needed.items():
        held = (root / name).stat().st_size if (root / name).is_file() else 0
        if held < length:
            raise DataError(f"{root / name} has {held} of {length} bytes: copy it again, or prepare the data again")
    return index
