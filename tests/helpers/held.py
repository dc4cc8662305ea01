"""A data set in memory, and a small network whose embedding is not its logits, for tests of surveys."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.toys import SPACE
from segue.data.dataset import Dataset
from segue.labels import IGNORE, U8
from segue.models.base import ModelConfig, Output, SegModel

SIZES = ((45, 70), (52, 61), (40, 66))


class Held(Dataset):
    """Smooth random pictures of the given sizes; ``labelled``: with blocks of classes and of void."""

    def __init__(
        self, *sizes: tuple[int, int], size: tuple[int, int] | None = None, labelled: bool = True, seed: int = 0
    ) -> None:
        sizes = sizes or SIZES
        super().__init__("held", SPACE, [f"drive/{n}" for n in range(len(sizes))], size)
        self.split, self.labelled = "train", labelled
        rng = np.random.default_rng(seed)
        self.images: list[U8] = []
        self.labels: list[U8] = []
        for height, width in sizes:
            small = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
            self.images.append(np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)))
            blocks = rng.choice([0, 1, 2, 3, 4, IGNORE], (6, 8)).astype(np.uint8)
            self.labels.append(np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)))

    def read_label(self, index: int) -> U8:
        return self.labels[index]

    def _image(self, index: int) -> U8:
        return self.images[index]


class Small(SegModel):
    """Fixed random weights: a map of ``dims`` channels at stride 4, and logits from it."""

    def __init__(self, multiple: int = 8, align_corners: bool = False, dims: int = 6, seed: int = 0) -> None:
        super().__init__(ModelConfig(name="small"), len(SPACE))
        self.multiple, self.align_corners = multiple, align_corners
        g = torch.Generator().manual_seed(seed)
        self.encoder = nn.Parameter(torch.randn(dims, 3, 3, 3, generator=g))
        self.head = nn.Parameter(2 * torch.randn(len(SPACE), dims, 1, 1, generator=g) / dims**0.5)

    def decode(self, x: Tensor) -> Output:
        assert not self.training
        embedding = F.conv2d(F.avg_pool2d(x, 4), self.encoder, padding=1)
        return Output(F.conv2d(embedding, self.head), embedding)

    def classifiers(self) -> dict[str, nn.Module]:
        return {}
