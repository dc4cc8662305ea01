"""``segue data check``: what is wrong with a data set's files, each fault by file name.

Every image and label is read as training reads it, and more strictly: each chunk of a PNG is held against its
checksum, and what the JPEG decoder mutters is taken for damage. What no reader can find: a flipped bit in JPEG data
that still decodes (about four in five; the picture shows a stripe), and anything that decodes to a legal picture.

Decoders write their complaints to the process's standard error, so that is caught while they work. With ``workers``
they run in processes of their own.
"""

from __future__ import annotations

import os
import signal
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np

from segue.data import prepare
from segue.data.copies import spread
from segue.data.dataset import Dataset, FolderDataset
from segue.data.errors import DataError
from segue.data.images import PNG
from segue.data.memory_map import MemoryMapDataset
from segue.data.reference import open_splits
from segue.data.statistics import histogram
from segue.data.store import File
from segue.labels import IGNORE, LabelError

COUNTED = 200
"""Class shares are counted over at most this many labels, evenly spaced."""
NEARLY_EMPTY = 0.001
"""A label with a smaller share of labelled pixels is reported."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
WARNINGS = ("empty", "stale")
"""Kinds that are worth a look but no fault."""
_JPEG_FAULTS = ("Corrupt JPEG", "Premature end", "Inconsistent progression")
_CHUNK = 8  # images handed to a worker process at a time


@dataclass(frozen=True)
class Problem:
    """One fault: what ``kind``, in which split, which file, and what to look at.

    ``kind``: unreadable, damaged (decodes, but parts of it are broken), mismatch (sizes of image and label), values
    (label ids outside the map), duplicate, no_label, no_image; and the warnings empty (nearly no pixel is labelled) and
    stale (a prepared copy whose source has changed).
    """

    kind: str
    split: str
    file: str
    message: str

    @property
    def warning(self) -> bool:
        """Whether it is no fault."""
        return self.kind in WARNINGS

    def __str__(self) -> str:
        return f"{self.kind:10} [{self.split}] {self.message}"


@dataclass(frozen=True)
class _Checked:
    content: bytes
    """Digest of the file."""
    pixels: bytes
    """Digest of what it shows."""
    problems: list[Problem]


def check(name: str, root: Path | None = None, labels: str | None = None) -> list[Problem]:
    """Audit every split of a data set (catalog name, folder, archive or python: class; ``NAME:split`` for one).

    Reads all images and labels, in this process. ``DataError`` when the data set cannot be found or has no image.
    """
    return list(problems(open_splits(name, root, labels)))


def problems(
    splits: Mapping[str, Dataset], *, workers: int = 0, progress: Callable[[int, int], object] | None = None
) -> Iterator[Problem]:
    """The faults of opened splits, each as soon as it is found; an image that two splits share is read once."""
    places = _places(splits)
    split_of = {splits[split].describe(index): split for split, index in places}
    first: dict[bytes, str] = {}
    said: set[tuple[str, str, str]] = set()
    done = 0
    if progress is not None:
        progress(0, len(places))
    for split, dataset in splits.items():
        mine = [place for place in places if place[0] == split]
        for (_, index), result in zip(mine, _check_all(splits, mine, workers), strict=True):
            done += 1
            yield from _new(result.problems, said)
            yield from _new(_duplicates(dataset.describe(index), split, result, first, split_of), said)
            if progress is not None:
                progress(done, len(places))
        strays = dataset.stray_labels()
        yield from _new((Problem("no_image", split, s, f"label {s} belongs to no image") for s in strays), said)
    yield from _new(_of_root(*next(iter(splits.items()))), said)


def summary(found: Sequence[Problem], images: int, total: int) -> str:
    """One sentence: how many of each kind in how many images, and the way out."""
    text = f"{images} images" if images == total else f"stopped after {images} of {total} images"
    for what, group in (
        ("problem", [p for p in found if not p.warning]),
        ("warning", [p for p in found if p.warning]),
    ):
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(p.kind for p in group).items())
        text += f"; {len(group)} {what}{'' if len(group) == 1 else 's'}{f' ({kinds})' if kinds else ''}"
    if any(not p.warning for p in found):
        text += ". Mend the files or fetch them again, or leave images out with data.NAME.exclude=[ID, ...]"
    return text


def class_shares(dataset: Dataset, limit: int = COUNTED) -> tuple[list[float], float, int]:
    """Share of each class among labelled pixels, share of labelled pixels, number of labels counted."""
    missing = set(dataset.unlabelled_ids)
    have = [i for i, image_id in enumerate(dataset.ids) if image_id not in missing] if dataset.labelled else []
    chosen = spread(have, limit)
    count = np.zeros(256, np.int64)
    for index in chosen:
        count += histogram(dataset.read_label(index))
    labelled = int(count[:IGNORE].sum())
    shares = [float(c) / max(labelled, 1) for c in count[: len(dataset.space)]]
    return shares, labelled / max(int(count.sum()), 1), len(chosen)


def _places(splits: Mapping[str, Dataset]) -> list[tuple[str, int]]:
    """(split, index) of every image; one that two splits share comes once."""
    seen: set[str] = set()
    out = []
    for split, dataset in splits.items():
        for index in range(len(dataset)):
            if (file := dataset.describe(index)) not in seen:
                seen.add(file)
                out.append((split, index))
    return out


def _check_all(splits: Mapping[str, Dataset], places: Sequence[tuple[str, int]], workers: int) -> Iterator[_Checked]:
    if not workers:
        yield from (_check_one(splits[split], split, index) for split, index in places)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(dict(splits),))
    try:
        yield from pool.map(_check_in_worker, places, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise DataError("a process that read images was killed (out of memory?): try --workers 0") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_splits: dict[str, Dataset] = {}


def _start_worker(splits: dict[str, Dataset]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process tells what was found, and ends the workers
    cv2.setNumThreads(0)
    _splits.update(splits)


def _check_in_worker(place: tuple[str, int]) -> _Checked:
    return _check_one(_splits[place[0]], *place)


def _check_one(dataset: Dataset, split: str, index: int) -> _Checked:
    image, label = dataset.files(index)
    name = dataset.describe(index)
    content = pixels = b""
    shape: tuple[int, ...] | None = None
    found: list[Problem] = []
    try:
        with _complaints() as said:
            picture = dataset.read_image(index)
        shape = picture.shape[:2]
        content, pixels = _digest(image.read() if image else b""), _digest(np.ascontiguousarray(picture).data)
        found += [Problem("damaged", split, name, text) for text in _strictly(image, name, said)]
    except DataError as error:
        found.append(Problem("unreadable", split, name, str(error)))
    if isinstance(dataset, MemoryMapDataset):
        found += [Problem("damaged", split, name, text) for text in dataset.faults(index)]
    if dataset.labelled:
        found += _check_label(dataset, split, index, shape, str(label or name))
    return _Checked(content, pixels, found)


def _check_label(
    dataset: Dataset, split: str, index: int, shape: tuple[int, ...] | None, name: str
) -> Iterator[Problem]:
    image = dataset.describe(index)
    if dataset.ids[index] in dataset.unlabelled_ids:
        yield Problem("no_label", split, image, f"image {image} has no label file")
        return
    try:
        with _complaints() as said:
            ids = dataset.read_label(index)
    except DataError as error:
        kind = "values" if isinstance(error.__cause__, LabelError) else "unreadable"
        yield Problem(kind, split, name, str(error))
        return
    yield from (Problem("damaged", split, name, t) for t in _strictly(dataset.files(index)[1], name, said))
    if shape is not None and ids.shape != shape and not dataset.own_label_size:
        sizes = f"is {shape[1]}x{shape[0]} pixels, its label {name} is {ids.shape[1]}x{ids.shape[0]}"
        yield Problem("mismatch", split, image, f"image {image} {sizes}")
    share = np.count_nonzero(ids != IGNORE) / ids.size
    if share < NEARLY_EMPTY:
        yield Problem(
            "empty", split, name, f"label {name} marks {100 * share:.2g} % of its pixels; the rest is ignored"
        )


def _strictly(file: File | None, name: str, said: Sequence[str]) -> Iterator[str]:
    """Faults of a file that decodes."""
    if fault := next((line for line in said if line.startswith(_JPEG_FAULTS)), None):
        yield f"{name} has broken JPEG data ({fault.strip()}): look at it, fetch it again, or store it anew"
    if file is None or not (data := file.read()).startswith(PNG):
        return
    at, kind = len(PNG), ""
    while kind != "IEND":
        kind = data[at + 4 : at + 8].decode("ascii", "replace")
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if len(data) < end + 4 or zlib.crc32(data[at + 4 : end]).to_bytes(4, "big") != data[end : end + 4]:
            yield f"{name} has a broken part (PNG chunk {kind!r} ends early or its checksum differs): fetch it again"
            return
        at = end + 4


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Lines that decoders write to the process's standard error inside; they do not come through."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sink.seek(0)
            lines += sink.read().decode("utf-8", "replace").splitlines()


def _duplicates(
    name: str, split: str, result: _Checked, first: dict[bytes, str], split_of: Mapping[str, str]
) -> Iterator[Problem]:
    for digest, what in ((result.content, "content"), (result.pixels, "pixels")):
        other = first.setdefault(digest, name) if digest else name
        if other != name:
            apart = "" if split_of[other] == split else f", which is in split {split_of[other]}"
            yield Problem("duplicate", split, name, f"{name} has the same {what} as {other}{apart}")
            return


def _of_root(split: str, dataset: Dataset) -> Iterator[Problem]:
    """What is wrong beside the listed files."""
    root = dataset.root if isinstance(dataset, MemoryMapDataset) else None
    if isinstance(dataset, FolderDataset) and dataset.store.is_folder:
        root = dataset.store.root
        for here, folders, _ in os.walk(root):
            for name in (n for n in folders if n.lower().endswith(PICTURE_SUFFIXES)):
                path = Path(here) / name
                yield Problem("unreadable", split, str(path), f"{path} is a folder, and called like a picture")
    if root is not None and (text := prepare.changed(root)):
        yield Problem("stale", split, str(root), text)


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=16).digest() if len(data) else b""


def _new(found: Iterable[Problem], said: set[tuple[str, str, str]]) -> Iterator[Problem]:
    """What was not told yet: splits of one folder (GTA5) list the same stray labels."""
    for problem in found:
        if (key := (problem.kind, problem.file, problem.message)) not in said:
            said.add(key)
            yield problem
