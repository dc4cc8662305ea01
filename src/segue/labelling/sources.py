"""Which reader a file or folder needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from segue.data.store import MAX_MEMBER_BYTES, Store
from segue.labelling import cvat, label_studio, png
from segue.labelling.items import Batch, Target
from segue.labelling.job import FORMAT, JOB, LabellingError
from segue.labels import nearest
from segue.settings import Settings

MARKS = "segue-marks-1"


class Mark(Settings):
    """A region whose answer is wrong."""

    round: int
    image: str
    part: int
    note: str = ""


class Marks(Settings):
    """``marks.json`` of a review page."""

    format: str
    group: str
    marks: tuple[Mark, ...]


class Reader(NamedTuple):
    """How a folder or archive is recognised and read."""

    fits: Callable[[Store], bool]
    read: Callable[[Store, Target], Batch]


READERS = {
    "cvat": Reader(cvat.fits, cvat.read),
    "png": Reader(png.fits, png.read),
    "label-studio": Reader(label_studio.fits, label_studio.read),
}
"""In the order in which they are tried."""


def open_source(path: Path, tool: str, target: Target) -> Batch | Marks:
    """The labels, or marks, in a JSON file, folder or archive; ``LabellingError`` says what it holds instead.

    Archives are read in place, nothing of them is written to disk. ``tool``: a key of ``READERS``, or ``auto``.
    """
    if tool not in ("auto", *READERS):
        raise LabellingError(f"there is no labelling format {tool!r}{nearest(tool, ['auto', *READERS])}")
    if path.is_file() and path.suffix.lower() == ".json" and tool in ("auto", "label-studio"):
        return _json(path, target)
    store = Store(path)
    for name, reader in READERS.items():
        if tool == name or (tool == "auto" and reader.fits(store)):
            return reader.read(store, target)
    held = ", ".join(store.top()[:8])
    raise LabellingError(
        f"{path} holds no labels that can be read ({held or 'nothing'}): give what the tool exported (Label Studio: "
        f"JSON; CVAT: 'Segmentation mask 1.1'; PNG: the folder of the job)"
    )


def _json(path: Path, target: Target) -> Batch | Marks:
    if path.stat().st_size > MAX_MEMBER_BYTES:
        raise LabellingError(f"{path} is larger than {MAX_MEMBER_BYTES} bytes: export fewer tasks at a time")
    content = label_studio.parse(path.read_bytes(), str(path))
    kind = content.get("format") if isinstance(content, dict) else None
    if kind == MARKS:
        return _marks(content, path)
    if kind == FORMAT:
        raise LabellingError(f"{path} describes a job: give what the tool exported, or for PNGs the folder of {JOB}")
    return label_studio.read_tasks(content, str(path), target)


def _marks(content: dict[str, Any], path: Path) -> Marks:
    try:
        return Marks.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise LabellingError(
            f"{path} is damaged: {where}: {fault['msg']} ({json.dumps(fault['input'])[:80]})"
        ) from error
