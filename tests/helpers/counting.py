"""Small labelled folders, their class counts, and which labels were read for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.miniatures import SIZE, own, save
from segue.config import DatasetConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.statistics import class_pixels


def opened(root: Path, **settings: object) -> tuple[Dataset, DatasetConfig]:
    config = DatasetConfig.model_validate({"dataset": str(root), **settings})
    return open_dataset("yard", config, "train"), config


def counted(root: Path, said: list[str] | None = None, **settings: object) -> list[list[int]]:
    return class_pixels(*opened(root, **settings), say=([] if said is None else said).append).tolist()


def labels(root: Path, *road_rows: int) -> Path:
    """A yard whose n-th label has ``road_rows[n]`` rows of road above grass, and one ignored pixel."""
    own(root, len(road_rows))
    for n, rows in enumerate(road_rows):
        label = np.full(SIZE, 2, np.uint8)
        label[:rows] = 1
        label[-1, -1] = 7
        save(root / f"labels/train/{n}.png", label)
    return root


def expected(*road_rows: int) -> list[list[int]]:
    height, width = SIZE
    return [[r * width - (r == height), max(0, (height - r) * width - 1)] for r in road_rows]


def by_hand(dataset: Dataset) -> list[list[int]]:
    return [[int((dataset.read_label(i) == c).sum()) for c in range(len(dataset.space))] for i in range(len(dataset))]
