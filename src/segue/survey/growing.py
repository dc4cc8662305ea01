"""A table of regions that grows on disk image by image, and goes on after it was cut off.

Columns are the files of a stored table (:mod:`segue.acquire.table`), begun with a header for no rows and appended to.
``survey.jsonl`` says first what the table is of, then of each image, once its rows are in all columns, how many they
are. ``table.json`` comes last: without it there is no table. To go on is to cut the columns back to the last image
that the journal has, so the bytes are those of a table that was never cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from segue.acquire.table import INDEX, Column, Index, RegionTable, TableError, column_header
from segue.files import remove, write_text

JOURNAL = "survey.jsonl"


class Growing:
    """Rows of ``images``, in that order, in ``folder``: :meth:`add` those from number ``done``, then :meth:`finish`.

    ``identity``: plain containers that the content depends on. A folder with another one, or that is damaged, begins
    anew; ``table`` is what is there when it has been finished. Use it in a ``with`` block.
    """

    def __init__(self, folder: Path, images: Sequence[str], num_classes: int, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.images = tuple(images)
        self.num_classes = num_classes
        self.rows: list[int] = []
        self.table: RegionTable | None = None
        self._identity = json.loads(json.dumps(identity))
        self._columns: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()

    def __enter__(self) -> Growing:
        lines = self._journalled()
        if lines:
            self.table = self._finished()
        if self.table is None:
            remove(self.folder / INDEX)
            self._take_up(lines)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def done(self) -> int:
        """Images whose rows are there."""
        return len(self.rows)

    def add(self, columns: Mapping[str, Column]) -> None:
        """Rows of the next image: arrays of equal length, (R,) or (R, K), of the types in which they are stored."""
        if not self._files:
            self._begin(columns)
        for name, values in columns.items():
            _put(self._files[name], np.ascontiguousarray(values).tobytes())
        rows = len(next(iter(columns.values())))
        _put(self._files[JOURNAL], _line({"image": self.images[self.done], "rows": rows}))
        self.rows.append(rows)

    def finish(self) -> RegionTable:
        """The table, once all images are there."""
        total = sum(self.rows)
        columns = {}
        for name, (kind, width) in self._columns.items():
            columns[name] = (kind, (total, *width))
            self._files[name].seek(0)
            _put(self._files[name], column_header(np.dtype(kind), columns[name][1]))
        self._open.close()
        index = Index(rows=total, num_classes=self.num_classes, images=self.images, columns=columns)
        write_text(self.folder / INDEX, index.model_dump_json())
        return RegionTable.load(self.folder)

    def _journalled(self) -> list[Any]:
        """Lines of the journal up to the first that is damaged; none if it is of something else."""
        path, lines = self.folder / JOURNAL, []
        for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines if lines and lines[0].get("identity") == self._identity else []

    def _finished(self) -> RegionTable | None:
        try:
            return RegionTable.load(self.folder)
        except TableError:
            return None

    def _take_up(self, lines: list[Any]) -> None:
        if lines:
            self._columns = {name: (kind, tuple(width)) for name, (kind, width) in lines[0]["columns"].items()}
            self.rows = self._whole([line["rows"] for line in lines[1:]])
        if not self.rows:
            for path in (*self.folder.glob("*.npy"), self.folder / JOURNAL):
                remove(path)
            return
        write_text(self.folder / JOURNAL, "".join(_line(line).decode() for line in lines[: self.done + 1]))
        for name, (start, row_bytes) in self._places().items():
            file = self._opened(name, "r+b")
            file.truncate(start + sum(self.rows) * row_bytes)
            file.seek(0, 2)
        self._opened(JOURNAL, "ab")

    def _whole(self, rows: list[int]) -> list[int]:
        """As many images as all columns hold rows of."""
        held = []
        for name, (start, row_bytes) in self._places().items():
            path = self.folder / f"{name}.npy"
            size = path.stat().st_size if path.is_file() else 0
            held.append((size - start) // max(row_bytes, 1))
        ends = np.cumsum(rows)
        return rows[: int(np.searchsorted(ends, min(held), side="right"))]

    def _places(self) -> dict[str, tuple[int, int]]:
        """Where rows begin in the file of each column, and bytes of a row."""
        places = {}
        for name, (kind, width) in self._columns.items():
            dtype = np.dtype(kind)
            places[name] = (len(column_header(dtype, (0, *width))), dtype.itemsize * int(np.prod(width)))
        return places

    def _begin(self, columns: Mapping[str, Column]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns = {name: (values.dtype.name, values.shape[1:]) for name, values in columns.items()}
        for name, (kind, width) in self._columns.items():
            _put(self._opened(name, "wb"), column_header(np.dtype(kind), (0, *width)))
        _put(self._opened(JOURNAL, "wb"), _line({"identity": self._identity, "columns": self._columns}))

    def _opened(self, name: str, mode: str) -> BinaryIO:
        path = self.folder / (name if name == JOURNAL else f"{name}.npy")
        file: Any = self._open.enter_context(path.open(mode, buffering=0))
        self._files[name] = file
        return self._files[name]


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _put(file: BinaryIO, data: bytes) -> None:
    # an unbuffered write may be short, on a disk that fills up for one
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
