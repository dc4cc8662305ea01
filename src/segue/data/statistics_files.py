"""The published files of class statistics, written, and read in place of a scan.

DAFormer, HRDA, MIC and DIDA keep three beside the data: ``sample_class_stats.json``, a list of ``{"<class>": pixels,
..., "file": path}``; ``sample_class_stats_dict.json``, ``{path: {"<class>": pixels}}``; ``samples_with_class.json``,
``{"<class>": [[path, pixels], ...]}``. Classes are train ids of the data set's own label space; what does not occur is
left out. A path is known by its last part, whichever slashes it has, without ending and without the ``_labelTrainIds``
or ``_labelIds`` of the tools. VFM-UDA++ writes positions in its listing for paths: those are believed only after labels
have been looked at (:mod:`segue.data.statistics`), as another listing would mismatch without a sign.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segue.data.dataset import Dataset, FolderDataset
from segue.data.errors import DataError
from segue.files import replacing
from segue.labels import IGNORE

LIST, BY_FILE, BY_CLASS = "sample_class_stats.json", "sample_class_stats_dict.json", "samples_with_class.json"
NAMES = (LIST, BY_FILE, BY_CLASS)

_SKIP = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")


class Rows(NamedTuple):
    """Counts as three arrays of one length: image index, label value, its pixels."""

    image: npt.NDArray[np.int64]
    value: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """What published files say of a data set: counts, the images they cover, whether they name them by position."""

    rows: Rows
    covered: npt.NDArray[np.bool_]
    by_position: bool
    where: str
    notes: tuple[str, ...]


def find(dataset: FolderDataset, given: Path | None, num_classes: int) -> Found | None:
    """Read the files at ``given`` (one of them, or their folder), or those in the data's root; None without any.

    ``DataError`` for a file that is damaged, that contradicts itself or another, or, if ``given``, fits no image.
    """
    names = _names(dataset)
    sources = [_Source(where, dataset, names, num_classes).read(text) for where, text in _texts(dataset, given)]
    if not sources:
        return None
    where = ", ".join(s.where for s in sources)
    rows, covered = sources[0].rows(), sources[0].covered
    for other in sources[1:]:
        theirs = other.rows()
        both = covered & other.covered
        _compare(dataset, _of(rows, both), _of(theirs, both), where)
        added = _of(theirs, other.covered & ~covered)
        rows = Rows(*(np.concatenate(pair) for pair in zip(rows, added, strict=True)))
        covered = covered | other.covered
    if not covered.any() and given is not None:
        raise DataError(f"{where}: no entry belongs to an image of {dataset.name!r} ({dataset.split})")
    notes = tuple(note for s in sources for note in s.notes())
    return Found(rows, covered, any(s.positions for s in sources), where, notes)


def write(out: Path, dataset: Dataset, pixels: npt.NDArray[np.uint32]) -> list[Path]:
    """Write the three files to a folder; ``pixels`` (images, classes). In the order of the images, each file whole.

    Paths are relative to the data's root and named as the published loaders expect: ``…_labelTrainIds.png``.
    """
    rows = []
    for index, count in enumerate(pixels):
        file = dataset.files(index)[1]
        if file is not None:
            rows.append(
                (f"{_stem(file.path)}_labelTrainIds.png", {int(c): int(count[c]) for c in np.flatnonzero(count)})
            )
    if not rows:
        raise DataError(f"data set {dataset.name!r} has no label files to write statistics of")
    classes = sorted({c for _, count in rows for c in count})
    contents: dict[str, Any] = {
        LIST: [{**count, "file": file} for file, count in rows],
        BY_FILE: dict(rows),
        BY_CLASS: {c: [[file, count[c]] for file, count in rows if c in count] for c in classes},
    }
    for name, content in contents.items():
        with replacing(out / name) as temporary, temporary.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
    return [out / name for name in contents]


class _Source:
    """One file while it is read."""

    def __init__(self, where: str, dataset: FolderDataset, names: dict[str, int], num_classes: int) -> None:
        self.where = where
        self.covered = np.zeros(len(dataset), np.bool_)
        self.positions = False
        self._dataset = dataset
        self._names = names
        self._num_classes = num_classes
        self._counts = array("q")
        self._unmatched: dict[str, None] = {}
        self._ambiguous: dict[str, None] = {}
        self._strange: set[int] = set()

    def read(self, text: bytes) -> _Source:
        """Take in the file's content; ``DataError`` when it is none of the three."""
        try:
            for key, value in _items(text.decode("utf-8")):
                if key is not None and isinstance(value, list):
                    for file, pixels in value:
                        self._add(self._find(file), key, pixels)
                    continue
                file = value.pop("file") if key is None else key
                index = self._find(file)
                for label, pixels in value.items():
                    self._add(index, label, pixels)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.where} is not one of {', '.join(NAMES)} ({error!r})") from error
        return self

    def rows(self) -> Rows:
        """Counts sorted by image and class, each once; ``DataError`` when an image has two for a class."""
        counts = np.frombuffer(self._counts, np.int64).reshape(-1, 3)
        image, value, pixels = counts[np.lexsort((counts[:, 1], counts[:, 0]))].T
        again = np.zeros(len(image), np.bool_)
        again[1:] = (np.diff(image) == 0) & (np.diff(value) == 0)
        if (wrong := np.flatnonzero(again & (pixels != np.roll(pixels, 1)))).size:
            at = int(wrong[0])
            raise _contradiction(self._dataset, image[at], value[at], pixels[at - 1], pixels[at], self.where)
        return Rows(image[~again], value[~again], pixels[~again])

    def notes(self) -> Iterator[str]:
        """What did not fit, a line each."""
        for what, files in (
            ("no image of the split", self._unmatched),
            ("several files of that name", self._ambiguous),
        ):
            if files:
                yield f"{self.where}: {len(files)} entries belong to {what}, the first is {next(iter(files))}"
        if self._strange:
            yield f"{self.where}: no class {', '.join(map(str, sorted(self._strange)))} in the data set, left out"

    def _find(self, file: Any) -> int | None:
        if type(file) is int or (isinstance(file, str) and file.isdecimal()):
            self.positions = True
            if not 0 <= int(file) < len(self.covered):
                raise DataError(f"{self.where} names image {file} of a listing, the data set has {len(self.covered)}")
            index: int | None = int(file)
        else:
            index = self._names.get(_stem(file.replace("\\", "/")).rsplit("/", 1)[-1])
        if index is None or index < 0:
            (self._unmatched if index is None else self._ambiguous)[str(file)] = None
            return None
        self.covered[index] = True
        return index

    def _add(self, index: int | None, label: str, pixels: Any) -> None:
        if not label.isdecimal() or type(pixels) is not int or not 0 <= pixels < 2**32:
            raise DataError(f"{self.where}: class {label!r} with {pixels!r} pixels: both must be whole numbers")
        if int(label) >= self._num_classes:
            self._strange |= {int(label)} - {IGNORE}
        elif index is not None and pixels:
            self._counts.extend((index, int(label), pixels))


def _texts(dataset: FolderDataset, given: Path | None) -> list[tuple[str, bytes]]:
    if given is None:
        store = dataset.store
        return [(store.describe(n), store.read(n)) for n in NAMES if store.has(n, archives=False)]
    place = given.expanduser()
    paths = [place / n for n in NAMES if (place / n).is_file()] if place.is_dir() else [place]
    if not paths:
        raise DataError(f"statistics: {given} holds none of {', '.join(NAMES)}")
    try:
        return [(str(p), p.read_bytes()) for p in paths]
    except OSError as error:
        raise DataError(f"statistics: cannot read {error.filename}: {error.strerror}") from error


def _names(dataset: FolderDataset) -> dict[str, int]:
    names: dict[str, int] = {}
    for index in range(len(dataset)):
        file = dataset.files(index)[1]
        if file is not None:
            name = _stem(file.path).rsplit("/", 1)[-1]
            names[name] = -1 if name in names else index
    return names


def _stem(path: str) -> str:
    return path.rsplit(".", 1)[0].removesuffix("_labelTrainIds").removesuffix("_labelIds")


def _of(rows: Rows, images: npt.NDArray[np.bool_]) -> Rows:
    keep = images[rows.image]
    return Rows(rows.image[keep], rows.value[keep], rows.pixels[keep])


def _compare(dataset: FolderDataset, ours: Rows, theirs: Rows, where: str) -> None:
    if all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        return
    first, second = ({(i, c): n for i, c, n in zip(*map(np.ndarray.tolist, r), strict=True)} for r in (ours, theirs))
    image, label = min(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))
    raise _contradiction(dataset, image, label, first.get((image, label), 0), second.get((image, label), 0), where)


def _contradiction(dataset: FolderDataset, image: int, label: int, first: int, second: int, where: str) -> DataError:
    return DataError(
        f"{where}: contradiction, {dataset.files(image)[1]} has {first} and {second} pixels of class {label}; remove "
        f"the wrong file, or point the data set's 'statistics' to the right one"
    )


def _items(text: str) -> Iterator[tuple[str | None, Any]]:
    """Members of a JSON list (None, value) or object (key, value), one at a time: as a whole they fill the memory."""
    decoder = json.JSONDecoder()
    at = _end(_SKIP, text, 0)
    keyed = text[at : at + 1] == "{"
    if not keyed and text[at : at + 1] != "[":
        raise ValueError("neither a list nor an object")
    at = _end(_SKIP, text, at + 1)
    while text[at : at + 1] != ("}" if keyed else "]"):
        key = None
        if keyed:
            key, at = decoder.raw_decode(text, at)
            at = _end(_COLON, text, at)
        value, at = decoder.raw_decode(text, at)
        yield key, value
        at = _end(_SKIP, text, at)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
