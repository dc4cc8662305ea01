"""``segue data regions``: regions of all images of a data set, side by side, and exactly resumable.

While regions are made, ``.part/rows.jsonl`` holds the settings and one line for each image whose PNG is there: size,
checksum, areas. A run that was killed goes on behind the last whole line, makes again what has been damaged since, and
ends with the same bytes as one that was not. Files appear under their names when they are whole; ``index.json`` comes
last. Edge maps (ReDAL), once a method reads them, would stand beside the PNGs and be listed in the same index.
"""

from __future__ import annotations

import fcntl
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from pydantic import Field, ValidationError

from segue.data.copies import ordered
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.images import encode
from segue.data.python_dataset import PythonDataset
from segue.data.regions.folder import AREAS, INDEX, Entry, Index, Regions, areas_type, png_of, whole
from segue.data.regions.published import Published
from segue.data.regions.slic import U16, SuperpixelConfig, superpixels
from segue.errors import DISK_FULL
from segue.files import remove, replacing, write_text
from segue.labels import IGNORE, U8

PART = ".part"
JOURNAL, LOCK = "rows.jsonl", "lock"
_LONG = {"images": "other images", "labels": "other labels"}


class Row(Entry):
    """A finished image, as in the journal."""

    id: str
    area_px: list[int] = Field(min_length=1)
    ignored_px: list[int] | None


def make(
    dataset: Dataset,
    folder: Path,
    config: SuperpixelConfig | Published | None = None,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Regions:
    """Make the regions of all images in ``folder``, or what is missing of them; ``jobs`` threads, default one a core.

    ``config``: how to cut, or the maps of others to take over. ``DataError`` for a folder with other content, other
    settings, or in use; for an image or map that cannot be read; for a full disk; to cut without ``cv2.ximgproc``.
    """
    maker = _Maker(dataset, folder, config or SuperpixelConfig())
    with ExitStack() as stack:
        stack.enter_context(_told(maker))
        maker.open(stack)
        # a class of the user's need not be safe in threads
        maker.run(1 if isinstance(dataset, PythonDataset) else jobs, progress)
    return Regions(folder)


class _Maker:
    def __init__(self, dataset: Dataset, folder: Path, config: SuperpixelConfig | Published) -> None:
        self.dataset = dataset
        self.folder = folder
        self.config = config
        self.rows: dict[str, Row] = {}
        self.settings: dict[str, Any] = {
            "superpixels": (config.config if isinstance(config, Published) else config).model_dump(),
            "labels": dataset.space.to_dict() if dataset.labelled else None,
        }

    def open(self, stack: ExitStack) -> None:
        """Claim the folder and take up what is there."""
        self._claim()
        part = self.folder / PART
        part.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((part / LOCK).open("wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another process makes regions in {self.folder}: wait for it") from error
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed
            remove(left)
        there = self._finished() if (self.folder / INDEX).is_file() else self._journalled()
        self.rows = {row.id: row for row in there if whole(png_of(self.folder, row.id), row.crc)}

    def run(self, jobs: int | None, progress: Callable[[int, int], object] | None) -> None:
        ids, bare = self.dataset.ids, set(self.dataset.unlabelled_ids)
        todo = [(n, i not in bare) for n, i in enumerate(ids) if i not in self.rows]
        if todo or not (self.folder / INDEX).is_file():
            lines = [json.dumps({**self.settings, "images": ids}), *(r.model_dump_json() for r in self.rows.values())]
            write_text(self.folder / PART / JOURNAL, "\n".join(lines) + "\n")
            remove(self.folder / INDEX)  # from here on the journal tells what is there
            with (self.folder / PART / JOURNAL).open("ab", buffering=0) as journal:
                for done, row in enumerate(ordered(self._one, todo, jobs), len(self.rows) + 1):
                    _append(journal, row.model_dump_json().encode() + b"\n")
                    self.rows[row.id] = row
                    if progress is not None:
                        progress(done, len(ids))
            self._finish()
        remove(self.folder / PART)

    def _one(self, item: tuple[int, bool]) -> Row:
        index, labelled = item
        image_id = self.dataset.ids[index]
        sample = self.dataset.read_sample(index, self.dataset.labelled and labelled)
        regions = self._cut(image_id, sample.image)
        area = np.bincount(regions.ravel())
        ignored = None
        if self.dataset.labelled:
            void = () if sample.label is None else regions[sample.label == IGNORE]
            ignored = np.bincount(np.asarray(void, np.int64), minlength=len(area)).tolist()
        data = encode(regions, ".png")
        with replacing(png_of(self.folder, image_id)) as temporary:
            temporary.write_bytes(data)
        return Row(
            id=image_id,
            size=(regions.shape[0], regions.shape[1]),
            regions=len(area),
            crc=zlib.crc32(data),
            area_px=area.tolist(),
            ignored_px=ignored,
        )

    def _cut(self, image_id: str, image: U8) -> U16:
        if isinstance(self.config, Published):
            return self.config.read(image_id, image.shape[:2])
        return superpixels(image, self.config)

    def _finish(self) -> None:
        rows = [self.rows[i] for i in self.dataset.ids]
        table = np.empty(sum(row.regions for row in rows), areas_type(self.dataset.labelled))
        for name in table.dtype.names or ():
            table[name] = np.concatenate([getattr(row, name) for row in rows])
        with replacing(self.folder / AREAS) as temporary, temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        images = {row.id: Entry(size=row.size, regions=row.regions, crc=row.crc) for row in rows}
        index = Index(
            **self.settings,
            data=self.dataset.name,
            split=self.dataset.split,
            opencv=cv2.__version__,
            images=images,
        )
        write_text(self.folder / INDEX, index.model_dump_json(indent=1) + "\n")

    def _claim(self) -> None:
        """``DataError`` unless the folder is empty or holds regions of the same settings, whole or begun."""
        there: dict[str, Any] | None = None
        journal = self.folder / PART / JOURNAL
        if (self.folder / INDEX).is_file():
            index = Regions(self.folder).index
            there = {**index.model_dump(include=set(self.settings)), "images": list(index.images)}
        elif journal.is_file():
            try:
                there = {**json.loads(journal.read_bytes().split(b"\n", 1)[0])}
            except (ValueError, TypeError) as error:
                raise DataError(f"{journal} is damaged: delete {self.folder}, or choose another folder") from error
        elif self.folder.is_dir() and {p.name for p in self.folder.iterdir()} - {PART}:
            raise DataError(f"{self.folder} holds other files: choose an empty folder")
        for key, value in {**self.settings, "images": self.dataset.ids}.items() if there is not None else ():
            if there is not None and there.get(key) != value:
                what = _LONG.get(key) or f"{key} {there.get(key)}, not {value}"
                raise DataError(f"{self.folder} holds regions made with {what}: choose another folder, or delete it")

    def _finished(self) -> Iterator[Row]:
        held = Regions(self.folder)
        for image_id, entry in held.index.images.items():
            at = held.rows(image_id)
            ignored = None if held.ignored_px is None else held.ignored_px[at].tolist()
            areas = {"area_px": held.area_px[at].tolist(), "ignored_px": ignored}
            yield Row(id=image_id, **entry.model_dump(), **areas)

    def _journalled(self) -> Iterator[Row]:
        journal = self.folder / PART / JOURNAL
        for line in journal.read_bytes().split(b"\n")[1:-1] if journal.is_file() else ():
            try:
                yield Row.model_validate_json(line)
            except ValidationError:
                return


@contextmanager
def _told(maker: _Maker) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DataError(
            f"the disk is full after {len(maker.rows)} of {len(maker.dataset)} images in {maker.folder}; free space "
            f"and run the same again: it goes on from there"
        ) from error


def _append(journal: BinaryIO, line: bytes) -> None:
    # an unbuffered write may be short, on a disk that fills up for one
    data = memoryview(line)
    while data:
        data = data[journal.write(data) :]
