"""What readers of all formats hand over: one label of one image each, decoded when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segue.acquire.state import Round
from segue.data.images import declared_size, read_ids, read_rgb
from segue.data.store import File, Store
from segue.labelling.job import Color, LabellingError, name_of, names, selection_of
from segue.labels import IGNORE, U8, nearest

GREY = 0
"""Colour type of a PNG."""
COLOR_TYPE_AT = 25
SHOWN = 6


@dataclass(frozen=True)
class Item:
    """A label that came back. ``read(size)`` makes (H, W) train ids, 254 or 255, or raises what is wrong with it."""

    where: str
    """File, archive member or task, for messages."""
    image: str
    who: str
    """Two labels of an image by the same person: the later counts. By others: they are compared."""
    read: Callable[[tuple[int, int]], U8]
    time: str = ""
    looked: bool = False
    """Whether the tool itself says that a person has submitted it."""
    round: int | None = None
    """Which round it is of, where the file says so."""


@dataclass
class Batch:
    """What one file or folder holds."""

    items: list[Item] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out, and rightly so."""


class Target:
    """What may be answered: the images and classes of a group's rounds."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self.rounds = {r.info.round: r for r in rounds}
        self.group = rounds[0].info.group
        self.labels = rounds[0].labels
        self.images = {i for r in rounds for i in r.by_image}
        self.classes = {name: key for key, name in names(self.labels).items()}
        self._selections = {r.info.round: selection_of(r) for r in rounds}
        self._named = {**{name_of(i): i for i in self.images}, **{i: i for i in self.images}}

    def image(self, name: str, where: str) -> str:
        """The image that a file's or a task's name means; ``LabellingError`` with the nearest one."""
        if name in self._named:
            return self._named[name]
        close = difflib.get_close_matches(name, self._named, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise LabellingError(f"{where}: no region of an image {name!r} was asked for{hint}")

    def class_id(self, name: str, where: str) -> int:
        """Train id, or 254, of a class as a tool names it; ``LabellingError`` with the nearest one."""
        if name not in self.classes:
            raise LabellingError(f"{where}: there is no class {name!r}{nearest(name, list(self.classes))}")
        return self.classes[name]

    def round(self, group: Any, number: Any, selection: Any, where: str) -> int | None:
        """The round that a job says it is of, None when it says nothing; ``LabellingError`` for another choice."""
        if group is None and number is None:
            return None
        known = self._selections.get(number) if isinstance(number, int) else None
        if group != self.group or known is None or selection not in (None, known):
            raise LabellingError(
                f"{where} belongs to another choice of regions (group {group!r}, round {number!r}, {selection!r}): "
                f"give the run, --group and files that belong together"
            )
        return int(number)


def colored(
    file: File,
    size: tuple[int, int],
    known: Mapping[Color, int],
    grey: Sequence[int],
    foreign: Mapping[Color, str] | None = None,
) -> U8:
    """A PNG of class colours, or of numbers in grey, as (H, W) train ids.

    ``grey[n]`` is what the number n means, -1 nothing; ``foreign``: how colours that mean nothing are explained.
    ``LabellingError`` for another size, colours and numbers that mean nothing; ``DataError`` for a damaged file.
    """
    data = file.read()
    height, width = declared_size(data)
    if (height, width) not in (size, (0, 0)):  # (0, 0): no picture at all, which the reader explains
        raise LabellingError(f"{file} is {width}x{height} pixels, its image {size[1]}x{size[0]}")
    if data[COLOR_TYPE_AT : COLOR_TYPE_AT + 1] == bytes([GREY]):
        return _numbered(file, grey)
    rgb = read_rgb(file).astype(np.int32)
    code = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    out = np.full(code.shape, -1, np.int16)
    for (red, green, blue), key in known.items():
        out[code == (red << 16 | green << 8 | blue)] = key
    strange = np.unique(code[out < 0])
    if strange.size:
        shades = [(c >> 16, c >> 8 & 255, c & 255) for c in strange[:SHOWN].tolist()]
        listed = ", ".join((foreign or {}).get(shade, str(shade)) for shade in shades)
        raise LabellingError(
            f"{file}: {int((out < 0).sum())} pixels of {strange.size} colours that no class has: {listed}; paint "
            f"without soft edges, in the colours of the job"
        )
    return out.astype(np.uint8)


def _numbered(file: File, grey: Sequence[int]) -> U8:
    ids = read_ids(file)
    table = np.full(1 << 16, -1, np.int16)
    table[: len(grey)] = grey
    out = table[ids]
    if (out < 0).any():
        listed = ", ".join(map(str, np.unique(ids[out < 0])[:SHOWN].tolist()))
        raise LabellingError(f"{file}: numbers that no class has: {listed}")
    return np.asarray(out, np.uint8)


def by_train_id(target: Target) -> list[int]:
    """``grey`` of files whose numbers are train ids, 254 and 255."""
    known = {*target.classes.values(), IGNORE}
    return [n if n in known else -1 for n in range(256)]


def folder_of(paths: Sequence[str], end: str) -> str | None:
    """What stands before ``end`` in the first path that holds it, so that a job may lie in a folder of an archive."""
    return next((p[: f"/{p}".index(f"/{end}")] for p in sorted(paths) if f"/{end}" in f"/{p}"), None)


def members(store: Store) -> list[str]:
    """All files of a folder or archive, sorted; other archives in a folder are not looked into."""
    return sorted(store.files(archives=False))
