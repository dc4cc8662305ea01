"""A class step in memory: a tiny model of three classes that has grown to five, and what the step shows it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from helpers.memory import batch
from segue.data.batch import Batch
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Method
from segue.models.base import SegModel
from segue.models.build import build_model

OLD, ALL = 3, 5
PLAIN = LabelSpace("five", tuple("abcde"), ((1, 1, 1),) * ALL, tuple(range(ALL)))
WITH_BACKGROUND = replace(PLAIN, background="a")
TREATMENTS = {"ignore": PLAIN, "background": WITH_BACKGROUND}


def earlier(unknown: bool = False, **settings: Any) -> SegModel:
    """A model of the step before; without its random heads it would predict one class everywhere."""
    torch.manual_seed(1)
    model = build_model({"name": "bisenet", "width": 0.125, **settings}, OLD)
    if unknown:
        model.add_unknown()
    return model


def grown(model: SegModel, init: str = "random") -> SegModel:
    """A copy with outputs for the new classes."""
    student = copy.deepcopy(model)
    student.grow_head(ALL - OLD, init, torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    return student.train()


def build(name: str, labels: LabelSpace, teacher: SegModel | None, student: SegModel, **settings: Any) -> Any:
    """Any method around the two, not prepared."""
    cls = METHODS.get(name)
    references = {} if teacher is None else {"teacher": teacher.requires_grad_(False)}
    built = cls(cls.Config.model_validate({"name": name, **settings}), student, labels, references)
    built.key = (0, "test")
    return built.train()


def shown(seed: int, labels: LabelSpace, size: int = 2) -> Batch:
    """Two new classes are labelled, the rest is unlabelled; the last columns are no picture, a corner is 255."""
    given = batch(seed, size)
    rest = 255 if labels.background is None else 0
    label = torch.where((given.label >= OLD) & (given.label < ALL), given.label, rest)
    label[:, :4, :4] = 255
    pixel = given.pixel.clone()
    pixel[:, :, 80:] = False
    label = label.masked_fill(~pixel, 255)
    return replace(given, label=label, pixel=pixel, label_count=(label != 255).sum().float())


def part(whole: Batch, index: slice, share: float) -> Batch:
    """Some images of a batch as a micro-batch of it; ``share``: 1 / number of micro-batches."""
    return replace(
        whole,
        image=whole.image[index],
        label=whole.label[index],
        pixel=whole.pixel[index],
        label_count=whole.label_count * share,
        meta=whole.meta[index],
    )


def in_padding(given: Batch) -> Batch:
    """The batch with other labels where there is no picture."""
    return replace(given, label=torch.where(given.pixel, given.label, ALL - 1))


class Shown:
    """A stream of such batches, one epoch of which is ``len(seeds)`` iterations."""

    def __init__(self, labels: LabelSpace, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
        self.batches = [shown(seed, labels) for seed in seeds]
        self.iterations_per_epoch = len(seeds)
        self.read = 0

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        """Micro-batches of one image, as uint8 like a loader's."""
        while True:
            self.read += 1
            whole = self.batches[start % len(self.batches)]
            whole = replace(whole, image=(whole.image * 255).round().to(torch.uint8))
            yield [part(whole, slice(k, k + 1), 0.5) for k in range(2)]
            start += 1


def train(method: Method, labels: LabelSpace, iterations: int = 3, start: int = 0, lr: float = 0.01) -> list[float]:
    """Iterations as the engine does them, with momentum and weight decay; the loss of each."""
    groups = [g.params for net in method.networks().values() for g in net.param_groups()]  # type: ignore[operator]
    optimizer = torch.optim.SGD([p for g in groups for p in g], lr, momentum=0.9, weight_decay=0.01)
    found = []
    for iteration in range(start, start + iterations):
        batches = {name: shown(10 * iteration + k, labels) for k, name in enumerate(method.needs)}
        found.append(backward(method, batches, iteration))
        method.before_step(iteration)
        optimizer.step()
        method.after_step(iteration)
        optimizer.zero_grad(set_to_none=True)
    return found


def backward(method: Method, batches: dict[str, Batch], iteration: int = 0, share: float = 1.0) -> float:
    """Gradients of all graphs, times ``share``; the sum of the losses."""
    total = 0.0
    for terms in method.losses(batches, iteration):
        loss = torch.stack(list(terms.values())).sum() * share
        loss.backward()
        total += float(loss.detach())
    return total


def gradients(method: Method) -> dict[str, Tensor]:
    """Copies of all gradients of the model, which are then dropped."""
    found = {n: p.grad.clone() for n, p in method.model.named_parameters() if p.grad is not None}
    method.zero_grad(set_to_none=True)
    return found
