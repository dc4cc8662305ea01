"""Labels below a folder, matched with images by name; or the one label file of one image.

Known layouts come from the catalog: an image that ends like one of its image patterns (``_leftImg8bit``) belongs to
the file with one of its label endings instead (``_gtFine_labelTrainIds``, ``_gtFine_labelIds``), whose ids are known,
too. Any other label has its image's name and holds train ids or label ids: whichever explains all such files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np

from segue.data import catalog
from segue.data.dataset import map_ids
from segue.data.images import read_ids
from segue.errors import UserError
from segue.labels import IGNORE, U8, UNKNOWN, LabelError, LabelMap, LabelSpace, build_map, nearest

ENCODINGS = ("trainid", "labelid")


@dataclass(frozen=True)
class _Ending:
    image: str
    label: str
    map: LabelMap


class Truth:
    """Labels of images as train ids of ``space``.

    ``folder``: where they lie, or a label file when there is one image. ``names``: the images' paths without suffix.
    ``encoding`` (``trainid`` or ``labelid``) of files without a known ending; "" means what fits. ``without``: images
    that have no label. ``UserError`` when no image has one, when two files could be an image's label, and when it
    cannot be known what their numbers mean.
    """

    def __init__(self, folder: Path, names: Sequence[str], space: LabelSpace, encoding: str = "") -> None:
        if not folder.exists():
            raise UserError(f"no folder {folder}")
        if encoding and encoding not in ENCODINGS:
            raise UserError(f"unknown encoding {encoding!r}{nearest(encoding, ENCODINGS)}")
        self.folder = folder
        self._files: dict[str, tuple[Path, LabelMap]] = {}
        if folder.is_file():
            if len(names) != 1:
                raise UserError(f"{folder} is the label of one image, not of {len(names)}: give the folder of labels")
            ends = (e for e in _endings(space) if names[0].endswith(e.image) and folder.stem.endswith(e.label))
            ending = next(ends, None)
            self._files[names[0]] = folder, ending.map if ending else _choose([folder], space, encoding)
            self.without: list[str] = []
            return
        self._by_last: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
        for path in sorted(folder.rglob("*.png")):
            parts = path.relative_to(folder).with_suffix("").parts
            self._by_last.setdefault(parts[-1], []).append((parts, path))
        endings, equal = list(_endings(space)), {}
        for name in names:
            ending = next((e for e in endings if name.endswith(e.image) and self._find(name, e)), None)
            if ending is not None:
                self._files[name] = self._only(name, self._find(name, ending)), ending.map
            elif found := self._find(name, None):
                equal[name] = self._only(name, found)
        if equal:
            chosen = _choose(list(equal.values()), space, encoding)
            self._files.update({name: (path, chosen) for name, path in equal.items()})
        self.without = [name for name in names if name not in self._files]
        if not self._files:
            raise UserError(
                f"no PNG below {folder} is the label of an image: its name must be the image's, or follow a known "
                f"layout (…_leftImg8bit and …_gtFine_labelIds)"
            )

    def read(self, name: str) -> U8 | None:
        """(H, W) train ids of an image's label, None without one; ``DataError`` names a file that cannot be used."""
        if name not in self._files:
            return None
        path, label_map = self._files[name]
        return map_ids(label_map, read_ids(path), str(path))

    def _find(self, name: str, ending: _Ending | None) -> list[Path]:
        wanted = name if ending is None else name.removesuffix(ending.image) + ending.label
        parts = PurePosixPath(wanted).parts
        same = self._by_last.get(parts[-1], [])
        return [path for own, path in same if own[-len(parts) :] == parts[-len(own) :]]

    def _only(self, name: str, found: list[Path]) -> Path:
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} could both be the label of {name}")
        return found[0]


def _endings(space: LabelSpace) -> Iterator[_Ending]:
    """Endings of image and label files in the catalog's layouts whose labels reach ``space``, each once."""
    seen: set[tuple[str, str]] = set()
    for spec in map(catalog.load, catalog.catalog_names()):
        for image, label, files in _patterns(spec):
            if not label or (image, label) in seen or files.channel is not None:
                continue
            try:
                found = build_map(spec.onto(space), spec.native(), files.names(spec.native()))
            except LabelError:
                continue  # this data has no class of the space
            seen.add((image, label))
            yield _Ending(image, label, found)


def _patterns(spec: catalog.DatasetSpec) -> Iterator[tuple[str, str, catalog.LabelFiles]]:
    for split in map(spec.split, spec.splits):
        for image, files in product(_listed(split.image), split.labels or ()):
            for label in _listed(files.path):
                yield _ending(image), _ending(label), files


def _ending(pattern: str) -> str:
    return pattern.rpartition("}")[2].rpartition(".")[0]


def _listed(patterns: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns or ()


def _choose(files: Sequence[Path], space: LabelSpace, encoding: str) -> LabelMap:
    """Train ids or label ids, whichever explains every value of all files."""
    known: dict[str, dict[int, str | None]] = {"trainid": dict(enumerate(space.classes)), "labelid": _label_ids(space)}
    maps = {name: build_map(space, None, ids) for name, ids in known.items()}
    if encoding:
        return maps[encoding]
    values = np.zeros(0, np.uint16)
    for path in files:
        values = np.union1d(values, read_ids(path))
        maps = {name: m for name, m in maps.items() if not (m.table[values] == UNKNOWN).any()}
        if not maps:
            shown = ", ".join(map(str, values[:8].tolist())) + (", …" if len(values) > 8 else "")
            raise UserError(
                f"{path}: with the files before it, the values {shown} are neither train ids nor label ids of "
                f"{space.name!r}"
            )
    first, *rest = maps.values()
    if any(not np.array_equal(first.table[values], other.table[values]) for other in rest):
        raise UserError(f"the values in {files[0].parent} could be train ids or label ids; say which with --encoding")
    return first


def _label_ids(space: LabelSpace) -> dict[int, str | None]:
    """Label ids of a space, and those that the catalog's data sets of that space declare to be no class."""
    ignored = {
        value
        for spec in map(catalog.load, catalog.catalog_names())
        if spec.space == space.name
        for files in spec.labels
        if files.ids == "labelid"
        for value in files.ignore
    }
    void = {0, IGNORE} | ignored
    return {**dict.fromkeys(void - set(space.ids)), **dict(zip(space.ids, space.classes, strict=True))}
