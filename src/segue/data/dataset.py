"""Data sets: where they lie, which images and labels they hold, and how label values become train ids.

``open_dataset`` lists files once (no file is opened) and reads on demand. A data set without any label file is a normal
one: a target. Nothing here imports torch; a ``python:module:Class`` data set may.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segue.config import DatasetConfig
from segue.data import catalog
from segue.data.catalog import DatasetSpec, LabelFiles, Split
from segue.data.errors import DataError
from segue.data.ifn_index import has_index, read_index
from segue.data.images import Size, read_ids, read_rgb, resize_image, resize_label
from segue.data.listing import Pattern, find, first_id, read_list, select
from segue.data.store import File, Store, find_archive
from segue.labels import IGNORE, U8, UNKNOWN, Coverage, LabelError, LabelMap, LabelSpace, build_map

PYTHON = "python:"


@dataclass(frozen=True)
class Sample:
    """Image (H, W, 3) uint8 RGB as its file has it, label (H, W) uint8 train ids or None, trust in it (uint8/255)."""

    image: U8
    label: U8 | None
    weight: U8 | None = None


class Dataset:
    """Images with ids, and labels as train ids of ``space``; subclasses decode.

    ``labelled``: whether there are labels at all. ``unlabelled_ids``: images of a labelled set that have none.
    ``coverage``: what the map onto ``space`` merges, loses and never labels (None without labels).
    ``own_label_size``: labels may have another resolution than their images. ``label_map``: from the numbers that
    files hold to train ids, and ``root``: below which they lie; None where there are no such files.
    """

    def __init__(self, name: str, space: LabelSpace, ids: Sequence[str], size: Size | None) -> None:
        self.name = name
        self.space = space
        self.ids = list(ids)
        self.size = size
        self.split = ""
        self.labelled = False
        self.unlabelled_ids: list[str] = []
        self.coverage: Coverage | None = None
        self.own_label_size = False
        self.label_map: LabelMap | None = None
        self.root: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def files(self, index: int) -> tuple[File | None, File | None]:
        """Image file and label file; None where there is no file."""
        return None, None

    def read_image(self, index: int) -> U8:
        """(H, W, 3) uint8 RGB, resized to ``size`` when that is set. ``DataError`` names the file."""
        image = self._image(index)
        return image if self.size is None else resize_image(image, self.size)

    def read_label(self, index: int) -> U8:
        """(H, W) uint8 train ids at the label's own resolution, 255 = not labelled. ``DataError`` names the file."""
        raise NotImplementedError

    def read_file_ids(self, index: int) -> npt.NDArray[Any]:
        """(H, W) uint8 or uint16 numbers as the label file holds them. ``DataError`` names the file."""
        raise NotImplementedError

    def label_stamp(self, index: int) -> tuple[str, str] | None:
        """Name of the label below ``root`` and what tells that it changed, without opening it; None if nothing does."""
        return None

    def read_sample(self, index: int, labels: bool) -> Sample:
        """Image and, when asked, label, both at the file's resolution; ``DataError`` when their sizes differ."""
        image = self._image(index)
        if not labels:
            return Sample(image, None)
        label = self._label_of(index, image)
        return Sample(image, resize_label(label, image.shape[:2]) if self.own_label_size else label)

    def read_scored(self, index: int) -> tuple[U8, U8]:
        """Image resized to ``size`` when that is set, label at its own resolution; ``DataError`` as for a sample."""
        image = self._image(index)
        label = self._label_of(index, image)
        return image if self.size is None else resize_image(image, self.size), label

    def require_labels(self) -> None:
        """``DataError`` unless every image has a label."""
        if not self.labelled:
            raise DataError(f"data set {self.name!r} has no labels, but this stream trains on them")
        if self.unlabelled_ids:
            raise DataError(
                f"data set {self.name!r}: {len(self.unlabelled_ids)} of {len(self)} images have no label file, the "
                f"first is {self._label_name(self.unlabelled_ids[0])}; add it, or leave the image out with 'exclude'"
            )

    def describe(self, index: int) -> str:
        """The image's file, or its id when it has none, for messages."""
        return str(self.files(index)[0] or f"{self.ids[index]!r} of data set {self.name!r}")

    def colorize(self, label: U8) -> U8:
        """(H, W) train ids to an (H, W, 3) RGB picture."""
        return self.space.colorize(label)

    def stray_labels(self) -> list[str]:
        """Label files without an image, relative to the root."""
        return []

    def _image(self, index: int) -> U8:
        raise NotImplementedError

    def _label_of(self, index: int, image: U8) -> U8:
        label = self.read_label(index)
        if not self.own_label_size and label.shape != image.shape[:2]:
            (h, w), (lh, lw) = image.shape[:2], label.shape
            raise DataError(
                f"image {self.describe(index)} is {w}x{h} pixels, but its label {self.files(index)[1] or ''} is "
                f"{lw}x{lh}: they must match"
            )
        return label

    def _label_name(self, image_id: str) -> str:
        return image_id


class FolderDataset(Dataset):
    """Files below one root, found by the patterns of a :class:`segue.data.catalog.DatasetSpec`."""

    def __init__(
        self, name: str, root: Path, spec: DatasetSpec, split: str, config: DatasetConfig, space: LabelSpace
    ) -> None:
        self.store = Store(root)
        part = spec.split(split)
        patterns = [Pattern(p, part.folder or "") for p in _listed(part.image)]
        self._images, self._listed_labels, ids = _find_images(self.store, patterns, part)
        super().__init__(name, space, choose(ids, config), config.size)
        self.split = split
        absent = [i for i in select(ids, config.include, config.exclude) if i not in self._images]
        if absent:
            raise DataError(
                f"data set {name!r}: {len(absent)} of {len(ids)} images that the list of split {split!r} names are not "
                f"below {self.store.root}, the first is {absent[0]}; fetch them, or choose others by 'include'"
                f"{self.store.closed()}"
            )
        if not self.ids:
            raise DataError(self._empty(patterns, len(ids), spec, config))
        self._label_files: LabelFiles | None = None
        self._labels: dict[str, str] = {}
        self.root = self.store.root
        self._find_labels(part, patterns[0].fields)
        if self._label_files is not None:
            native = spec.native()
            self.label_map = _label_map(spec, native, self._label_files.names(native), space)
            self.coverage = self.label_map.coverage
            self.labelled = True
            self.own_label_size = self._label_files.own_size
            self.unlabelled_ids = [i for i in self.ids if i not in self._labels]

    def files(self, index: int) -> tuple[File | None, File | None]:
        """Image file and label file; the latter None where there is none."""
        label = self._labels.get(self.ids[index])
        image = File(self.store, self._images[self.ids[index]])
        return image, None if label is None else File(self.store, label)

    def read_label(self, index: int) -> U8:
        """(H, W) uint8 train ids at the label's own resolution, 255 = not labelled. ``DataError`` names the file."""
        ids = self.read_file_ids(index)
        assert self.label_map is not None  # there is a label file
        return map_ids(self.label_map, ids, str(self.files(index)[1]))

    def read_file_ids(self, index: int) -> npt.NDArray[Any]:
        """(H, W) uint8 or uint16 numbers as the label file holds them. ``DataError`` names the file."""
        file = self.files(index)[1]
        if file is None or self._label_files is None:
            raise DataError(f"no label file {self._label_name(self.ids[index])} for image {self.describe(index)}")
        return read_ids(file, self._label_files.channel)

    def label_stamp(self, index: int) -> tuple[str, str] | None:
        """See :class:`Dataset`: the label's path; size and time, or in an archive size and checksum."""
        file = self.files(index)[1]
        if file is None or self._label_files is None:
            return None
        return file.path, f"{file.stamp()} {self._label_files.channel}"

    def stray_labels(self) -> list[str]:
        """Label files without an image, relative to the root."""
        if self._label_files is None:
            return []
        stray = [i for i in self._labels if i not in self._images]
        return sorted(self._labels[i] for i in select(stray, (), self._label_files.exclude))

    def _find_labels(self, part: Split, fields: Sequence[str]) -> None:
        # The kind of label file that most images have; the first one named wins a tie.
        best = 0
        for archives in _passes(self.store):
            for files in part.labels or ():
                patterns = [Pattern(p, part.folder or "") for p in _listed(files.path)]
                if any(set(p.fields) != set(fields) for p in patterns):
                    raise DataError(f"labels path {files.path!r} must have the fields of 'image': {', '.join(fields)}")
                found = find(self.store, patterns, fields, archives)
                # A list file that names labels chooses their kind, too.
                listed_labels = {i: self._listed_labels.get(i) for i in self.ids if i in found}
                score = sum(not path or first_id(path, patterns, fields) == i for i, path in listed_labels.items())
                if score > best:
                    best, self._label_files, self._labels = score, files, found
                    self._pattern = next(p for p in patterns if p.id_of(next(iter(found.values())), fields))
            if best:
                return

    def _label_name(self, image_id: str) -> str:
        if self._label_files is None:
            return image_id
        if self._pattern.fields != ("key",):
            return f"{self.store.root / self._pattern.text} of {image_id}"
        return str(self.store.root / self._pattern.text.replace("{key}", image_id))

    def _image(self, index: int) -> U8:
        return read_rgb(File(self.store, self._images[self.ids[index]]))

    def _empty(self, patterns: Sequence[Pattern], listed: int, spec: DatasetSpec, config: DatasetConfig) -> str:
        if listed:
            return (
                f"data set {self.name!r}: none of its {listed} images of split {self.split!r} is left by "
                f"include={list(config.include)} exclude={list(config.exclude)}"
            )
        held = self.store.top()
        shown = ", ".join(held[:8]) + (", …" if len(held) > 8 else "")
        wanted = " or ".join(repr(p.text) for p in patterns)
        return (
            f"data set {self.name!r}: split {self.split!r} is empty, no image matches {wanted} below {self.store.root} "
            f"(which holds: {shown or 'nothing'}; splits of {spec.name}: {', '.join(spec.splits)}){self.store.closed()}"
        )


def open_dataset(name: str, config: DatasetConfig, split: str, space: LabelSpace | None = None) -> Dataset:
    """Open one split of the data set that a recipe calls ``name``; labels become train ids of ``space``.

    ``space`` None: the data set's own. Root: ``config.root``, else the YAML's folder, else the data set's environment
    variable, ``$SEGUE_DATA/NAME``, ``$IFN_DIR_DATASET/NAME``, ``./data/NAME``, ``./datasets/data/NAME``, each a folder
    or ``NAME.zip``. ``config.labels`` take the place of its own (:mod:`segue.data.relabelled`); ``config.listed``
    and ``config.corrupt`` choose images and change them. ``DataError`` when the folder, the split or every image is
    missing, or the YAML is wrong.
    """
    if config.labels is not None:
        from segue.data.relabelled import relabelled

        return relabelled(open_dataset(name, config.model_copy(update={"labels": None}), split, space), config.labels)
    if config.corrupt is not None:
        from segue.data.corrupted import Corrupted

        return Corrupted(open_dataset(name, config.model_copy(update={"corrupt": None}), split, space), config.corrupt)
    if config.listed is not None:
        from segue.data.listed import listed

        whole = config.model_copy(update={"listed": None, "limit": None})
        return listed(open_dataset(name, whole, split, space), config.listed, config.limit)
    reference = config.dataset or name
    if reference.startswith(PYTHON):
        from segue.data.python_dataset import PythonDataset

        return PythonDataset(name, reference.removeprefix(PYTHON), split, config, space)
    spec, root = describe_source(reference, config)
    from segue.data import memory_map

    try:
        target = spec.native() if space is None else spec.onto(space)
        if memory_map.holds(root):
            return memory_map.MemoryMapDataset(name, root, spec, split, config, target)
        return FolderDataset(name, root, spec, split, config, target)
    except LabelError as error:
        raise DataError(f"data set {name!r}: {error}") from error


def find_root(spec: DatasetSpec, reference: str, root: Path | None = None) -> Path:
    """Folder or archive of a data set; ``DataError`` lists every place that was looked at."""
    if root is not None:
        if root.expanduser().is_dir() or find_archive(root.expanduser()):
            return root.expanduser()
        raise DataError(f"data set {spec.name!r}: root {root} is not a folder or archive (from {Path.cwd()})")
    tried = list(_candidates(spec.env, tuple(dict.fromkeys((reference, spec.name, *spec.folders)))))
    for path in tried:
        if path.is_dir() or find_archive(path):
            return path
        if _zip_of(path).is_file():
            return _zip_of(path)
    variable = f"{spec.env} or " if spec.env else ""
    raise DataError(
        f"data set {spec.name!r} not found; looked for {', '.join(map(str, tried))}. Set its 'root', or the "
        f"environment variable {variable}SEGUE_DATA (the folder above it)"
    )


def map_ids(label_map: LabelMap, ids: npt.NDArray[Any], where: str) -> U8:
    """File ids to train ids; ``DataError`` names ``where`` and the values outside the map."""
    try:
        if ids.dtype != np.uint8:
            if ids.max(initial=0) > IGNORE:
                return label_map(ids)
            ids = ids.astype(np.uint8)
        # One byte in, one byte out: cv2's table look-up is 10 times numpy's take, which first widens every index.
        out = np.asarray(cv2.LUT(ids, label_map.table[:256]), np.uint8)
        return label_map(ids) if (out == UNKNOWN).any() else out
    except LabelError as error:
        raise DataError(f"{where}: {error}") from error


def describe_source(reference: str, config: DatasetConfig) -> tuple[DatasetSpec, Path]:
    """The YAML that a data set's name or folder means, and its root; a ``dataset.yaml`` in the root comes first."""
    path = Path(reference).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        spec = catalog.load_file(path)
        return spec, path.parent if config.root is None else find_root(spec, reference, config.root)
    if (own := catalog.load_own(path)) is not None:
        return own, path if config.root is None else find_root(own, reference, config.root)
    if reference not in catalog.catalog_names():
        if path.is_dir() or "/" in reference:
            raise DataError(f"data set {reference!r}: no {catalog.FILE} there; `segue list datasets` shows the catalog")
        places = [config.root.expanduser()] if config.root is not None else _candidates(None, (reference,))
        for place in places:
            for root in (place, _zip_of(place)):
                if (own := catalog.load_own(root)) is not None:
                    return own, root
    spec = catalog.load(reference)
    root = find_root(spec, reference, config.root)
    return catalog.load_own(root) or spec, root


def _zip_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.zip"


def _candidates(env: str | None, names: Sequence[str]) -> list[Path]:
    own = os.environ.get(env, "") if env else ""
    parents = [Path(p) for p in (os.environ.get(v, "") for v in ("SEGUE_DATA", "IFN_DIR_DATASET")) if p]
    parents += [Path("data"), Path("datasets/data")]
    return ([Path(own)] if own else []) + [(parent / n).expanduser() for parent in parents for n in names]


def _find_images(
    store: Store, patterns: Sequence[Pattern], part: Split
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """All images of the patterns (id -> path), label paths that a list names, sorted ids that belong to the split."""
    fields = patterns[0].fields
    found = next((f for archives in _passes(store) if (f := find(store, patterns, fields, archives))), {})
    labels: dict[str, str] = {}
    ids = sorted(found)
    if part.index is not None and has_index(store, part.index):
        labels = read_index(store, part.index, patterns)
        ids = sorted(labels)
    elif part.list is not None and found:
        names = [n.replace("{split}", part.folder or "") for n in _listed(part.list)]
        labels = read_list(store, names, patterns)
        ids = sorted(labels)
    ids = select(ids, part.include, part.exclude)
    if part.every is not None:
        ids = ids[:: part.every]
    if part.except_every is not None:
        ids = [image_id for n, image_id in enumerate(ids) if n % part.except_every]
    return found, labels, ids


def _passes(store: Store) -> Iterator[bool]:
    # archives that lie in the folder are opened, and even looked for, only when its loose files do not answer
    yield False
    if store.has_archives():
        yield True


def choose(ids: Sequence[str], config: DatasetConfig) -> list[str]:
    """Ids that ``config`` keeps: ``include``, ``exclude``, then ``limit`` evenly spaced."""
    chosen = select(ids, config.include, config.exclude)
    if config.limit is not None and config.limit < len(chosen):
        chosen = [chosen[k * len(chosen) // config.limit] for k in range(config.limit)]
    return chosen


def _label_map(spec: DatasetSpec, native: LabelSpace, ids: Mapping[int, str | None], space: LabelSpace) -> LabelMap:
    try:
        return build_map(space, native, ids)
    except LabelError as error:
        raise LabelError(f"{error} (or under 'maps: {{{space.name}: …}}' in the YAML of {spec.name})") from error


def _listed(patterns: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns or ()
