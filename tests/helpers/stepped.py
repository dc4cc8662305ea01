"""Labels with known classes in a folder, and a task that shares the classes out by what the images show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from helpers.miniatures import picture, save
from segue.config import DatasetConfig
from segue.data.dataset import Dataset, open_dataset
from segue.tasks import Task

SIZE = (8, 12)

CONTENT: dict[str, Any] = {
    "name": "content",
    "labels": "voc21",
    "background": "background",
    "classes": [
        ["person", "dog", "cat", "cow", "chair", "sheep", "horse"],
        ["sofa", "tvmonitor", "pottedplant", "diningtable"],
        ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus"],
        ["car", "motorbike", "train"],
    ],
    "protocol": "overlapped",
}


def folder(root: Path, space: str, labels: Sequence[Any], ignore: Sequence[int] = ()) -> None:
    """A folder whose n-th label is the n-th array."""
    for n, label in enumerate(labels):
        save(root / f"images/train/{n:02d}.png", picture(n, label.shape))
        save(root / f"labels/train/{n:02d}.png", label)
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(
        f"name: things\nspace: {space}\nimage: 'images/{{split}}/{{key}}.png'\n"
        f"labels: [{{path: 'labels/{{split}}/{{key}}.png', ignore: {list(ignore)}}}]\nsplits: {{train: {{}}}}\n"
    )


@cache
def voc_labels() -> list[Any]:
    """60 labels of VOC with up to three classes beside background and void; the first has none."""
    rng = np.random.default_rng(7)
    numbers = (0, *rng.integers(1, 4, 59))
    return [rng.choice([0, *rng.integers(1, 21, number), 255], SIZE).astype(np.uint8) for number in numbers]


def open_things(root: Path, task: Task) -> tuple[Dataset, DatasetConfig]:
    """What :func:`folder` wrote, in the full space of a task."""
    config = DatasetConfig(dataset=str(root))
    return open_dataset("things", config, "train", task.space(None)), config
