"""Methods on batches in memory: a small network, a random labelled batch, and any registered method around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from segue.data.batch import Batch, Meta
from segue.labels import load_space
from segue.methods.base import METHODS
from segue.methods.incremental import Distillation
from segue.models.base import SegModel
from segue.models.build import build_model

SPACE = load_space("street7")


def model(**settings: Any) -> SegModel:
    torch.manual_seed(0)
    return build_model({"name": "bisenet", "width": 0.125, **settings}, 7)


def batch(seed: int, size: int = 2, height: int = 64, width: int = 96) -> Batch:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 7, (size, height // 16, width // 16), generator=g).repeat_interleave(16, 1)
    label = label.repeat_interleave(16, 2)
    return Batch(
        image=torch.rand(size, 3, height, width, generator=g),
        label=label,
        pixel=torch.ones(size, height, width, dtype=torch.bool),
        weight=None,
        label_count=torch.tensor(float(label.numel())),
        meta=tuple(Meta(i, str(i), "memory", (height, width)) for i in range(size)),
    )


def in_place(given: Batch) -> Batch:
    """The batch, whose images are whole files."""
    size = tuple(given.label.shape[-2:])
    geometry = {"resized": size, "window": (0, 0, *size), "flip": False}
    return replace(given, meta=tuple(replace(meta, geometry=geometry) for meta in given.meta))


def method(name: str, net: SegModel | None = None, **settings: Any) -> Any:
    cls = METHODS.get(name)
    distils = issubclass(cls, Distillation)
    references = {"teacher": model().requires_grad_(False)} if distils else {}
    if name == "weak_labels":
        references = {"source": model().requires_grad_(False)}
    built = cls(cls.Config.model_validate({"name": name, **settings}), net or model(), SPACE, references)
    built.key = (0, "test")
    built.train()
    built.prepare({"source": Held()} if distils else {})
    return built


class Held:
    """A stream of one batch, for ever."""

    iterations_per_epoch = 1.0

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        """The batch, again and again."""
        while True:
            yield [batch(0)]
