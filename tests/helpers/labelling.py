"""Images in memory whose content tells their id, a model that reads it, and a process that dies while it writes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from helpers.toys import SPACE
from segue.data.dataset import Dataset
from segue.labels import U8
from segue.models.base import ModelConfig, Output, SegModel
from segue.pseudo_labels import write

STEP = 40
SURE_PX = 26  # columns from the left; the model is less sure of the others


class Flags(Dataset):
    """Images ``n/0``, ``n/1``, … whose red is ``STEP`` times the class that they show, two of a size."""

    def __init__(self, classes: Sequence[int], split: str = "train") -> None:
        super().__init__("flags", SPACE, [f"n/{k}" for k in range(len(classes))], None)
        self.split = split
        self.shown = dict(zip(self.ids, classes, strict=True))
        self.read: list[str] = []

    def size_of(self, image_id: str) -> tuple[int, int]:
        number = int(image_id.rpartition("/")[2])
        return 32 + number // 2, 40 + number // 4

    def _image(self, index: int) -> U8:
        image_id = self.ids[index]
        self.read.append(image_id)
        rows = np.full((*self.size_of(image_id), 3), STEP * self.shown[image_id], np.uint8)
        rows[..., 1] = 255 * (np.arange(rows.shape[1]) < SURE_PX)
        return rows


class Reader(SegModel):
    """Says the class that the red means, the surer the more green there is; counts the images that it saw."""

    multiple = 4

    def __init__(self, classes: int = len(SPACE)) -> None:
        super().__init__(ModelConfig(name="reader"), classes)
        self.seen = 0

    def decode(self, x: Tensor) -> Output:
        self.seen += len(x)
        image = 255 * (x * self.std + self.mean)
        level = torch.arange(self.num_classes).view(1, -1, 1, 1) * STEP
        sureness = 1e-3 * (1 + image[:, 1:2] / 64)
        logits = -sureness * (image[:, :1] - level).square()
        return Output(logits, logits)

    def classifiers(self) -> dict[str, torch.nn.Module]:
        return {}


@contextmanager
def dying(at: int, when: str) -> Iterator[None]:
    """The process ends at the ``at``-th file: with half of it under a temporary name, or right after it is there."""
    real, count = write.replacing, [0]

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        count[0] += 1
        if count[0] == at and when == "half":
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(b"half")
            os._exit(9)
        with real(path) as temporary:
            yield temporary
        if count[0] == at:
            os._exit(9)

    with mock.patch.object(write, "replacing", replacing):
        yield


def killed(work: Callable[[], object], at: int, when: str) -> None:
    """Run ``work`` in a process that dies."""

    def child() -> None:
        with dying(at, when):
            work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 9
