"""What a round of buying leaves: a folder that can be moved, of files that other programs can read.

| file | what |
|---|---|
| ``round.json`` | :class:`RoundInfo`; written last, without it nothing has been chosen |
| ``selection.jsonl`` | a :class:`Row` for each bought region, in the order of buying |
| ``asked/<image>.png`` | 16 bits: 0, or ``part`` of the region that a pixel belongs to; as large as the image's file |
| ``guess/<image>.png`` | 8 bits: the train ids that the model predicts, to begin labelling with; may be absent |
| ``answers/`` | labels of these regions, by people or from the truth (:class:`segue.data.label_folder.LabelFolder`) |
| ``labels/`` | all answers up to this round, as the training of this round reads them |
| ``tables/`` | statistics of regions (:class:`segue.acquire.RegionTable`); only to choose, may be deleted |

File names follow from the image's id (:func:`segue.files.file_of`). In answers 254 (:data:`VOID`) is a pixel that has
been looked at and belongs to no class, 255 one without an answer; in ``labels`` both are 255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from segue.data.images import read_ids, write_image
from segue.data.label_folder import LabelFolder
from segue.errors import UserError
from segue.files import file_of, read_json, remove, write_json, write_text
from segue.labels import IGNORE, U8, UNKNOWN, LabelSpace, space_from_dict
from segue.settings import Settings

INFO, SELECTION = "round.json", "selection.jsonl"
FORMAT = "segue-round-1"
VOID = UNKNOWN
"""In answers: looked at, and of no class."""
COMPLETE = 0.95
"""A region is answered when so much of it is: brushes leave gaps at borders, which stay without a label."""

U16 = npt.NDArray[np.uint16]


class StateError(UserError):
    """A round that is damaged or not there."""


class Row(Settings):
    """One bought region."""

    image: str
    region: int
    """Id within the partition that it was chosen from."""
    part: int
    """1 …, its number among this round's regions of the image: the value of its pixels in ``asked``."""
    area_px: int
    ignored_px: int
    predicted: int
    """Train id that the model predicts for it, 255 where none chose."""
    clicks: int
    score: float | None = None
    """How much it was wanted; None when the acquisition has an order but no score."""
    statistics: dict[str, float | None] = Field(default_factory=dict)
    """Scalar statistics that the acquisition read."""


class RoundInfo(Settings):
    """``round.json``."""

    format: str = FORMAT
    group: str
    """Name of the stage that buys."""
    round: int
    """1, 2, …"""
    data: str
    """``NAME:split`` of the pool in the recipe."""
    split: str
    labels: dict[str, Any]
    """Label space (:meth:`segue.labels.LabelSpace.to_dict`)."""
    annotator: Literal["truth", "people"]
    acquisition: dict[str, Any]
    partition: dict[str, Any]
    model: str
    """Whose predictions chose: a stage, with its iteration, or a file."""
    seed: int
    pool_px: int
    """Pixels that could be bought in the whole pool before any round."""
    budget_px: int
    labelled_px: int
    """Pixels bought, without ignored ones."""
    ignored_px: int
    regions: int
    images: int
    clicks: int
    minutes: float
    skipped: dict[str, str] = Field(default_factory=dict)
    """Classes whose density could not be estimated, and why."""
    closed: bool = False
    """Training may begin although regions are without an answer."""


class Round:
    """A finished choice; ``StateError`` when ``folder`` holds none, or a damaged one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / INFO).is_file():
            raise StateError(f"{folder} holds no round of buying (no {INFO} there)")
        try:
            self.info = RoundInfo.model_validate(read_json(folder / INFO))
            lines = (folder / SELECTION).read_text("utf-8").splitlines()
            self.rows = [Row.model_validate_json(line) for line in lines]
        except (OSError, ValueError, ValidationError) as error:
            raise StateError(
                f"the round in {folder} is damaged ({type(error).__name__}): restore the folder"
            ) from error
        if len(self.rows) != self.info.regions:
            raise StateError(f"the round in {folder} is damaged: {SELECTION} is not of {self.info.regions} regions")

    @cached_property
    def labels(self) -> LabelSpace:
        """Classes to label with."""
        return space_from_dict(self.info.labels)

    @cached_property
    def by_image(self) -> dict[str, list[Row]]:
        """Rows of each image, by ``part``; images sorted."""
        found: dict[str, list[Row]] = {}
        for row in sorted(self.rows, key=lambda r: (r.image, r.part)):
            found.setdefault(row.image, []).append(row)
        return found

    def asked(self, image_id: str) -> U16:
        """(H, W) ``part`` of the bought region, else 0; ``DataError`` when the file is damaged or gone."""
        return np.asarray(read_ids(self.folder / "asked" / f"{file_of(image_id)}.png"), np.uint16)

    def guess(self, image_id: str) -> U8 | None:
        """(H, W) predicted train ids, where they were kept."""
        path = self.folder / "guess" / f"{file_of(image_id)}.png"
        return np.asarray(read_ids(path), np.uint8) if path.is_file() else None

    def answers(self) -> LabelFolder:
        """What has been answered so far."""
        return LabelFolder(self.folder / "answers", self.labels, self.info.split)

    def missing(self) -> list[Row]:
        """Regions without a whole answer, in order of image and part."""
        answers, out = self.answers(), []
        held = set(answers.ids)
        for image, rows in self.by_image.items():
            if image not in held:
                out += rows
                continue
            asked = self.asked(image)
            open_px = np.bincount(asked[answers.read(image) == IGNORE], minlength=len(rows) + 1)
            out += [row for row in rows if open_px[row.part] > (1 - COMPLETE) * row.area_px]
        return out

    def close(self, closed: bool = True) -> None:
        """Let training begin with the answers that there are, or wait for all again."""
        self.info = self.info.model_copy(update={"closed": closed})
        write_json(self.folder / INFO, self.info.model_dump())


class Asked(Mapping[str, U16]):
    """Image to (H, W) map of the ``part`` of its bought regions, the first is 1, else 0; made when asked for.

    ``regions``: the region ids (H, W) of an image in which some ids are bought. ``bought``: ids in the order of parts.
    """

    def __init__(
        self,
        regions: Callable[[str, Sequence[int]], npt.NDArray[np.integer]],
        bought: Mapping[str, Sequence[int]],
    ) -> None:
        self._regions = regions
        self._bought = bought

    def __getitem__(self, image_id: str) -> U16:
        bought = np.asarray(self._bought[image_id])
        found = self._regions(image_id, self._bought[image_id])
        rising = np.argsort(bought)
        place = np.searchsorted(bought[rising], found).clip(max=len(bought) - 1)
        part = np.where(bought[rising][place] == found, rising[place] + 1, 0)
        return part.astype(np.uint16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bought)

    def __len__(self) -> int:
        return len(self._bought)


def write_round(folder: Path, info: RoundInfo, rows: Sequence[Row], masks: Mapping[str, U16]) -> Round:
    """Store a choice: ``masks`` are the ``asked`` maps of its images."""
    remove(folder / INFO)
    remove(folder / "asked")
    for image, mask in masks.items():
        write_image(folder / "asked" / f"{file_of(image)}.png", mask)
    write_text(folder / SELECTION, "".join(row.model_dump_json() + "\n" for row in rows))
    write_json(folder / INFO, info.model_dump())
    return Round(folder)


def rounds_of(folder: Path) -> list[Round]:
    """All rounds of one group (``annotate/<group>``), first to last; a choice that was not finished is none."""
    found = [Round(p.parent) for p in folder.glob(f"round_*/{INFO}")]
    return sorted(found, key=lambda r: r.info.round)


def write_labels(rounds: Iterable[Round], folder: Path) -> None:
    """The union of all answers as training reads them; a pixel that two rounds answered is as the later says."""
    rounds = list(rounds)
    merged: dict[str, list[LabelFolder]] = {}
    for answers in (r.answers() for r in rounds):
        for image in answers.ids:
            merged.setdefault(image, []).append(answers)
    remove(folder)
    out = LabelFolder(folder, rounds[0].labels, rounds[0].info.split)
    for image, given in merged.items():
        label = given[0].read(image).copy()
        for later in given[1:]:
            newer = later.read(image)
            label[newer != IGNORE] = newer[newer != IGNORE]
        label[label == VOID] = IGNORE
        if (label != IGNORE).any():
            out.put(image, label)
    out.save({"rounds": [r.info.round for r in rounds]})
