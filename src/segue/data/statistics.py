"""How many pixels of each class every label shows: counted once and cached, or read from the published files.

Label files are counted by the numbers that they hold, so that any label space, subset of classes or map is derived from
one scan. The cache is one SQLite file for each data root in ``$SEGUE_CACHE/statistics`` (default: ``~/.cache/segue``)
with a row for each label file: its path, what tells that it has changed (size and time; in an archive size and
checksum), and its counts. Only new and changed files are counted, and a row is there for good once its file is counted.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from segue.config import DatasetConfig
from segue.data import statistics_files
from segue.data.dataset import Dataset, FolderDataset, describe_source
from segue.data.errors import DataError
from segue.data.statistics_files import Rows
from segue.labels import U8, UNKNOWN, build_map
from segue.progress import Progress

Say = Callable[[str], object]
"""Where notes for the user go."""

COUNT = np.dtype([("value", "<u2"), ("pixels", "<u4")])
_FLOAT_EXACT = 2**24
_VERSION = 1
_CHUNK = 256
_VERIFIED = 8
"""Labels that are looked at before statistics by position are believed."""


class _Labels(NamedTuple):
    """Labels to be counted: below which root, name and stamp of each image's, how to read one, file id to train id."""

    root: Path
    names: dict[int, tuple[str, str]]
    read: Callable[[int], npt.NDArray[Any]]
    table: U8


def tell(text: str) -> None:
    """Print a note to standard error."""
    print(text, file=sys.stderr)


def class_pixels(dataset: Dataset, config: DatasetConfig, say: Say = tell) -> npt.NDArray[np.uint32]:
    """(images, classes): pixels of each train id of ``dataset.space`` in each label, at the label's own resolution.

    From ``config.statistics``, or the published files in the data's root; labels that those do not cover, or all, from
    the cache; what is not there is counted now, with progress. ``DataError`` names damaged labels, after the others
    have been counted, and values outside the map.
    """
    found = _class_pixels(dataset, config, say, count=True)
    assert found is not None
    return found


def known_class_pixels(dataset: Dataset, config: DatasetConfig) -> npt.NDArray[np.uint32] | None:
    """What :func:`class_pixels` would return, or None when labels would have to be counted for it."""
    return _class_pixels(dataset, config, lambda text: None, count=False)


def _class_pixels(dataset: Dataset, config: DatasetConfig, say: Say, count: bool) -> npt.NDArray[np.uint32] | None:
    out = np.zeros((len(dataset), len(dataset.space)), np.uint32)
    covered = np.zeros(len(dataset), np.bool_)
    if isinstance(dataset, FolderDataset):
        covered = _published(dataset, config, out, say)
    elif config.statistics is not None:
        raise DataError(f"data set {dataset.name!r} has no label files that 'statistics' could name")
    missing = set(dataset.unlabelled_ids)
    todo = [i for i, image_id in enumerate(dataset.ids) if dataset.labelled and not (covered[i] or image_id in missing)]
    labels = _labels_of(dataset, todo)
    if labels is None and todo and not count:
        return None
    if labels is None:
        _count_always(dataset, todo, out, say)
    elif todo:
        rows = _cached_rows(dataset, labels, say, count)
        if rows is None:
            return None
        _check_values(dataset, rows, labels.table)
        _add(out, rows, labels.table)
    return out


def histogram(ids: U8) -> npt.NDArray[np.int64]:
    """(H, W) uint8 to the number of pixels of each of 256 values."""
    # cv2 counts in a third of numpy's time, into float32: exact as long as a part has at most 2**24 pixels.
    step = max(1, _FLOAT_EXACT // max(1, ids.shape[1]))
    parts = [cv2.calcHist([ids[r : r + step]], [0], None, [256], [0, 256]) for r in range(0, len(ids), step)]
    return np.sum(parts, 0, dtype=np.float64).ravel().astype(np.int64)


def cache_folder(avoid: Path, say: Say = tell) -> Path:
    """Where computed things are kept: ``$SEGUE_CACHE``, else ``~/.cache/segue``, never inside ``avoid``.

    When that cannot be written, a folder of the user's own in the system's temporary one, and ``say`` tells so;
    ``DataError`` when there is none either.
    """
    chosen = _chosen_folder()
    fault = _fault(chosen, avoid)
    if fault is None:
        return chosen
    spare = Path(tempfile.gettempdir()) / f"segue-{os.getuid()}"
    other = _fault(spare, avoid, private=True)
    if other is not None:
        raise DataError(f"no folder for the cache: {fault}; {other}; set SEGUE_CACHE to one that can be written")
    say(f"the cache is in {spare}, because {fault}; set SEGUE_CACHE to a folder that stays")
    return spare


def _chosen_folder() -> Path:
    return Path(os.path.expanduser(os.environ.get("SEGUE_CACHE") or "~/.cache/segue"))  # noqa: PTH111 (never raises)


def _fault(folder: Path, avoid: Path, private: bool = False) -> str | None:
    if folder.resolve().is_relative_to(avoid.resolve()):
        return f"{folder} lies in the data ({avoid})"
    try:
        folder.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if private and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
            return f"{folder} belongs to somebody else"
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
    return None


def _published(
    dataset: FolderDataset, config: DatasetConfig, out: npt.NDArray[np.uint32], say: Say
) -> npt.NDArray[np.bool_]:
    """Add what published files say; which images they cover."""
    native = describe_source(config.dataset or dataset.name, config)[0].native()
    found = statistics_files.find(dataset, config.statistics, len(native)) if dataset.labelled else None
    if found is None:
        return np.zeros(len(dataset), np.bool_)
    _add(out, found.rows, build_map(dataset.space, native, dict(enumerate(native.classes))).table)
    if found.by_position:
        _verify(dataset, out, np.flatnonzero(found.covered), found.where)
    number = f"{int(found.covered.sum())} of {len(dataset)} images"
    say("\n".join([f"class statistics of {dataset.name}: {number} from {found.where}", *found.notes]))
    return found.covered


def _labels_of(dataset: Dataset, indices: Sequence[int]) -> _Labels | None:
    """How the labels of images are read and recognised; None where they cannot be recognised."""
    names = {i: stamp for i in indices if (stamp := dataset.label_stamp(i)) is not None}
    if dataset.root is None or dataset.label_map is None or len(names) < len(indices):
        return None
    return _Labels(dataset.root, names, dataset.read_file_ids, dataset.label_map.table)


def _count_always(dataset: Dataset, indices: Sequence[int], out: npt.NDArray[np.uint32], say: Say) -> None:
    if not indices:
        return
    say(f"the labels of {dataset.name!r} cannot be recognised again: they are counted at every start")
    progress = Progress(f"counting labels of {dataset.name}")
    for done, index in enumerate(indices, 1):
        out[index] = histogram(dataset.read_label(index))[: len(dataset.space)]
        progress(done, len(indices))


def _add(out: npt.NDArray[np.uint32], rows: Rows, table: U8) -> None:
    train_ids = table[rows.value].astype(np.int64)
    keep = train_ids < out.shape[1]
    cells = rows.image[keep] * out.shape[1] + train_ids[keep]
    # float64 holds every sum of pixels of one image exactly
    out += np.bincount(cells, rows.pixels[keep], out.size).reshape(out.shape).astype(np.uint32)


def _verify(dataset: FolderDataset, pixels: npt.NDArray[np.uint32], covered: npt.NDArray[np.intp], where: str) -> None:
    for index in covered[:: -(-len(covered) // _VERIFIED)].tolist():
        if not np.array_equal(pixels[index], histogram(dataset.read_label(index))[: len(dataset.space)]):
            raise DataError(
                f"{where} names images by their position in a listing, and not in this one: "
                f"{dataset.files(index)[1]} (position {index}) shows other classes. Point the data set's 'statistics' "
                f"to files with paths, or remove them: then the labels are counted"
            )


def _check_values(dataset: Dataset, rows: Rows, table: U8) -> None:
    unknown = np.flatnonzero(table[rows.value] == UNKNOWN)
    if len(unknown):
        first = int(rows.image[unknown[0]])
        values = ", ".join(map(str, sorted(set(rows.value[unknown].tolist()))[:8]))
        number = len(set(rows.image[unknown].tolist()))
        raise DataError(
            f"{dataset.files(first)[1] or dataset.describe(first)}: label values {values} (in {number} labels) are not "
            f"in the map to {dataset.space.name!r}: add them under 'ids' in the data set's YAML (null = ignore)"
        )


def _cached_rows(dataset: Dataset, labels: _Labels, say: Say, count: bool) -> Rows | None:
    """Counts from the cache, after counting the labels that it does not know; without ``count`` None if there are."""
    root = labels.root.resolve()
    digest = blake2b(str(root).encode(), digest_size=8).hexdigest()
    name = f"statistics/{root.name}-{digest}.sqlite"
    if not count and not (_chosen_folder() / name).is_file():
        return None  # and no cache is made
    path = cache_folder(root, say) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), dataset, say), closing(_connect(path, say)) as connection:
            known = _known(connection)
            new = [i for i, (name, stamp) in labels.names.items() if known.get(name, ("",))[0] != stamp]
            if new and not count:
                return None
            if new:
                _count(dataset, labels, new, connection)
                known = _known(connection)
    except sqlite3.Error as error:
        raise DataError(f"cannot use the cache {path}: {error}; free space, or set SEGUE_CACHE to a folder") from error
    counts = [known[name][1] for name, _ in labels.names.values()]
    pairs = np.frombuffer(b"".join(counts), COUNT)
    image = np.repeat(np.fromiter(labels.names, np.int64), [len(c) // COUNT.itemsize for c in counts])
    return Rows(image, pairs["value"].astype(np.int64), pairs["pixels"].astype(np.int64))


def _known(connection: sqlite3.Connection) -> dict[str, tuple[str, bytes]]:
    return {
        file: (stamp, counts) for file, stamp, counts in connection.execute("SELECT file, stamp, counts FROM counts")
    }


def _count(dataset: Dataset, labels: _Labels, new: Sequence[int], connection: sqlite3.Connection) -> None:
    """Count labels side by side, each into the cache at once; ``DataError`` names those that are damaged."""
    faults: list[str] = []
    writing = Lock()

    def count(index: int) -> None:
        try:
            counts = _pairs(labels.read(index)).tobytes()
        except DataError as error:
            faults.append(str(error))
            return
        with writing:
            connection.execute("INSERT OR REPLACE INTO counts VALUES (?, ?, ?)", (*labels.names[index], counts))

    progress = Progress(f"counting labels of {dataset.name}")
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for start in range(0, len(new), _CHUNK):
            for done, _ in enumerate(pool.map(count, new[start : start + _CHUNK]), start + 1):
                progress(done, len(new))
    finally:
        pool.shutdown(cancel_futures=True)
    if faults:
        more = f"\n{len(faults)} labels of {dataset.name!r} cannot be counted; the counts of all others are kept"
        raise DataError("\n".join(sorted(faults)[:8]) + (more if len(faults) > 1 else ""))


def _pairs(ids: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    count = histogram(ids) if ids.dtype == np.uint8 else np.bincount(ids.ravel())
    values = np.flatnonzero(count)
    out = np.empty(len(values), COUNT)
    out["value"], out["pixels"] = values, count[values]
    return out


def _connect(path: Path, say: Say) -> sqlite3.Connection:
    for _ in range(2):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            # A killed process loses nothing; only a machine that loses power may, and then a file is counted again.
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA journal_mode=TRUNCATE")
            if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                connection.execute("DROP TABLE IF EXISTS counts")
                connection.execute("CREATE TABLE counts (file TEXT PRIMARY KEY, stamp TEXT, counts BLOB)")
                connection.execute(f"PRAGMA user_version={_VERSION}")
            if connection.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return connection
        except sqlite3.OperationalError:
            connection.close()
            raise
        except sqlite3.DatabaseError:
            pass
        connection.close()
        say(f"the cache {path} is damaged: it is made anew")
        path.unlink(missing_ok=True)
    raise DataError(f"cannot make the cache {path} anew; set SEGUE_CACHE to another folder")


@contextmanager
def _locked(path: Path, dataset: Dataset, say: Say) -> Iterator[None]:
    # lockf, not flock: loader workers would inherit a flock
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another process counts the labels of {dataset.name}: waiting for it")
            fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
