"""A labelling job of a round: regions, images and proposals in the format of a tool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from segue.acquire.state import Round
from segue.data.dataset import Dataset
from segue.files import replacing, write_json
from segue.labelling import cvat, label_studio, png
from segue.labelling.job import (
    JOB,
    Job,
    JobClass,
    JobImage,
    LabellingError,
    Picture,
    colors,
    names,
    pictures,
    selection_of,
)
from segue.labels import nearest


class Writer(Protocol):
    """Writes the files of one tool."""

    def add(self, picture: Picture) -> None:
        """One image."""

    def close(self) -> None:
        """What comes after the last image."""


TOOLS: dict[str, Callable[[Path, Round, str], Writer]] = {
    "label-studio": label_studio.Writer,
    "cvat": cvat.Writer,
    "png": png.Writer,
}
"""Writer of each tool: made of the folder, the round, and the URL below which a server finds the images."""


def export(
    chosen: Round,
    dataset: Dataset,
    out: Path,
    tool: str,
    *,
    everything: bool = False,
    image_url: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Job:
    """Write a job of the regions without an answer (``everything``: of all) to the new folder ``out``, whole or not.

    ``dataset`` is read at its files' resolution. ``image_url``: where Label Studio finds the images; default its local
    files below the folder that ``out`` lies in. ``LabellingError`` when there is nothing to do or ``out`` is not empty.
    """
    if tool not in TOOLS:
        raise LabellingError(f"there is no labelling format {tool!r}{nearest(tool, list(TOOLS))}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        what = "a labelling job, perhaps with somebody's labels in it" if (out / JOB).is_file() else "something else"
        raise LabellingError(f"{out} already holds {what}: give a new folder")
    rows = [r for image in chosen.by_image.values() for r in image] if everything else chosen.missing()
    if not rows:
        raise LabellingError(
            f"every region of round {chosen.info.round} of {chosen.info.group!r} has its answer: nothing to label "
            f"(--all: all of them again)"
        )
    images: list[JobImage] = []
    total = len({row.image for row in rows})
    url = image_url or f"/data/local-files/?d={out.resolve().name}/images"
    with replacing(out) as folder:
        folder.mkdir()
        writer = TOOLS[tool](folder, chosen, url)
        for done, picture in enumerate(pictures(chosen, dataset, rows), 1):
            writer.add(picture)
            images.append(_image(picture))
            if progress is not None:
                progress(done, total)
        writer.close()
        job = _job(chosen, tool, images)
        write_json(folder / JOB, job.model_dump())
    return job


def _job(chosen: Round, tool: str, images: list[JobImage]) -> Job:
    called, shades = names(chosen.labels), colors(chosen.labels)
    return Job(
        tool=tool,
        group=chosen.info.group,
        round=chosen.info.round,
        selection=selection_of(chosen),
        classes=tuple(JobClass(id=key, name=called[key], color=shades[key]) for key in called),
        images=tuple(images),
    )


def _image(picture: Picture) -> JobImage:
    height, width = picture.asked.shape
    parts = tuple(np.unique(picture.asked[picture.asked > 0]).tolist())
    return JobImage(id=picture.id, name=picture.name, size=(height, width), parts=parts)
