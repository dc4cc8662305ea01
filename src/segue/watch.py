"""What a model predicts on unlabelled images while it trains: the numbers that :mod:`segue.alarms` judges.

A fixed set of images is watched: the first batches of a stream, at least ``MIN_IMAGES``, kept on the CPU. A look is at
one part of the set (one global batch), the parts take turns, and before anything is trained there is a look at each.
Two rounds of looks are therefore at the same images, and what differs between them is the model. Predictions are taken
at the network's own stride, in eval mode, without gradients and without random numbers; where there is no picture
nothing counts. With several devices each looks at its own part of the batch and the numbers are averaged over all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from segue.alarms import MIN_IMAGES, MIN_PARTS, Look
from segue.data.batch import Batch
from segue.models.base import SegModel
from segue.ops.picture import at_least_one
from segue.ops.precision import full


class Stream(Protocol):
    """What the watched images come from."""

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        """The micro-batches of iteration ``start``, ``start + 1``, …"""
        ...


@dataclass(frozen=True)
class Lens:
    """How the engine runs a network: where, in which precision, on how many devices."""

    to_device: Callable[[Batch], Batch]
    autocast: Callable[[], AbstractContextManager[object]]
    world: int


class Watch:
    """Looks at the watched streams through ``lens``; ``at_start`` holds a look at each part by the given model."""

    def __init__(self, streams: Mapping[str, Stream], start: SegModel, lens: Lens) -> None:
        self.lens = lens
        self.parts: dict[str, list[list[Batch]]] = {name: _first(s, lens.world) for name, s in streams.items()}
        self.before: dict[tuple[str, int], list[Tensor]] = {}
        """Most probable class of every cell at the start, for each batch of a part."""
        places = [(name, part) for name, parts in self.parts.items() for part in range(len(parts))]
        self.at_start = [self._look(start, name, part, 0) for name, part in places]

    def looks(self, model: SegModel, iteration: int, number: int) -> list[Look]:
        """Look ``number`` (0, 1, …) at every stream; leaves the model in eval mode."""
        return [self._look(model, name, number % len(parts), iteration) for name, parts in self.parts.items()]

    @torch.no_grad()
    def _look(self, model: SegModel, stream: str, part: int, iteration: int) -> Look:
        model.eval()
        found = [self._predict(model, batch) for batch in self.parts[stream][part]]
        if (stream, part) not in self.before:
            self.before[stream, part] = [log_p.argmax(1).to("cpu", torch.uint8) for log_p, _ in found]
        pairs = zip(found, self.before[stream, part], strict=True)
        total = torch.stack([_sums(log_p, picture, before) for (log_p, picture), before in pairs]).sum(0)
        if self.lens.world > 1:
            dist.all_reduce(total)
        _, entropy, confidence, agreement, *classes = (total / total[0].clamp(min=1)).tolist()
        half = len(classes) // 2
        return Look(
            stream, iteration, part, tuple(classes[:half]), tuple(classes[half:]), entropy, confidence, agreement
        )

    def _predict(self, model: SegModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N,C,h,w) at the network's stride, and the share of each cell that is picture (N,1,h,w)."""
        batch = self.lens.to_device(batch)
        with self.lens.autocast():
            output = model(batch.image)
        logits = full(output.to_classes())
        (height, width), (below, right) = output.size, output.padded
        pixel = F.pad(batch.pixel.to(logits).unsqueeze(1), (0, right - width, 0, below - height))
        return logits.log_softmax(1), F.adaptive_avg_pool2d(pixel, (logits.shape[-2], logits.shape[-1]))


def _sums(log_p: Tensor, picture: Tensor, before: Tensor) -> Tensor:
    """Sums over images of 1, entropy, confidence, agreement, and of every class its probability and share."""
    p = log_p.exp()
    chosen = p.argmax(1)
    maps = torch.stack([-(p * log_p).sum(1), p.amax(1), (chosen == before.to(chosen)).to(p)], 1)
    taken = F.one_hot(chosen, p.shape[1]).movedim(-1, 1).to(p)
    area = picture.sum((2, 3))
    means = (torch.cat([maps, p, taken], 1) * picture).sum((2, 3)) / at_least_one(area)
    return torch.cat([area.gt(0).to(p), means], 1).sum(0)


def _first(stream: Stream, world: int) -> list[list[Batch]]:
    """The first batches of a stream: at least ``MIN_IMAGES`` images and ``MIN_PARTS`` batches."""
    with closing(stream.iterate(0)) as batches:  # type: ignore[type-var]
        first = next(batches)
        images = sum(len(b.image) for b in first) * world
        return [first, *islice(batches, max(MIN_PARTS, math.ceil(MIN_IMAGES / images)) - 1)]
