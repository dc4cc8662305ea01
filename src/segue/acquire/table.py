"""One row a region: where it is, how many pixels, what the model says of it. Pool, labelled and source are three.

Rows are ordered by image (its place in ``images``) and region id, which makes a region unique and settles every tie. A
statistic is a float16 column, whole or memory-mapped; choosing rows copies the small columns and never an embedding.

| statistic | shape | mean over the region's pixels of |
|---|---|---|
| ``embedding`` | (N, D) | what the classifier reads |
| ``prob`` | (N, C) | softmax p |
| ``entropy`` | (N,) | -sum p ln p / ln C, 0 … 1 |
| ``margin`` | (N,) | largest p minus second largest |
| ``confidence`` | (N,) | largest p |
| ``edge`` | (N,) | 1 on an edge of the image, else 0 |
| ``domain_prob`` | (N,) | a discriminator's probability of "target" |

Not means: ``impurity`` (N,), entropy of the region's histogram of predicted classes / ln C (of windows, ``impurity``
and ``entropy`` are those of the window that is scored, whatever part of it is labelled); ``source_log_density`` and
``target_log_density`` (N,), log p(embedding | predicted class) of each domain, float32, NaN where there is no density.
Acquisitions from elsewhere may ask for further columns.

On disk a table is a folder of ``NAME.npy`` and ``table.json``, which is written last: without it there is no table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from segue.errors import UserError
from segue.files import remove, replacing, write_text
from segue.labels import U8
from segue.settings import Settings

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

INDEX = "table.json"
KEYS: dict[str, type[np.int32 | np.uint8]] = {
    "image": np.int32,
    "region": np.int32,
    "area_px": np.int32,
    "ignored_px": np.int32,
    "predicted": np.uint8,
}
LOG_DENSITIES = ("source_log_density", "target_log_density")
BLOCK_ROWS = 8192


class TableError(UserError):
    """A table that is damaged, lacks a statistic or contradicts itself."""


class Index(Settings):
    """``table.json``."""

    rows: int
    num_classes: int
    images: tuple[str, ...]
    columns: dict[str, tuple[str, tuple[int, ...]]]
    """Type and shape of each file."""


@dataclass(frozen=True, eq=False)
class RegionTable:
    """Regions of the images ``images`` (relative ids), N rows; made by :meth:`build` or :meth:`load`."""

    images: tuple[str, ...]
    num_classes: int
    image: I32
    """(N,) place in ``images``."""
    region: I32
    """(N,) id within the image's region map."""
    area_px: I32
    """(N,) pixels, ignored ones included."""
    ignored_px: I32
    """(N,) pixels that are no one's to label (void, own car, padding); they cost nothing."""
    predicted: U8
    """(N,) predicted class."""
    _stored: Mapping[str, Column] = field(repr=False)
    _rows: I64 | None = field(default=None, repr=False)

    @classmethod
    def build(
        cls,
        images: Sequence[str],
        num_classes: int,
        *,
        image: npt.ArrayLike,
        region: npt.ArrayLike,
        area_px: npt.ArrayLike,
        predicted: npt.ArrayLike,
        ignored_px: npt.ArrayLike | None = None,
        statistics: Mapping[str, npt.ArrayLike] | None = None,
    ) -> RegionTable:
        """A table of arrays of equal length; ``TableError`` tells what does not fit."""
        given = {"image": image, "region": region, "area_px": area_px, "predicted": predicted}
        given["ignored_px"] = np.zeros_like(np.asarray(area_px)) if ignored_px is None else ignored_px
        keys = {name: _whole(name, value) for name, value in given.items()}
        _check_keys(tuple(images), num_classes, keys)
        stored = {n: _statistic(n, v, len(keys["image"]), num_classes) for n, v in (statistics or {}).items()}
        return cls(tuple(images), num_classes, **keys, _stored=stored)

    @classmethod
    def load(cls, folder: Path) -> RegionTable:
        """Open a stored table, its statistics memory-mapped; ``TableError`` when files are missing or damaged."""
        index = _read_index(folder)
        columns = {name: _open(folder / f"{name}.npy", *kind) for name, kind in index.columns.items()}
        keys = {name: np.array(columns.pop(name)) for name in KEYS}
        try:
            _check_keys(index.images, index.num_classes, keys)
        except TableError as error:
            raise TableError(f"{folder} is damaged: {error}") from error
        return cls(index.images, index.num_classes, **keys, _stored=columns)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def names(self) -> list[str]:
        """Statistics that the table holds, sorted."""
        return sorted(self._stored)

    @property
    def cost_px(self) -> I64:
        """(N,) pixels that a person must label: the area without ignored pixels."""
        return self.area_px.astype(np.int64) - self.ignored_px

    def statistic(self, name: str) -> F32:
        """One column as float32, (N,) or (N, K); ``TableError`` when the table does not hold it."""
        stored = self._column(name)
        return np.asarray(stored if self._rows is None else stored[self._rows], np.float32)

    def blocks(self, name: str, rows: int = BLOCK_ROWS) -> Iterator[F32]:
        """The same in pieces of at most ``rows`` rows, for columns that are too large to hold."""
        stored = self._column(name)
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            yield np.asarray(stored[part if self._rows is None else self._rows[part]], np.float32)

    def take(self, rows: npt.ArrayLike) -> RegionTable:
        """Some rows, given by rising number or as a mask (N,); statistics stay where they are."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if (np.diff(chosen) <= 0).any():
            raise ValueError("rows of a table are taken in rising order, each once")
        keys = {name: getattr(self, name)[chosen] for name in KEYS}
        return replace(self, **keys, _rows=chosen if self._rows is None else self._rows[chosen])

    def save(self, folder: Path) -> None:
        """Write the table into a folder of its own, over an earlier one; the folder can be moved."""
        remove(folder / INDEX)
        columns = {}
        for name in (*KEYS, *self.names):
            blocks = [getattr(self, name)] if name in KEYS else self.blocks(name)
            kind = np.dtype(KEYS[name]) if name in KEYS else self._stored[name].dtype
            shape = (len(self), *(() if name in KEYS else self._stored[name].shape[1:]))
            _write(folder / f"{name}.npy", kind, shape, blocks)
            columns[name] = (kind.name, shape)
        index = Index(rows=len(self), num_classes=self.num_classes, images=self.images, columns=columns)
        write_text(folder / INDEX, index.model_dump_json())

    def _column(self, name: str) -> Column:
        if name not in self._stored:
            held = ", ".join(self.names) or "none"
            raise TableError(f"the table of regions has no statistic {name!r} (it holds: {held})")
        return self._stored[name]


def append_column(folder: Path, name: str, values: npt.ArrayLike) -> None:
    """Add a statistic (N,) or (N, K) to a stored table, or replace it; ``TableError`` tells what does not fit."""
    index = _read_index(folder)
    others = {held: kind for held, kind in index.columns.items() if held != name}
    column = _statistic(name, values, index.rows, index.num_classes)
    if name in index.columns:
        write_text(folder / INDEX, index.model_copy(update={"columns": others}).model_dump_json())
    _write(folder / f"{name}.npy", column.dtype, column.shape, [column])
    columns = {**others, name: (column.dtype.name, column.shape)}
    write_text(folder / INDEX, index.model_copy(update={"columns": columns}).model_dump_json())


def column_header(kind: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What the file of a column begins with; equally long for any number of rows."""
    file = BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _write(path: Path, kind: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[Column]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(column_header(kind, shape))
        for block in blocks:
            file.write(np.ascontiguousarray(block, kind).tobytes())


def _whole(name: str, values: npt.ArrayLike) -> Column:
    array, kind = np.asarray(values), KEYS[name]
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TableError(f"column {name!r} must hold whole numbers, one a row; it is {array.dtype} {array.shape}")
    most = np.iinfo(kind).max
    if array.size and (array.min() < 0 or array.max() > most):
        raise TableError(f"column {name!r} must lie in 0 … {most}: {array.min()} … {array.max()}")
    return array.astype(kind)


def _check_keys(images: tuple[str, ...], num_classes: int, keys: Mapping[str, Column]) -> None:
    lengths = {name: len(column) for name, column in keys.items()}
    if len(set(lengths.values())) != 1:
        raise TableError(f"columns of a table have one length, these differ: {lengths}")
    image, region = keys["image"].astype(np.int64), keys["region"]
    if len(set(images)) != len(images):
        raise TableError("images of a table have different ids, some of these are equal")
    if not len(image):
        return
    if image.min() < 0 or image.max() >= len(images):
        raise TableError(f"column 'image' points at image {image.max()} of {len(images)}")
    if keys["predicted"].max() >= num_classes:
        raise TableError(f"column 'predicted' holds class {keys['predicted'].max()} of {num_classes}")
    if region.min() < 0 or keys["area_px"].min() < 1:
        raise TableError("a region has an id of at least 0 and an area of at least 1 pixel")
    if keys["ignored_px"].min() < 0 or (keys["ignored_px"] > keys["area_px"]).any():
        raise TableError("a region's ignored pixels are part of its area")
    wrong = np.flatnonzero(np.diff(image << 32 | region) <= 0)
    if len(wrong):
        at = f"image {images[image[wrong[0] + 1]]!r}, region {region[wrong[0] + 1]}"
        raise TableError(f"rows are ordered by image and region, each once; row {wrong[0] + 1} ({at}) is not")


def _statistic(name: str, values: npt.ArrayLike, rows: int, num_classes: int) -> Column:
    if not name.isidentifier() or name in KEYS:
        raise TableError(f"{name!r} is no name for a statistic: letters, digits and _, and none of {', '.join(KEYS)}")
    array = np.asarray(values)
    if array.ndim not in (1, 2) or len(array) != rows:
        raise TableError(f"statistic {name!r} is (N,) or (N, K) for {rows} rows, not {array.shape}")
    if name == "prob" and array.shape != (rows, num_classes):
        raise TableError(f"statistic 'prob' is ({rows}, {num_classes}), not {array.shape}")
    if name in LOG_DENSITIES:
        return array.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        array = array.astype(np.float16, copy=False)
    for start in range(0, rows, BLOCK_ROWS):
        if not np.isfinite(array[start : start + BLOCK_ROWS]).all():
            raise TableError(
                f"statistic {name!r} is not finite as float16 (rows {start} and on): did the model diverge?"
            )
    return array


def _read_index(folder: Path) -> Index:
    path = folder / INDEX
    try:
        index = Index.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TableError(f"no table of regions in {folder}: cannot read {INDEX} ({error.strerror})") from error
    except ValidationError as error:
        raise TableError(f"{path} is damaged: {error.errors()[0]['msg']}") from error
    wrong = [n for n, (_, shape) in index.columns.items() if not n.isidentifier() or shape[:1] != (index.rows,)]
    if wrong or not KEYS.keys() <= index.columns.keys():
        raise TableError(f"{path} is damaged: its columns do not fit together")
    return index


def _open(path: Path, kind: str, shape: tuple[int, ...]) -> Column:
    try:
        array = np.load(path, mmap_mode="r" if np.prod(shape) else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TableError(f"{path} is missing or damaged: compute the table again ({error})") from error
    if array.dtype.name != kind or array.shape != shape:
        raise TableError(f"{path} holds {array.dtype} {array.shape}, {INDEX} says {kind} {shape}")
    return np.asarray(array) if not array.size else array
