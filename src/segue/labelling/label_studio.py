"""Label Studio: brush tasks with predictions out, its JSON export in.

Facts of the format: https://labelstud.io/tags/brushlabels, https://labelstud.io/guide/predictions and
https://labelstud.io/guide/export. One brush for each class of each region, so that a region that is wrong as a whole is
one click and one key. The asked regions are burned into a copy of the image: a second image cannot be painted on, and
an outline that is a brush of its own would come back as a label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from segue.acquire.state import Round
from segue.data.images import write_image
from segue.data.store import Store
from segue.files import write_text
from segue.labelling.items import Batch, Item, Target, members
from segue.labelling.job import LabellingError, Picture, colors, names, selection_of
from segue.labelling.rle import decode_mask, encode_mask
from segue.labels import IGNORE, U8

TASKS, CONFIG = "tasks.json", "config.xml"
BRUSH, IMAGE = "label", "image"
LABELS = "brushlabels"


class Writer:
    """Writes tasks, labelling interface and images."""

    def __init__(self, folder: Path, chosen: Round, url: str) -> None:
        self._folder, self._round, self._url = folder, chosen, url.rstrip("/")
        self._names = names(chosen.labels)
        self._selection = selection_of(chosen)
        self._tasks: list[dict[str, Any]] = []
        write_text(folder / CONFIG, _config(self._names, colors(chosen.labels)))

    def add(self, picture: Picture) -> None:
        """Image and task."""
        write_image(self._folder / "images" / f"{picture.name}.jpg", picture.shown)
        info = self._round.info
        height, width = picture.asked.shape
        data = {
            IMAGE: f"{self._url}/{quote(picture.name)}.jpg",
            "image_id": picture.id,
            "width": width,
            "height": height,
            "group": info.group,
            "round": info.round,
            "selection": self._selection,
        }
        brushes = [self._brush(picture, part, key) for part, key in _pairs(picture)]
        self._tasks.append({"data": data, "predictions": [{"model_version": info.model, "result": brushes}]})

    def close(self) -> None:
        """The list of tasks."""
        write_text(self._folder / TASKS, json.dumps(self._tasks))

    def _brush(self, picture: Picture, part: int, key: int) -> dict[str, Any]:
        mask = (picture.asked == part) & (picture.label == key)
        height, width = mask.shape
        return {
            "id": f"region{part}_{key}",
            "type": LABELS,
            "from_name": BRUSH,
            "to_name": IMAGE,
            "image_rotation": 0,
            "original_width": width,
            "original_height": height,
            "value": {"format": "rle", "rle": encode_mask(mask), LABELS: [self._names[key]]},
        }


class Annotation(BaseModel):
    """What one person handed in."""

    completed_by: Any = None
    was_cancelled: bool = False
    created_at: str = ""
    updated_at: str = ""
    result: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def who(self) -> str:
        """Person, as the export names them; "" when it does not."""
        given = self.completed_by
        if isinstance(given, dict):
            given = given.get("email") or given.get("id")
        return "" if given is None else str(given)


class Task(BaseModel):
    """A task of the export; predictions and drafts are nobody's answer."""

    id: Any = None
    data: dict[str, Any]
    annotations: list[Annotation] | None = None


def fits(store: Store) -> bool:
    """Whether a folder or archive holds JSON files that may be an export."""
    return any(path.lower().endswith(".json") for path in members(store))


def read(store: Store, target: Target) -> Batch:
    """The exports in a folder or archive."""
    batch = Batch()
    for path in members(store):
        if not path.lower().endswith(".json"):
            continue
        where = store.describe(path)
        found = read_tasks(parse(store.read(path), where), where, target)
        batch.items += found.items
        batch.faults += found.faults
        batch.notes += found.notes
    return batch


def parse(data: bytes, where: str) -> Any:
    """Plain containers of a JSON file; ``LabellingError`` when it is damaged."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LabellingError(f"{where} is not JSON, or damaged ({error}): export again") from error


def read_tasks(content: Any, where: str, target: Target) -> Batch:
    """The annotations of an export; ``LabellingError`` when it is none."""
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise LabellingError(f"{where} is no list of tasks: export from Label Studio as JSON")
    if not any("annotations" in row for row in content):
        raise LabellingError(
            f"{where} has no annotations at all: give what Label Studio exports (as JSON, not JSON-MIN), not {TASKS}"
        )
    batch = Batch()
    none = cancelled = 0
    for number, row in enumerate(content, 1):
        try:
            task = Task.model_validate(row)
            here = f"{where}, task {number if task.id is None else task.id}"
            handed_in = [a for a in task.annotations or () if not a.was_cancelled]
            cancelled += len(task.annotations or ()) - len(handed_in)
            none += not task.annotations
            batch.items += _items(task, handed_in, here, target)
        except ValidationError as error:
            fault = error.errors()[0]
            batch.faults.append(
                f"{where}, task {number}: {'.'.join(map(str, fault['loc']))} is damaged ({fault['msg']}): export again"
            )
        except LabellingError as error:
            batch.faults.append(str(error))
    if none:
        batch.notes.append(f"{where}: {none} of {len(content)} tasks have no annotation yet")
    if cancelled:
        batch.notes.append(f"{where}: {cancelled} annotations were cancelled or skipped, they do not count")
    return batch


def _items(task: Task, handed_in: list[Annotation], where: str, target: Target) -> Iterator[Item]:
    data = task.data
    number = target.round(data.get("group"), data.get("round"), data.get("selection"), where) if handed_in else None
    given = data.get("image_id")
    image = given if isinstance(given, str) else _name_in(data.get(IMAGE))
    for n, a in enumerate(handed_in):
        here = f"{where} by {a.who or 'nobody named'}"
        label = partial(_label, a.result, where=here, target=target)
        yield Item(here, image, a.who or f"{where} {n}", label, a.updated_at or a.created_at, looked=True, round=number)


def _name_in(url: Any) -> str:
    """File name in an image's address; a local file stands behind ``?d=``."""
    address = urlsplit(url) if isinstance(url, str) else urlsplit("")
    return PurePosixPath(unquote(address.query.removeprefix("d=") or address.path)).stem


def _label(result: list[dict[str, Any]], size: tuple[int, int], *, where: str, target: Target) -> U8:
    out = np.full(size, IGNORE, np.uint8)
    for brush in result:
        value = brush.get("value")
        if not isinstance(value, dict):
            continue
        if "rle" not in value:
            if str(brush.get("type")).endswith("labels"):
                raise LabellingError(f"{where} holds a result of type {brush['type']!r}: label with the brush alone")
            continue
        _check(brush, size, where)
        called = value.get(LABELS) or value.get("labels") or ()
        if not isinstance(called, list) or len(called) != 1:
            raise LabellingError(f"{where}: a brush has {called!r} for its label, it must be one class")
        key = target.class_id(str(called[0]), where)
        try:
            out[decode_mask(value["rle"], size)] = key
        except LabellingError as error:
            raise LabellingError(f"{where}: {error}") from error
    return out


def _check(brush: Mapping[str, Any], size: tuple[int, int], where: str) -> None:
    shape = brush.get("original_height"), brush.get("original_width")
    if shape != size:
        raise LabellingError(f"{where}: a brush of a {shape[1]}x{shape[0]} image, this one is {size[1]}x{size[0]}")
    if brush.get("image_rotation"):
        raise LabellingError(f"{where}: the image was turned by {brush['image_rotation']} degrees; label it upright")


def _pairs(picture: Picture) -> list[tuple[int, int]]:
    inside = picture.label != IGNORE
    found = np.unique(picture.asked[inside].astype(np.int64) << 8 | picture.label[inside])
    return [(pair >> 8, pair & 255) for pair in found.tolist()]


def _config(called: Mapping[int, str], shades: Mapping[int, tuple[int, int, int]]) -> str:
    view = ElementTree.Element("View")
    hint = "Label what is bright, whole regions up to their yellow outline. Pale parts are not asked for."
    ElementTree.SubElement(view, "Header", value=hint)
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true")
    brushes = ElementTree.SubElement(view, "BrushLabels", name=BRUSH, toName=IMAGE)
    for key, name in called.items():
        ElementTree.SubElement(brushes, "Label", value=name, background="#{:02x}{:02x}{:02x}".format(*shades[key]))
    ElementTree.indent(view)
    return ElementTree.tostring(view, "unicode") + "\n"
