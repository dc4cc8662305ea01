"""Label spaces: the ids, names and colours of classes, and how one space maps onto another.

A network speaks *train ids* (0 … C-1, the order of ``LabelSpace.classes``); files speak *label ids* (whatever the data
set's authors chose). 255 (``IGNORE``) means "not labelled here" in both. A space is one YAML file in
``segue/data/spaces``; a data set's YAML maps its own ids to names of its native space (see ``segue.data.dataset``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from segue.errors import UserError

IGNORE = 255
MAX_FILE_ID = 65535

U8 = npt.NDArray[np.uint8]


class LabelError(UserError):
    """A label space or map that cannot be used; the message names the class or id and the way out."""


@dataclass(frozen=True)
class LabelSpace:
    """An ordered list of classes.

    ``ids[t]`` is the label id that files of this space hold for train id ``t``; ``views`` names subsets of classes
    whose IoUs are averaged together (for example the 16 and 13 classes of SYNTHIA); ``maps[other]`` says, for a native
    class name of space ``other``, which class of this space it becomes (None = ignored). ``background``: the name of
    class 0 where that takes in whatever is not labelled (``segue.tasks``), else None.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    background: str | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= UNKNOWN:
            raise LabelError(f"label space {self.name!r} must have 1 to 254 classes, it has {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes) or len(set(self.ids)) != len(self.ids):
            raise LabelError(f"label space {self.name!r} repeats a class name or a label id")
        if not len(self.classes) == len(self.colors) == len(self.ids):
            raise LabelError(f"label space {self.name!r} needs one colour and one id for each class")
        if self.background not in (None, self.classes[0]):
            raise LabelError(
                f"label space {self.name!r}: the background is class 0, {self.classes[0]!r}, not {self.background!r}"
            )

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Train id of a class name; ``LabelError`` with the nearest name when there is none."""
        if name in self.classes:
            return self.classes.index(name)
        raise LabelError(f"label space {self.name!r} has no class {name!r}{nearest(name, self.classes)}")

    def view(self, name: str) -> tuple[int, ...]:
        """Train ids of a named scoring view; ``all`` is every class."""
        if name == "all":
            return tuple(range(len(self)))
        if name not in self.views:
            raise LabelError(f"label space {self.name!r} has no view {name!r}{nearest(name, ['all', *self.views])}")
        return tuple(self.index(c) for c in self.views[name])

    def palette(self) -> U8:
        """Colours as (256, 3) uint8, black where there is no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colors
        return table

    def colorize(self, label: U8) -> U8:
        """(H, W) train ids to an (H, W, 3) RGB picture; ignored pixels are black."""
        out: U8 = self.palette()[label]
        return out

    def to_label_ids(self, label: U8) -> U8:
        """(H, W) train ids to the label ids of this space's files; 255 stays 255 unless id 0 is free, then 0 (void)."""
        void = 0 if 0 not in self.ids else IGNORE
        table = np.full(256, void, np.uint8)
        table[: len(self)] = self.ids
        out: U8 = table[label]
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, enough to rebuild the space with :func:`space_from_dict`."""
        return {
            "name": self.name,
            "classes": [
                {"name": c, "color": list(k), "id": i}
                for c, k, i in zip(self.classes, self.colors, self.ids, strict=True)
            ],
            "views": {k: list(v) for k, v in self.views.items()},
            **({} if self.background is None else {"background": self.background}),
        }


@dataclass(frozen=True)
class Coverage:
    """What a map from one label space onto another keeps: for the report and for ``segue data show``."""

    merged: Mapping[str, tuple[str, ...]]
    lost: tuple[str, ...]
    missing: tuple[str, ...]

    def lines(self) -> list[str]:
        """One sentence a fact, empty when the map is one to one and complete."""
        out = [f"{' + '.join(names)} -> {target}" for target, names in self.merged.items()]
        if self.lost:
            out.append(f"not used (become ignore): {', '.join(self.lost)}")
        if self.missing:
            out.append(f"never labelled in this data: {', '.join(self.missing)}")
        return out


@dataclass(frozen=True)
class LabelMap:
    """File ids to train ids of ``space`` by one table look-up."""

    space: LabelSpace
    table: U8
    coverage: Coverage

    def __call__(self, ids: npt.NDArray[Any]) -> U8:
        """(H, W) file ids (uint8 or uint16) to (H, W) train ids; ``LabelError`` names ids outside the map."""
        # take() with mode="clip" skips the bounds check; uint8/uint16 input is always inside a 65536-entry table.
        out: U8 = self.table.take(ids, mode="clip")
        # Unknown ids carry 254 in the table, which no space may use: one pass finds them without a second table.
        if (out == UNKNOWN).any():
            values = np.unique(ids[out == UNKNOWN])[:8]
            raise LabelError(
                f"label values {', '.join(map(str, values))} are not in the map to {self.space.name!r}: "
                f"add them under 'ids' in the data set's YAML (null = ignore)"
            )
        return out


UNKNOWN = 254


def build_map(space: LabelSpace, native: LabelSpace | None, ids: Mapping[int, str | None]) -> LabelMap:
    """Map file ids to train ids of ``space``.

    ``ids``: file id -> native class name (None = ignored). A native class goes to ``space.maps[native.name]`` when that
    is declared, else to the class of the same name, else it is lost (ignored). 255 is always ignored.
    """
    declared = space.maps.get(native.name, {}) if native is not None else {}
    table = np.full(MAX_FILE_ID + 1, UNKNOWN, np.uint8)
    table[IGNORE] = IGNORE
    sources: dict[str, list[str]] = {}
    lost: list[str] = []
    for file_id, name in ids.items():
        if not 0 <= int(file_id) <= MAX_FILE_ID:
            raise LabelError(f"label id {file_id} is outside 0..{MAX_FILE_ID}")
        target = declared.get(name, name) if name is not None else None
        if target is None or target not in space.classes:
            table[int(file_id)] = IGNORE
            if name is not None:
                lost.append(name)
            continue
        table[int(file_id)] = space.index(target)
        if name not in sources.setdefault(target, []):
            sources[target].append(str(name))
    merged = {t: tuple(n) for t, n in sources.items() if len(n) > 1}
    missing = tuple(c for c in space.classes if c not in sources)
    if len(missing) == len(space):
        raise LabelError(
            f"no class of the data reaches label space {space.name!r}: declare how "
            f"{native.name if native else 'its names'} map onto it under 'maps' in the space's YAML"
        )
    return LabelMap(space, table, Coverage(merged, tuple(dict.fromkeys(lost)), missing))


def space_from_dict(data: Mapping[str, Any]) -> LabelSpace:
    """Build a space from the containers of its YAML file (or of ``LabelSpace.to_dict``)."""
    try:
        rows = data["classes"]
        return LabelSpace(
            name=str(data["name"]),
            classes=tuple(str(r["name"]) for r in rows),
            colors=tuple((int(r["color"][0]), int(r["color"][1]), int(r["color"][2])) for r in rows),
            ids=tuple(int(r.get("id", i)) for i, r in enumerate(rows)),
            views={str(k): tuple(v) for k, v in data.get("views", {}).items()},
            maps=data.get("maps", {}),
            background=data.get("background"),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise LabelError(f"not a label space: {error!r} (each class needs 'name' and 'color: [r, g, b]')") from error


def space_names() -> list[str]:
    """Names of the label spaces that come with Segue."""
    folder = resources.files("segue.data").joinpath("spaces")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


@cache
def load_space(name: str) -> LabelSpace:
    """A label space that comes with Segue, by name."""
    if name not in space_names():
        raise LabelError(f"unknown label space {name!r}{nearest(name, space_names())}")
    text = resources.files("segue.data").joinpath("spaces").joinpath(f"{name}.yaml").read_text("utf-8")
    return space_from_dict(yaml.safe_load(text))


def nearest(name: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'? known: …)`` for an error message."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f" ({hint}known: {', '.join(known)})"
