"""Plain pictures: ``images/``, ``asked/`` (16 bits: number of the region), ``labels/`` to paint over, ``job.json``.

Labels are PNGs with a palette: value = train id, 254 void, 255 no answer. They come back so, as grey numbers, or in the
classes' colours (an editor may turn a palette into colours, or put it in another order).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pydantic import ValidationError

from segue.acquire.state import Round
from segue.data.images import write_image
from segue.data.store import File, Store
from segue.labelling.items import Batch, Item, Target, by_train_id, colored, folder_of, members
from segue.labelling.job import BLACK, JOB, Job, LabellingError, Picture, colors
from segue.labels import IGNORE
from segue.settings import check

LABELS = "labels/"
TOOL = "png"


class Writer:
    """Writes the pictures of a job."""

    def __init__(self, folder: Path, chosen: Round, url: str) -> None:
        self._folder = folder
        palette = np.zeros((256, 3), np.uint8)
        for key, color in colors(chosen.labels).items():
            palette[key] = color
        self._palette = palette.ravel().tolist()
        (folder / LABELS).mkdir()

    def add(self, picture: Picture) -> None:
        """Three files."""
        write_image(self._folder / "images" / f"{picture.name}.jpg", picture.shown)
        write_image(self._folder / "asked" / f"{picture.name}.png", picture.asked)
        label = Image.fromarray(picture.label)
        label.putpalette(self._palette)
        label.save(self._folder / LABELS / f"{picture.name}.png")

    def close(self) -> None:
        """Nothing more."""


def fits(store: Store) -> bool:
    """Whether this is such a folder or archive."""
    paths = members(store)
    return folder_of(paths, LABELS) is not None and folder_of(paths, JOB) is not None


def read(store: Store, target: Target) -> Batch:
    """The labels of a folder or archive; ``LabellingError`` without a ``job.json`` of these rounds."""
    paths = members(store)
    start = folder_of(paths, JOB)
    if start is None:
        raise LabellingError(f"{store.root} has no {JOB}: give the folder of a job of PNGs, as a whole")
    job = _job(store, f"{start}{JOB}")
    number = target.round(job.group, job.round, job.selection, str(File(store, f"{start}{JOB}")))
    shades = {color: key for key, color in colors(target.labels).items()} | {BLACK: IGNORE}
    grey = by_train_id(target)
    batch = Batch()
    for path in paths:
        if path.startswith(f"{start}{LABELS}") and path.lower().endswith(".png"):
            file = File(store, path)
            label = partial(colored, file, known=shades, grey=grey)
            batch.items.append(Item(str(file), PurePosixPath(path).stem, str(file), label, round=number))
    return batch


def _job(store: Store, path: str) -> Job:
    where = str(File(store, path))
    try:
        job = check(Job, json.loads(store.read(path)), where)
    except (ValueError, ValidationError, RecursionError) as error:
        raise LabellingError(f"{where} is damaged or not the description of a labelling job: {error}") from error
    if job.tool != TOOL:
        raise LabellingError(f"{where} is a job for {job.tool}: give the file that this tool has exported")
    return job
