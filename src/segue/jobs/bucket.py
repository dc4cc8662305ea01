"""Buckets of a stream as a run stores them: ``follow/<group>/buckets.json``, the images of each in their order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.config import StageConfig
from segue.data.dataset import Dataset
from segue.data.view import View
from segue.errors import UserError
from segue.files import finite, read_json, write_json

BUCKETS = "buckets.json"
FORMAT = "segue-buckets-1"


@dataclass(frozen=True)
class StreamBucket:
    """``images``: (``NAME:split``, image id) in the order to follow them; their lowest and highest score, or NaN."""

    images: tuple[tuple[str, str], ...]
    low: float
    high: float

    def of(self, text: str) -> list[str]:
        """The ids of one data set's images."""
        return [image_id for name, image_id in self.images if name == text]


def group_of(stage: StageConfig) -> str | None:
    """The name of the buckets that a stage's bucket belongs to; None for a stage that follows no stream."""
    return None if stage.follow is None else stage.follow.group or stage.name


def group_folder(folder: Path, stage: StageConfig) -> Path:
    """Where a run keeps what its stream is made of: ``follow/<group>``."""
    return folder / "follow" / str(group_of(stage))


def write_buckets(folder: Path, buckets: list[StreamBucket], info: dict[str, Any]) -> None:
    """Store the buckets of a group, whole or not at all."""
    rows = [{"low": b.low, "high": b.high, "images": [list(image) for image in b.images]} for b in buckets]
    write_json(folder / BUCKETS, {"format": FORMAT, **info, "buckets": finite(rows)})


def is_cut(folder: Path) -> bool:
    """Whether the buckets of a group are stored."""
    return (folder / BUCKETS).is_file()


def read_bucket(folder: Path, number: int) -> StreamBucket:
    """Bucket ``number`` (from 1) of a group; ``UserError`` when its file is damaged."""
    info = read_info(folder)
    try:
        row = info["buckets"][number - 1]
        images = tuple((str(name), str(image_id)) for name, image_id in row["images"])
        low, high = (math.nan if row[end] is None else float(row[end]) for end in ("low", "high"))
        return StreamBucket(images, low, high)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{folder / BUCKETS} is damaged: delete {folder}, and the stream is cut again") from error


def read_info(folder: Path) -> dict[str, Any]:
    """All that the file of a group's buckets says."""
    try:
        info: dict[str, Any] = {**read_json(folder / BUCKETS)}
        if info["format"] != FORMAT:
            raise ValueError(info["format"])
        return info
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / BUCKETS} is damaged: delete {folder}, and the stream is cut again") from error


def layers_file(folder: Path, number: int) -> Path:
    """Where the layers to train on bucket ``number`` are told."""
    return folder / f"layers_{number}.json"


def read_layers(folder: Path, number: int) -> dict[str, Any]:
    """``layers`` that were chosen, ``distances`` of all, and ``train_only``, the parameters that follow."""
    path = layers_file(folder, number)
    try:
        found: dict[str, Any] = {**read_json(path)}
        return found | {"train_only": tuple(map(str, found["train_only"]))}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: delete it, and the layers are chosen again") from error


def followed(dataset: Dataset, bucket: StreamBucket, text: str) -> View:
    """The images of a data set that a bucket holds, in the bucket's order; ``UserError`` when one is gone."""
    place, wanted = {image_id: index for index, image_id in enumerate(dataset.ids)}, bucket.of(text)
    if gone := [image_id for image_id in wanted if image_id not in place]:
        raise UserError(
            f"{text}: {len(gone)} of {len(wanted)} images of a bucket are there no more, the first is {gone[0]}: put "
            f"them back, or follow the stream in a new run"
        )
    return View(dataset, [place[image_id] for image_id in wanted])
