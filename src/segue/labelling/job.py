"""What every tool's labelling job has in common: names, colours, what is asked, and what is proposed.

A job proposes a label in each region that it asks for: what was answered there before, else what the model predicts for
the pixel (:meth:`segue.acquire.state.Round.guess`), else the region's predicted class.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import cv2
import numpy as np

from segue.acquire.state import SELECTION, U16, VOID, Round, Row
from segue.data.dataset import Dataset
from segue.data.label_folder import LabelFolder
from segue.errors import UserError
from segue.labels import IGNORE, U8, LabelSpace
from segue.settings import Settings

FORMAT = "segue-job-1"
JOB = "job.json"
BLACK = (0, 0, 0)
"""Where nothing has been answered."""
OUTLINE = (255, 230, 0)
OUTLINE_PX = 2

Color = tuple[int, int, int]


class LabellingError(UserError):
    """A labelling job that cannot be made or read; the message names file and image."""


class JobClass(Settings):
    """A class to label with."""

    id: int
    """Its value in ``labels/*.png`` of a job of PNGs."""
    name: str
    color: Color


class JobImage(Settings):
    """An image of a job."""

    id: str
    name: str
    """Of its files, without suffix."""
    size: tuple[int, int]
    """Height and width."""
    parts: tuple[int, ...]
    """Regions that are asked for."""


class Job(Settings):
    """``job.json``, written last."""

    format: str = FORMAT
    tool: str
    group: str
    round: int
    selection: str
    """What tells this choice of regions from any other."""
    classes: tuple[JobClass, ...]
    images: tuple[JobImage, ...]


@dataclass(frozen=True)
class Picture:
    """One image of a job, for a writer."""

    id: str
    name: str
    shown: U8
    """(H, W, 3) RGB with the asked regions marked."""
    asked: U16
    """(H, W) ``part`` of the regions that are asked for, else 0."""
    label: U8
    """(H, W) proposed train ids or 254 (void), 255 outside of the asked regions."""


def name_of(image_id: str) -> str:
    """An image's file name in a tool, without suffix: letters that every tool, URL and archive lets pass."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", image_id)
    if plain == image_id and len(plain) <= 100:
        return plain
    return f"{plain[-100:]}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"


def selection_of(chosen: Round) -> str:
    """Eight digits that tell the choice of a round from any other."""
    return f"{zlib.crc32((chosen.folder / SELECTION).read_bytes()):08x}"


def names(space: LabelSpace) -> dict[int, str]:
    """What the classes are called in a tool, and 254, which belongs to no class."""
    void = next(name for n in count() if (name := "void" + "_" * n) not in space.classes)
    return {**dict(enumerate(space.classes)), VOID: void}


def colors(space: LabelSpace) -> dict[int, Color]:
    """A colour for each of :func:`names`, all different and none of them black: the space's own where that is so."""
    out: dict[int, Color] = {}
    spare = (_spare(n) for n in count())
    for key, wanted in [*enumerate(space.colors), (VOID, (255, 255, 255))]:
        taken = {BLACK, *out.values()}
        out[key] = wanted if wanted not in taken else next(c for c in spare if c not in {*taken, *space.colors})
    return out


def guess(chosen: Round, image: str, asked: U16) -> U8:
    """(H, W) train ids that the model gives to ``asked``, 255 elsewhere; ``LabellingError`` where sizes differ."""
    rows = chosen.by_image[image]
    table = np.full(int(asked.max(initial=0)) + 1, IGNORE, np.uint8)
    for row in rows:
        table[row.part : row.part + 1] = row.predicted
    out: U8 = table[asked]
    pixels = chosen.guess(image)
    if pixels is None:
        return out
    if pixels.shape != asked.shape:
        raise LabellingError(f"the round in {chosen.folder} is damaged: guess and asked of {image!r} differ in size")
    known = (asked > 0) & (pixels < len(chosen.labels))
    out[known] = pixels[known]
    return out


def answered(answers: LabelFolder, image: str, size: tuple[int, int]) -> U8:
    """(H, W) answers so far, 255 where there is none; ``LabellingError`` when they are of another size."""
    try:
        label = answers.read(image)
    except KeyError:
        return np.full(size, IGNORE, np.uint8)
    if label.shape != size:
        raise LabellingError(f"{answers.folder} is damaged: the label of {image!r} is not as large as its regions")
    return label


def pictures(chosen: Round, dataset: Dataset, rows: Sequence[Row]) -> Iterator[Picture]:
    """The images of these regions; ``LabellingError`` for one that is gone or has another size than its regions."""
    places = {image: n for n, image in enumerate(dataset.ids)}
    answers = chosen.answers()
    parts: dict[str, list[int]] = {}
    for row in rows:
        parts.setdefault(row.image, []).append(row.part)
    for image, wanted in parts.items():
        if image not in places:
            raise LabellingError(f"image {image!r}, of which regions were chosen, is no longer in {dataset.name!r}")
        asked = chosen.asked(image)
        asked = np.where(np.isin(asked, wanted), asked, 0).astype(np.uint16)
        rgb = dataset.read_sample(places[image], labels=False).image
        if rgb.shape[:2] != asked.shape:
            (h, w), (asked_h, asked_w) = rgb.shape[:2], asked.shape
            raise LabellingError(
                f"image {dataset.describe(places[image])} is {w}x{h} pixels, its chosen regions {asked_w}x{asked_h}: "
                f"the data has changed since the choice"
            )
        label = guess(chosen, image, asked)
        before = answered(answers, image, asked.shape)
        keep = (asked > 0) & (before != IGNORE)
        label[keep] = before[keep]
        yield Picture(image, name_of(image), marked(rgb, asked), asked, label)


def marked(rgb: U8, asked: U16) -> U8:
    """A copy in which all but the asked regions is pale and outlined; their own pixels are as they were."""
    inside = asked > 0
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    out = np.asarray(cv2.addWeighted(rgb, 0.35, grey, 0.3, 0.0), np.uint8)
    side = 2 * OUTLINE_PX + 1
    near = cv2.dilate(inside.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    out[near] = OUTLINE
    out[inside] = rgb[inside]
    return out


def _spare(number: int) -> Color:
    # steps of an odd number through all colours: near neighbours in the list look different
    code = (number + 1) * 0x9E3779 % (1 << 24)
    return code >> 16, code >> 8 & 255, code & 255
