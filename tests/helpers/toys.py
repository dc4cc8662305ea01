"""Small networks whose answer depends on every pixel, and labelled pictures in memory, for tests of scoring."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from segue.labels import IGNORE, U8, LabelSpace
from segue.models.base import ModelConfig, Output, SegModel

SPACE = LabelSpace(
    "five",
    ("a", "b", "c", "d", "e"),
    ((9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)),
    (7, 8, 11, 12, 13),
    {"three": ("a", "c", "d")},
)


class Toy(SegModel):
    """Fixed random weights: logits at ``stride`` from averages; mean and std of ImageNet, padding to ``multiple``."""

    def __init__(
        self, seed: int = 0, stride: int = 4, multiple: int = 8, align_corners: bool = False, classes: int = len(SPACE)
    ) -> None:
        super().__init__(ModelConfig(name="toy"), classes)
        self.stride, self.multiple, self.align_corners = stride, multiple, align_corners
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(classes, 3, 3, 3, generator=generator))

    def decode(self, x: Tensor) -> Output:
        small = torch.nn.functional.avg_pool2d(x, self.stride)
        logits = torch.nn.functional.conv2d(small, self.weight, padding=1)
        return Output(logits, logits)

    def classifiers(self) -> dict[str, torch.nn.Module]:
        return {}


class Pictures:
    """Smooth random pictures of given sizes, with blocky labels of their own size."""

    name = "pictures"
    labelled = True

    def __init__(self, *sizes: tuple[int, int], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ids = [f"drive/{n}" for n in range(len(sizes))]
        self.unlabelled_ids: list[str] = []
        self.images: list[U8] = []
        self.labels: list[U8] = []
        for height, width in sizes:
            small = rng.integers(0, 256, (height // 5, width // 5, 3)).astype(np.uint8)
            self.images.append(np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)))
            blocks = rng.choice([0, 1, 2, 3, 4, IGNORE], (height // 6, width // 6)).astype(np.uint8)
            self.labels.append(np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)))

    def read_scored(self, index: int) -> tuple[U8, U8]:
        return self.images[index], self.labels[index]
