"""CVAT's "Segmentation mask 1.1": a Pascal VOC archive of class colours and of object colours.

Facts of the format: https://docs.cvat.ai/docs/dataset_management/formats/format-smask. ``labelmap.txt`` has lines
``name:r,g,b:parts:actions`` with the background first and black; masks have three channels, or one with the line's
number. Colours of objects must be Pascal VOC's, each object has one class.
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from segue.acquire.state import Round
from segue.data.images import encode
from segue.data.store import File, Store
from segue.files import write_json
from segue.labelling.items import Batch, Item, Target, colored, folder_of, members
from segue.labelling.job import BLACK, Color, LabellingError, Picture, colors, names
from segue.labels import IGNORE, U8, nearest

ARCHIVE, LABELS = "annotations.zip", "labels.json"
CLASS, OBJECT, LABEL_MAP = "SegmentationClass/", "SegmentationObject/", "labelmap.txt"
BACKGROUND = "background"
OBJECTS = 255
"""Colours of objects in an image that CVAT knows."""


class Writer:
    """Writes the archive, and the labels for CVAT's "Raw" editor."""

    def __init__(self, folder: Path, chosen: Round, url: str) -> None:
        self._names, self._colors = names(chosen.labels), colors(chosen.labels)
        bad = [n for n in self._names.values() if ":" in n or "\n" in n or n.startswith("#") or n == BACKGROUND]
        if bad:
            raise LabellingError(f"CVAT's label map cannot hold a class {bad[0]!r}: choose another --format")
        write_json(
            folder / LABELS,
            [{"name": n, "color": "#{:02x}{:02x}{:02x}".format(*self._colors[k])} for k, n in self._names.items()],
        )
        self._palette = np.zeros((256, 3), np.uint8)
        for key, color in self._colors.items():
            self._palette[key] = color
        self._objects = np.array([_voc_color(n) for n in range(OBJECTS + 1)], np.uint8)
        self._listed: list[str] = []
        self._zip = zipfile.ZipFile(folder / ARCHIVE, "w")

    def add(self, picture: Picture) -> None:
        """Image, classes, objects."""
        self._put(f"JPEGImages/{picture.name}.jpg", encode(picture.shown, ".jpg"))
        self._put(f"{CLASS}{picture.name}.png", encode(self._palette[picture.label], ".png"))
        self._put(f"{OBJECT}{picture.name}.png", encode(self._objects[_objects(picture)], ".png"))
        self._listed.append(f"{picture.name}\n")

    def close(self) -> None:
        """List of images and classes."""
        rows = [(BACKGROUND, BLACK), *((name, self._colors[key]) for key, name in self._names.items())]
        lines = ["# label:color_rgb:parts:actions\n", *(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in rows)]
        self._put("ImageSets/Segmentation/default.txt", "".join(self._listed).encode())
        self._put(LABEL_MAP, "".join(lines).encode())
        self._zip.close()

    def _put(self, name: str, data: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(name), data)


def fits(store: Store) -> bool:
    """Whether this is such a folder or archive."""
    return folder_of(members(store), CLASS) is not None


def read(store: Store, target: Target) -> Batch:
    """The masks of a folder or archive; ``LabellingError`` when there are none or the label map is damaged."""
    paths = members(store)
    start = folder_of(paths, CLASS)
    if start is None:
        raise LabellingError(f"{store.root} has no {CLASS}: export from CVAT as 'Segmentation mask 1.1'")
    table = _label_map(store, f"{start}{LABEL_MAP}") if f"{start}{LABEL_MAP}" in paths else _own(target)
    batch = Batch()
    for path in paths:
        if path.startswith(f"{start}{CLASS}") and path.lower().endswith(".png"):
            file = File(store, path)
            label = partial(_masks, file, table=table, target=target)
            batch.items.append(Item(str(file), PurePosixPath(path).stem, str(file), label))
    return batch


def _masks(file: File, size: tuple[int, int], *, table: dict[str, Color], target: Target) -> U8:
    known = {table[name]: key for name, key in target.classes.items() if name in table}
    known |= {BLACK: IGNORE, table.get(BACKGROUND, BLACK): IGNORE}
    foreign = {
        color: f"{color}, label {name!r}{nearest(name, list(target.classes))}"
        for name, color in table.items()
        if color not in known
    }
    grey = [known.get(color, -1) for color in table.values()]
    return colored(file, size, known, grey, foreign)


def _own(target: Target) -> dict[str, Color]:
    shades = colors(target.labels)
    return {BACKGROUND: BLACK} | {name: shades[key] for name, key in target.classes.items()}


def _label_map(store: Store, path: str) -> dict[str, Color]:
    where = str(File(store, path))
    out: dict[str, Color] = {}
    try:
        for line in store.read(path).decode("utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                name, color = line.split(":")[:2]
                red, green, blue = (int(x) for x in color.split(","))
                out[name] = (red, green, blue)
    except ValueError as error:
        raise LabellingError(f"{where} is damaged: a line is not 'name:r,g,b::'") from error
    if len(set(out.values())) < len(out):
        raise LabellingError(f"{where}: labels share a colour, give them different ones in CVAT and export again")
    return out


def _objects(picture: Picture) -> U8:
    """Each class of each region a number; where they are too many, each class."""
    pairs = picture.asked.astype(np.int32) << 8 | picture.label
    pairs[picture.label == IGNORE] = 0
    found = np.unique(pairs[pairs > 0])
    if found.size > OBJECTS:
        pairs = np.where(pairs > 0, picture.label.astype(np.int32) + 1, 0)
        found = np.unique(pairs[pairs > 0])
    out: U8 = np.where(pairs > 0, np.searchsorted(found, pairs) + 1, 0).astype(np.uint8)
    return out


def _voc_color(number: int) -> Color:
    """Pascal VOC's colour map: bits 0, 1, 2 of the number, then 3, 4, 5, …, from the top bit of the channels down."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]
