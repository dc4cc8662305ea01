"""What a data set's YAML may say, and the catalog of those that come with Segue (``segue/data/catalog``).

The same schema is read from a user's folder as ``dataset.yaml``::

    name: yard
    classes: [{name: road, color: [128, 64, 128], id: 1}, {name: grass, color: [0, 200, 0], id: 2}]   # or space: NAME
    image: "images/{split}/{key}.jpg"
    labels:
      - path: "labels/{split}/{key}.png"
        ids: {1: road, 2: grass, 7: null}     # or trainid, or labelid (the ids of the space, the default)
    splits: {train: {}, val: {}}

Nothing here imports torch, opens an image or executes anything from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from segue.data.errors import DataError
from segue.data.store import Store, find_archive
from segue.labels import LabelError, LabelSpace, load_space, nearest, space_from_dict
from segue.settings import Settings, explain

FILE = "dataset.yaml"


class LabelFiles(Settings):
    """One kind of label file."""

    path: str | tuple[str, ...]
    """Path pattern with the same ``{fields}`` as ``image``, or alternatives of which the first that matches counts."""
    ids: str | dict[int, str | None] = "labelid"
    """``trainid``: 0 .. C-1. ``labelid``: the ids of the space. Or a map, file id -> class name (null = ignore)."""
    ignore: tuple[NonNegativeInt, ...] = ()
    """Further file ids that carry no class; 255 always is one. Any other id in a file is an error."""
    channel: int | None = Field(None, ge=0, le=3)
    """Channel that holds the ids in a colour file: 0 red, 1 green, 2 blue, 3 alpha."""
    own_size: bool = False
    """The labels may have another resolution than their images: scores are at the label's, training looks it up."""
    exclude: tuple[str, ...] = ()
    """Shell patterns on ids: files that match ``path`` but are something else (``segue data check`` skips them)."""

    @field_validator("ids", mode="before")
    @classmethod
    def _ids(cls, value: Any) -> Any:
        if value in ("trainid", "labelid"):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"labels.ids: must be 'trainid', 'labelid' or a map of file id to class, it is {value!r}")
        for key, name in value.items():
            if not isinstance(key, int) or not (name is None or isinstance(name, str)):
                raise ValueError(f"labels.ids: each line must be 'number: class' or 'number: null', not {key}: {name}")
        return value

    def names(self, native: LabelSpace) -> dict[int, str | None]:
        """File id -> class name of the native space, None where ignored."""
        table: dict[int, str | None] = dict.fromkeys(self.ignore)
        if self.ids == "trainid":
            table.update(enumerate(native.classes))
        elif isinstance(self.ids, str):
            table.update(zip(native.ids, native.classes, strict=True))
        else:
            table.update(self.ids)
        for name in table.values():
            if name is not None:
                native.index(name)
        return table


class Split(Settings):
    """One split; what is left out is taken from the data set."""

    folder: str | None = None
    """What ``{split}`` stands for in the patterns. Default: the split's own name."""
    image: str | tuple[str, ...] | None = None
    labels: tuple[LabelFiles, ...] | None = None
    list: str | tuple[str, ...] | None = None
    """Text file that names the images of the split (or alternatives of which the first that exists counts): a line
    holds an image, by id or path, and perhaps its label. ``{split}`` stands for ``folder`` here too."""
    index: str | None = None
    """JSON file that names them, in the form of :mod:`segue.data.ifn_index`; used where it is there."""
    include: tuple[str, ...] = ()
    """Shell patterns on image ids (``0006R0_*``): keep what matches one of them."""
    exclude: tuple[str, ...] = ()
    every: PositiveInt | None = None
    """Keep every n-th image of the sorted list (the first, the n+1-th, ...)."""
    except_every: PositiveInt | None = None
    """Keep what ``every`` with the same number leaves out."""


class ClassRow(Settings):
    """A class of a data set that brings its own label space."""

    name: str
    color: tuple[int, int, int]
    id: NonNegativeInt | None = None


class DatasetSpec(Settings):
    """The whole of a data set's YAML."""

    name: str
    space: str | None = None
    """Name of a label space that comes with Segue. Give this or ``classes``."""
    classes: tuple[ClassRow, ...] | None = None
    maps: dict[str, dict[str, str | None]] = Field(default_factory=dict)
    """For a label space to train in: own class name -> its class (null = ignore); equal names need no line."""
    env: str | None = None
    """Environment variable that holds the root, for example ``CITYSCAPES_DATASET``."""
    folders: tuple[str, ...] = ()
    """Other usual names of the root folder."""
    image: str | tuple[str, ...]
    labels: tuple[LabelFiles, ...] = ()
    splits: dict[str, Split]

    @model_validator(mode="after")
    def _one_space(self) -> DatasetSpec:
        if (self.space is None) == (self.classes is None):
            raise ValueError("give either 'space' (a name) or 'classes' (a list)")
        if not self.splits:
            raise ValueError("splits: name at least one, for example {train: {}}")
        return self

    def native(self) -> LabelSpace:
        """The label space of the files."""
        if self.space is not None:
            return load_space(self.space)
        rows = [
            {"name": c.name, "color": c.color, "id": i if c.id is None else c.id}
            for i, c in enumerate(self.classes or ())
        ]
        return space_from_dict({"name": self.name, "classes": rows})

    def onto(self, space: LabelSpace) -> LabelSpace:
        """``space`` with the map that this data set's own YAML declares for it, if any."""
        if space.name not in self.maps:
            return space
        known = self.native().classes
        for own, target in self.maps[space.name].items():
            if own not in known:
                raise LabelError(f"maps.{space.name}: no class {own!r} in the data{nearest(own, known)}")
            if target is not None:
                space.index(target)
        return replace(space, maps={**space.maps, self.native().name: self.maps[space.name]})

    def split(self, name: str) -> Split:
        """A split with every default filled in; ``DataError`` with the nearest name when there is none."""
        if name not in self.splits:
            raise DataError(f"data set {self.name!r} has no split {name!r}{nearest(name, list(self.splits))}")
        split = self.splits[name]
        return split.model_copy(
            update={
                "folder": name if split.folder is None else split.folder,
                "image": self.image if split.image is None else split.image,
                "labels": self.labels if split.labels is None else split.labels,
            }
        )


def catalog_names() -> list[str]:
    """Data sets that come with Segue."""
    folder = resources.files("segue.data").joinpath("catalog")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load(name: str) -> DatasetSpec:
    """A data set of the catalog by name."""
    if name not in catalog_names():
        raise DataError(
            f"unknown data set {name!r}{nearest(name, catalog_names())}; for your own data give a folder with a {FILE}"
        )
    text = resources.files("segue.data").joinpath("catalog").joinpath(f"{name}.yaml").read_text("utf-8")
    return parse(text, f"{name}.yaml")


def load_file(path: Path) -> DatasetSpec:
    """A user's ``dataset.yaml``; ``DataError`` names the file, the key and what is wrong, all faults at once."""
    try:
        return parse(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file (UTF-8)") from error


def load_own(place: Path) -> DatasetSpec | None:
    """The ``dataset.yaml`` in a folder, an archive or a folder of an archive; None where there is none."""
    if (place / FILE).is_file():
        return load_file(place / FILE)
    if place.is_dir() or find_archive(place) is None:
        return None
    store = Store(place)
    if not store.has(FILE):
        return None
    try:
        return parse(store.read(FILE).decode("utf-8"), store.describe(FILE))
    except UnicodeDecodeError as error:
        raise DataError(f"{store.describe(FILE)} is not a text file (UTF-8)") from error


def parse(text: str, where: str) -> DatasetSpec:
    """YAML text to a data set's description; ``where`` names the file in messages."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise DataError(f"{where} must hold keys such as name, image, labels, splits; it holds {type(data).__name__}")
    try:
        spec = DatasetSpec.model_validate(data)
        native = spec.native()
        for files in (f for s in spec.splits for f in spec.split(s).labels or ()):
            files.names(native)
    except ValidationError as error:
        raise DataError("\n".join(f"{where}: {line}" for line in explain(error, DatasetSpec))) from error
    except LabelError as error:
        raise DataError(f"{where}: {error}") from error
    return spec
