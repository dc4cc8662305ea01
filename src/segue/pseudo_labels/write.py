"""Label files in two passes, with memory for one image, and exactly resumable.

Thresholds need the confidences of all images, so a first pass leaves of each image what was predicted, how sure that
was and how far it is trusted (3 or 4 bytes a pixel, below ``.pass1``) and counts it. Once all are there the thresholds
follow from the counts, and a second pass turns each of these files into a label and deletes it. Every file appears
under its final name when it is whole, names follow the image's id, and thresholds are stored before the first label is:
a run that was killed goes on where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zlib import Z_RLE

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from segue.data.errors import DataError
from segue.data.images import read_ids
from segue.data.prepare import gigabytes
from segue.data.relabelled import FORMAT, INDEX
from segue.errors import DISK_FULL, UserError
from segue.files import file_of, finite, read_json, remove, replacing, write_json
from segue.labels import IGNORE, U8, LabelSpace
from segue.pseudo_labels.thresholds import F64, REFUSED, U16, Histogram, apply, encode, limits

PASS_1 = ".pass1"
_HEADER = np.dtype([("size", "<u4", 2), ("entropy", "<f8"), ("confidence", "<f8")])
_WEIGHT = "+weight.png"  # no image id gives a file name with a plus
_SETTINGS, _LOCK = "settings.json", "lock"


@dataclass(frozen=True, eq=False)
class _First:
    """What the first pass leaves of an image: (H, W) planes, and means over them."""

    classes: U8
    codes: U16
    weight: U8 | None
    entropy: float
    confidence: float


class Writer:
    """Labels of images ``ids`` in ``folder``: :meth:`add` each of :attr:`todo` in any order, then :meth:`finish`.

    ``settings``: plain containers that the labels depend on; the folder goes on only with equal ones. ``info``: more
    for the index that no label depends on. ``weighted``: every label has a weight. Use it in a ``with`` block.
    ``DataError`` for a folder that holds something else, labels of other settings or another process, and for a full
    disk.
    """

    def __init__(
        self,
        folder: Path,
        labels: LabelSpace,
        ids: Sequence[str],
        settings: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
        weighted: bool = False,
    ) -> None:
        self.folder = folder
        self.labels = labels
        self.weighted = weighted
        self.histogram = Histogram(len(labels))
        self._refused = Histogram(len(labels))  # those of its pixels that get no label, whatever the thresholds
        self._ids = sorted(ids)
        self._left = set(ids)
        self._images: dict[str, dict[str, Any]] = {}
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
        return [i for i in self._ids if i in self._left] if self.predicting else []

    @property
    def predicting(self) -> bool:
        """Whether the first pass is not over: what else predictions depend on is still needed."""
        return not (self.finished or self._settled)

    def add(
        self,
        image_id: str,
        classes: U8,
        confidence: npt.ArrayLike | Tensor,
        *,
        entropy: float = math.nan,
        refused: npt.NDArray[np.bool_] | None = None,
        weight: U8 | None = None,
    ) -> None:
        """Take the prediction of an image: (H, W) train ids and their probabilities, array or tensor.

        ``entropy``: its mean, in nats. ``refused`` (H, W): pixels that get no label, whatever the thresholds.
        ``weight`` (H, W): trust in labels, 255 = full. ``UserError`` names the image when there are no probabilities;
        ``ValueError`` for wrong shapes or classes, and for a weight that is missing or not asked for.
        """
        if image_id not in self._left:
            raise ValueError(f"no prediction of {image_id!r} is asked for")
        if (weight is not None) != self.weighted:
            raise ValueError(f"the weight of {image_id!r} is {'missing' if self.weighted else 'not asked for'}")
        try:
            codes = encode(confidence)
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from error
        mean = float(torch.as_tensor(confidence).mean())
        first = _First(classes, codes if refused is None else codes | REFUSED * refused, weight, entropy, mean)
        class_count = self._count(first)
        with self._told(), replacing(self._first(image_id)) as temporary, temporary.open("wb") as file:
            file.write(np.array((classes.shape, entropy, mean), _HEADER).tobytes())
            for plane, kind in ((first.codes, "<u2"), (classes, "u1"), (weight, "u1")):
                if plane is not None:
                    file.write(np.ascontiguousarray(plane, kind).data)
        self._have(image_id, first, class_count)

    def finish(self, rule: Callable[[Histogram], F64], info: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the labels by the (C,) thresholds that ``rule`` finds in the counts, and the index; its content.

        ``info``: what is known only now, for the index. A folder that was finished before is left as it is.
        """
        with self._told():
            if not self.finished:
                if not self._settled:
                    write_json(self._pass_1 / INDEX, self._index(rule(self.histogram), info or {}))
                write_json(self.folder / INDEX, self._labelled(read_json(self._pass_1 / INDEX)))
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

    def _files(self, image_id: str) -> list[Path]:
        """Label and, where labels are weighed, weights."""
        endings = (".png", _WEIGHT) if self.weighted else (".png",)
        return [self.folder / f"{file_of(image_id)}{ending}" for ending in endings]

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
            found = _read(self._first(image_id), self.weighted)
            if found is not None:
                self._have(image_id, found, self._count(found))

    def _count(self, first: _First) -> int:
        """Add the pixels to the counts; how many classes there are."""
        if first.codes.max(initial=0) >= REFUSED:  # mostly there are none, and no masks to make
            refused = first.codes >= REFUSED
            self._refused.add_codes(first.classes[refused], first.codes[refused])
        return int(np.count_nonzero(self.histogram.add_codes(first.classes, first.codes)))

    def _have(self, image_id: str, first: _First, class_count: int) -> None:
        self._left.remove(image_id)
        self._images[image_id] = {
            **dict(zip(("file", "weight"), (path.name for path in self._files(image_id)), strict=False)),
            "size": first.classes.shape,
            "entropy": first.entropy,
            "confidence": first.confidence,
            "class_count": class_count,
        }

    def _index(self, thresholds: F64, info: Mapping[str, Any]) -> dict[str, Any]:
        if missing := self.todo:
            raise ValueError(f"{len(missing)} of {len(self._ids)} images have no prediction yet")
        pixels = self.histogram.pixels()
        kept = self.histogram.kept(thresholds) - self._refused.kept(thresholds)
        return {
            "format": FORMAT,
            **self._info,
            **self._settings,
            **info,
            "thresholds": self._by_class(thresholds),
            "pixels": self._by_class(pixels),
            "pixels_kept": self._by_class(kept),
            "share_kept": float(kept.sum() / max(1, pixels.sum())),
            "images": {image_id: self._images[image_id] for image_id in self._ids},
        }

    def _labelled(self, index: dict[str, Any]) -> dict[str, Any]:
        """The index of the first pass with what only the labels tell, which are made here."""
        bounds = limits(np.array(list(index["thresholds"].values())))
        trust = np.zeros(len(self.labels))
        for image_id, row in index["images"].items():
            label, *weights = self._write(image_id, bounds)
            row["kept"] = np.count_nonzero(label != IGNORE) / max(1, label.size)
            for weight in weights:
                trust += np.bincount(label.ravel(), weight.ravel(), 256)[: len(self.labels)] / 255
        if self.weighted:
            kept = index["pixels_kept"]
            index["weights"] = {c: t / kept[c] if kept[c] else None for c, t in self._by_class(trust).items()}
        return index

    def _by_class(self, values: npt.NDArray[Any]) -> dict[str, Any]:
        return dict(zip(self.labels.classes, values.tolist(), strict=True))

    def _write(self, image_id: str, bounds: U16) -> list[U8]:
        """The label of an image and its weights, which are files from now on."""
        first, paths = self._first(image_id), self._files(image_id)
        found = _read(first, self.weighted)
        if found is None:
            if not all(path.is_file() for path in paths):
                raise DataError(f"{first} is damaged or gone: delete {self.folder}, and make the labels again")
            return [np.asarray(read_ids(path), np.uint8) for path in paths]
        planes = [apply(found.classes, found.codes, bounds)]
        if found.weight is not None:
            planes.append(np.where(planes[0] == IGNORE, np.uint8(0), found.weight))
        for path, plane, palette in zip(paths, planes, (self.labels.palette(), None), strict=False):
            data = _png(plane, palette)
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        first.unlink()
        return planes

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DataError(
                f"the disk is full, {len(self._images)} of {len(self._ids)} images are predicted in {self.folder}; "
                f"free space and run the same again: it goes on from there"
            ) from error


_LONG = {
    "labels": "other classes",
    "ids": "other images",
    "models": "other models",
    "image": "other rules of images",
    "trust": "other settings or images of trust",
}


def require_space(folder: Path, pixels: int, weighted: bool = False) -> None:
    """``DataError`` when fewer bytes are free than the labels of so many pixels need while they are made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    needed, free = bytes_per_pixel(weighted) * pixels, shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"{folder} needs {gigabytes(needed)} while labels are made, {gigabytes(free)} are free: free space, choose "
            f"another folder, or read the images at a smaller size"
        )


def bytes_per_pixel(weighted: bool) -> int:
    """Of a file of the first pass; labels and weights have fewer."""
    return 4 if weighted else 3


def _read(path: Path, weighted: bool) -> _First | None:
    """A file of the first pass; None when it is not there or not whole."""
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        return None
    if data.size < _HEADER.itemsize:
        return None
    ((height, width), entropy, confidence) = data[: _HEADER.itemsize].view(_HEADER)[0].tolist()
    pixels, planes = height * width, data[_HEADER.itemsize :]
    if planes.size != bytes_per_pixel(weighted) * pixels:
        return None
    classes, *weights = planes[2 * pixels :].reshape(-1, height, width)
    codes = planes[: 2 * pixels].view("<u2").reshape(height, width)
    return _First(classes, codes, weights[0] if weights else None, entropy, confidence)


def _png(ids: U8, palette: U8 | None) -> bytes:
    image = Image.fromarray(ids)
    if palette is not None:
        image.putpalette(palette.tobytes())
    out = BytesIO()  # Pillow does not tell of a full disk
    image.save(out, format="PNG", compress_level=1, compress_type=Z_RLE)  # small and quick for label maps
    return out.getvalue()
