"""``python:module:Class``: a map-style data set class of the user's, as in the projects that Segue grew out of.

Expected of the class: ``__len__``, ``__getitem__`` -> (image, label, …) or image alone, and optionally the classmethod
``decode_target`` (train ids to colours) and ``classes`` (names) or ``num_classes``. It must not augment or normalise:
images are PIL pictures, uint8 arrays or tensors, or floats in 0..1; labels are integers, negative = not labelled.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.config import DatasetConfig
from segue.data.dataset import Dataset, Sample, choose, map_ids
from segue.data.errors import DataError
from segue.labels import IGNORE, MAX_FILE_ID, U8, LabelError, LabelSpace, build_map


class PythonDataset(Dataset):
    """Adapts a user's class. ``split`` and ``root`` are handed to its constructor when it has such parameters.

    Class names are taken from ``classes`` (names, a map of id to name, or rows with ``train_id`` and ``name``) and
    matched to ``space`` by name; without them, label values are train ids of ``space``.
    """

    def __init__(self, name: str, reference: str, split: str, config: DatasetConfig, space: LabelSpace | None) -> None:
        self._reference = reference
        if space is None:
            raise DataError(
                f"data set {name!r}: a python: class has no label space of its own; name one in the recipe, or with "
                f"--labels"
            )
        self._class = _import(name, reference)
        self._inner = self._create(name, split, config)
        width = max(6, len(str(len(self._inner))))
        all_ids = [f"{i:0{width}d}" for i in range(len(self._inner))]
        super().__init__(name, space, choose(all_ids, config), config.size)
        self.split = split
        if not self.ids:
            raise DataError(f"data set {name!r}: {reference} has no images left in split {split!r}")
        self._indices = [int(i) for i in self.ids]
        self._kept: tuple[int, tuple[Any, ...]] | None = None
        try:
            self._map = build_map(space, None, self._id_names(space))
        except LabelError as error:
            raise DataError(f"data set {name!r} ({reference}): {error}") from error
        self.labelled = len(self._row(0)) > 1
        self.coverage = self._map.coverage if self.labelled else None

    def read_label(self, index: int) -> U8:
        """(H, W) uint8 train ids, 255 = not labelled. ``DataError`` names the item."""
        row = self._row(index)
        if len(row) < 2:
            raise DataError(f"{self.describe(index)}: __getitem__ returns no label")
        return map_ids(self._map, self._ids(row[1], index), self.describe(index))

    def read_sample(self, index: int, labels: bool) -> Sample:
        """As :meth:`Dataset.read_sample`, with one call of ``__getitem__``."""
        self._kept = (index, self._row(index))
        try:
            return super().read_sample(index, labels)
        finally:
            self._kept = None

    def colorize(self, label: U8) -> U8:
        """(H, W) train ids to an (H, W, 3) RGB picture, by the class's ``decode_target`` where it has one."""
        decode = getattr(self._class, "decode_target", None)
        if decode is None:
            return super().colorize(label)
        return np.ascontiguousarray(_array(decode(label)), np.uint8)

    def describe(self, index: int) -> str:
        """The item, for messages."""
        return f"item {self._indices[index]} of {self._reference}"

    def _image(self, index: int) -> U8:
        return _picture(self._row(index)[0], self.describe(index))

    def _create(self, name: str, split: str, config: DatasetConfig) -> Any:
        options = dict(config.options)
        known = inspect.signature(self._class).parameters
        if "split" in known:
            options.setdefault("split", split)
        if "root" in known and config.root is not None:
            options.setdefault("root", str(config.root))
        try:
            inner = self._class(**options)
            len(inner)
        except Exception as error:
            shown = ", ".join(f"{k}={v!r}" for k, v in options.items())
            raise DataError(f"data set {name!r}: {self._reference}({shown}) failed: {_brief(error)}") from error
        return inner

    def _row(self, index: int) -> tuple[Any, ...]:
        kept = self._kept  # once: another thread may change it
        if kept is not None and kept[0] == index:
            return kept[1]
        try:
            row = self._inner[self._indices[index]]
        except Exception as error:
            raise DataError(f"{self.describe(index)} failed: {_brief(error)}") from error
        return tuple(row) if isinstance(row, tuple | list) else (row,)

    def _id_names(self, space: LabelSpace) -> Mapping[int, str | None]:
        names = _class_names(getattr(self._inner, "classes", None))
        if any(n in space.classes for n in names.values()):
            return names
        number = getattr(self._inner, "num_classes", None)
        if isinstance(number, int) and number != len(space):
            raise LabelError(
                f"num_classes is {number}, label space {space.name!r} has {len(space)}: choose the space that fits, or "
                f"give the class an attribute 'classes' with names of that space"
            )
        return dict(enumerate(space.classes))

    def _ids(self, label: Any, index: int) -> npt.NDArray[Any]:
        ids = _array(label)
        if ids.ndim == 3 and 1 in (ids.shape[0], ids.shape[2]):
            ids = ids.squeeze(0 if ids.shape[0] == 1 else 2)
        if ids.ndim != 2 or ids.dtype.kind not in "iub":
            raise DataError(
                f"{self.describe(index)}: the label must be integers of shape (H, W), it is {ids.dtype} {ids.shape}"
            )
        if ids.dtype in (np.uint8, np.uint16):
            return ids
        if int(ids.max()) > MAX_FILE_ID:
            raise DataError(f"{self.describe(index)}: label value {int(ids.max())} is above {MAX_FILE_ID}")
        return np.where(ids < 0, IGNORE, ids).astype(np.uint16)


def _import(name: str, reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"data set {name!r}: cannot import python:{reference}: {_brief(error)} (write python:module:Class; the "
            f"module must be importable, for example with its folder on PYTHONPATH)"
        ) from error


def _class_names(classes: Any) -> dict[int, str]:
    """Train id -> name, as label spaces spell it ("Traffic light" is traffic_light)."""
    if isinstance(classes, Mapping):
        rows = [(i, n) for i, n in classes.items() if isinstance(i, int) and isinstance(n, str)]
    elif isinstance(classes, list | tuple):
        rows = []
        for i, row in enumerate(classes):
            number = getattr(row, "train_id", i)
            text = row if isinstance(row, str) else getattr(row, "name", None)
            if isinstance(text, str) and isinstance(number, int) and 0 <= number < IGNORE - 1:
                rows.append((number, text))
    else:
        rows = []
    return {i: n.strip().lower().replace(" ", "_") for i, n in rows}


def _picture(image: Any, where: str) -> U8:
    pixels = np.asarray(image.convert("RGB")) if hasattr(image, "convert") else _array(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DataError(f"{where}: the image must have 1 or 3 channels, its shape is {pixels.shape}")
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(f"{where}: a float image must lie in 0..1: return it without normalisation")
        pixels = np.rint(pixels * 255)
    elif pixels.dtype != np.uint8:
        raise DataError(f"{where}: the image must be uint8 or float in 0..1, it is {pixels.dtype}")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), np.uint8)


def _array(value: Any) -> npt.NDArray[Any]:
    # tensors are told by their methods: this module must not import torch for a data set that does not use it
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
