"""Label files in two passes, with memory for one image, and exactly resumable.

Thresholds need the confidences of all images, so a first pass leaves of each image what was predicted and how sure that
was (3 bytes a pixel, below ``.pass1``) and counts it. Once all are there the thresholds follow from the counts, and a
second pass turns each of these files into a label and deletes it. Every file appears under its final name when it is
whole, names follow the image's id, and thresholds are stored before the first label is: a run that was killed goes on
where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zlib import Z_RLE

import numpy as np
from PIL import Image

from segue.data.errors import DataError
from segue.data.images import Size
from segue.data.prepare import gigabytes
from segue.data.relabelled import FORMAT, INDEX
from segue.errors import DISK_FULL, UserError
from segue.files import file_of, finite, read_json, remove, replacing, write_json
from segue.labels import U8, LabelSpace
from segue.pseudo_labels.thresholds import F64, U16, Histogram, apply, encode, limits

PASS_1 = ".pass1"
BYTES_PER_PIXEL = 3  # of a file of the first pass; a label has fewer
_HEADER_BYTES = 8  # height and width
_SETTINGS, _LOCK = "settings.json", "lock"


class Writer:
    """Labels of images ``ids`` in ``folder``: :meth:`add` each of :attr:`todo` in any order, then :meth:`finish`.

    ``settings``: plain containers that the labels depend on; the folder goes on only with equal ones. ``info``: more
    for the index that no label depends on. Use it in a ``with`` block. ``DataError`` for a folder that holds something
    else, labels of other settings or another process, and for a full disk.
    """

    def __init__(
        self,
        folder: Path,
        labels: LabelSpace,
        ids: Sequence[str],
        settings: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.labels = labels
        self.histogram = Histogram(len(labels))
        self._ids = sorted(ids)
        self._left = set(ids)
        self._sizes: dict[str, Size] = {}
        self._settings = finite({"labels": labels.to_dict(), **settings})
        self._info = dict(info or {})
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Writer:
        self._claim()
        if self.finished:
            remove(self._pass_1)
            return self
        with self._told():
            self._pass_1.mkdir(parents=True, exist_ok=True)
            self._lock = (self._pass_1 / _LOCK).open("wb")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(f"another process makes labels in {self.folder}: wait for it") from error
            for left in (*self.folder.glob(".*.tmp"), *self._pass_1.glob(".*.tmp")):  # by a process that was killed
                remove(left)
            write_json(self._pass_1 / _SETTINGS, {**self._settings, "ids": self._ids})
        if not self._settled:
            self._take_up()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def finished(self) -> bool:
        """Whether all labels are there."""
        return (self.folder / INDEX).is_file()

    @property
    def todo(self) -> list[str]:
        """Images whose predictions are still asked for."""
        return [] if self.finished or self._settled else [i for i in self._ids if i in self._left]

    def add(self, image_id: str, classes: U8, confidence: Any) -> None:
        """Take the prediction of an image: (H, W) train ids and their probabilities, array or tensor.

        ``UserError`` names the image when these are no probabilities; ``ValueError`` for wrong shapes or classes.
        """
        if image_id not in self._left:
            raise ValueError(f"no prediction of {image_id!r} is asked for")
        try:
            codes = encode(confidence)
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from error
        self.histogram.add_codes(classes, codes)
        with self._told(), replacing(self._first(image_id)) as temporary, temporary.open("wb") as file:
            file.write(np.array(classes.shape, "<u4").tobytes())
            file.write(np.ascontiguousarray(codes, "<u2").data)
            file.write(np.ascontiguousarray(classes).data)
        self._have(image_id, classes)

    def finish(self, rule: Callable[[Histogram], F64]) -> dict[str, Any]:
        """Write the labels by the (C,) thresholds that ``rule`` finds in the counts, and the index; its content.

        A folder that was finished before is left as it is.
        """
        with self._told():
            if not self.finished:
                if not self._settled:
                    write_json(self._pass_1 / INDEX, self._index(rule(self.histogram)))
                index = read_json(self._pass_1 / INDEX)
                bounds = limits(np.array(list(index["thresholds"].values())))
                for image_id in self._ids:
                    self._write(image_id, bounds)
                (self._pass_1 / INDEX).replace(self.folder / INDEX)
                remove(self._pass_1)
            content: dict[str, Any] = read_json(self.folder / INDEX)
            return content

    @property
    def _pass_1(self) -> Path:
        return self.folder / PASS_1

    @property
    def _settled(self) -> bool:
        """Whether the first pass is over."""
        return (self._pass_1 / INDEX).is_file()

    def _first(self, image_id: str) -> Path:
        return self._pass_1 / f"{file_of(image_id)}.raw"

    def _label(self, image_id: str) -> Path:
        return self.folder / f"{file_of(image_id)}.png"

    def _claim(self) -> None:
        """``DataError`` unless the folder is empty or holds labels of the same settings, whole or begun."""
        there = self._there()
        if there is None:
            if self.folder.is_dir() and {p.name for p in self.folder.iterdir()} - {PASS_1}:
                raise DataError(f"{self.folder} holds other files: choose an empty folder")
            return
        for key, value in {**self._settings, "ids": self._ids}.items():
            if there.get(key) != value:
                what = _LONG.get(key) or f"{key} {there.get(key)!r}, not {value!r}"
                raise DataError(f"{self.folder} holds labels made with {what}: choose another folder, or delete it")

    def _there(self) -> dict[str, Any] | None:
        index, begun = self.folder / INDEX, self._pass_1 / _SETTINGS
        try:
            if index.is_file():
                content = {**read_json(index)}
                return {**content, "ids": sorted(content["images"])}
            return {**read_json(begun)} if begun.is_file() else None
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the index of {self.folder} is damaged: delete the folder, or choose another") from error

    def _take_up(self) -> None:
        """Count what an earlier run has predicted."""
        for image_id in self._ids:
            found = _read(self._first(image_id))
            if found is not None:
                self.histogram.add_codes(*found)
                self._have(image_id, found[0])

    def _have(self, image_id: str, classes: U8) -> None:
        self._left.remove(image_id)
        self._sizes[image_id] = (classes.shape[0], classes.shape[1])

    def _index(self, thresholds: F64) -> dict[str, Any]:
        if missing := self.todo:
            raise ValueError(f"{len(missing)} of {len(self._ids)} images have no prediction yet")
        pixels, kept = self.histogram.pixels(), self.histogram.kept(thresholds)
        return {
            "format": FORMAT,
            **self._info,
            **self._settings,
            "thresholds": dict(zip(self.labels.classes, thresholds.tolist(), strict=True)),
            "pixels": dict(zip(self.labels.classes, pixels.tolist(), strict=True)),
            "pixels_kept": dict(zip(self.labels.classes, kept.tolist(), strict=True)),
            "share_kept": float(kept.sum() / max(1, pixels.sum())),
            "images": {i: {"file": self._label(i).name, "size": self._sizes[i]} for i in self._ids},
        }

    def _write(self, image_id: str, bounds: U16) -> None:
        first, label = self._first(image_id), self._label(image_id)
        found = _read(first)
        if found is None:
            if not label.is_file():
                raise DataError(f"{first} is damaged or gone: delete {self.folder}, and make the labels again")
            return
        data = _png(apply(*found, bounds), self.labels.palette())
        with replacing(label) as temporary:
            temporary.write_bytes(data)
        first.unlink()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DataError(
                f"the disk is full, {len(self._sizes)} of {len(self._ids)} images are predicted in {self.folder}; free "
                f"space and run the same again: it goes on from there"
            ) from error


_LONG = {"labels": "other classes", "ids": "other images", "models": "other models"}


def require_space(folder: Path, pixels: int) -> None:
    """``DataError`` when fewer bytes are free than the labels of so many pixels need while they are made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    needed, free = BYTES_PER_PIXEL * pixels, shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"{folder} needs {gigabytes(needed)} while labels are made, {gigabytes(free)} are free: free space, choose "
            f"another folder, or read the images at a smaller size"
        )


def _read(path: Path) -> tuple[U8, U16] | None:
    """Classes and codes of a file of the first pass; None when it is not there or not whole."""
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        return None
    if data.size < _HEADER_BYTES:
        return None
    height, width = (int(v) for v in data[:_HEADER_BYTES].view("<u4"))
    pixels, planes = height * width, data[_HEADER_BYTES:]
    if planes.size != BYTES_PER_PIXEL * pixels:
        return None
    return planes[2 * pixels :].reshape(height, width), planes[: 2 * pixels].view("<u2").reshape(height, width)


def _png(ids: U8, palette: U8) -> bytes:
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    out = BytesIO()  # Pillow does not tell of a full disk
    image.save(out, format="PNG", compress_level=1, compress_type=Z_RLE)  # small and quick for label maps
    return out.getvalue()
