"""A small network to be wrapped by HRDA, which counts what it is asked, and HRDA around any network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.base import MODELS, Head, ModelConfig, Output, SegModel
from segue.models.build import build_model

CLASSES = 3


class Cells(SegModel):
    """Logits at stride 4, maps at 4 and 8, and a head in training; remembers the batches that it was given."""

    multiple = 8
    encoder_prefix = "encoder."
    training_only = ("side",)

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.encoder = nn.Conv2d(3, 6, 3, padding=1)
        self.classifier = nn.Conv2d(6, num_classes, 1)
        self.side: nn.Conv2d | None = nn.Conv2d(6, num_classes, 1)
        self.seen: list[tuple[int, ...]] = []

    def decode(self, x: Tensor) -> Output:
        self.seen.append(tuple(x.shape))
        fine = self.encoder(F.avg_pool2d(x, 4))
        coarse = F.avg_pool2d(fine.tanh(), 2)
        heads = (Head("side", self.side(coarse), 0.4),) if self.training and self.side is not None else ()
        return Output(self.classifier(fine), fine, (fine, coarse), heads)

    def classifiers(self) -> dict[str, nn.Module]:
        found = {"classifier": self.classifier, "side": self.side}
        return {name: module for name, module in found.items() if module is not None}


class Bare(Cells):
    """No maps."""

    def decode(self, x: Tensor) -> Output:
        output = super().decode(x)
        return Output(output.logits, output.embedding)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cells`` and ``bare`` are models until the test ends."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_classes", {**MODELS._classes, "cells": Cells, "bare": Bare})


def make(base: dict[str, Any] | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    given = {"window_px": (64, 64), "attention_channels": 8, "attention_dropout": 0.0, **settings}
    return build_model({"name": "hrda", "base": {"name": "cells"} if base is None else base, **given}, CLASSES)


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
