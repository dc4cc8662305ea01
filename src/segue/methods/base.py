"""What a training method is: a generator of loss terms over named batches.

One ``yield`` is one graph: the engine adds the terms of a yield, differentiates the sum once, frees the graph and asks
for the next. A method never sees devices, precision, accumulation, ranks, logging or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segue.data.batch import Batch
from segue.labels import LabelSpace
from segue.methods.parts.base import Parts, View
from segue.models.base import Output, SegModel
from segue.models.style import pictures
from segue.ops.keys import generator
from segue.ops.losses import CriterionConfig, segmentation
from segue.registry import Registry
from segue.settings import Settings

Batches = Mapping[str, Batch]
MET = 64
"""Images of each target data set that the model looks at beforehand, evenly spaced."""


class Terms(dict[str, Tensor]):
    """Named scalar losses of one graph: ``Terms(source=ce, entropy=0.005 * e)``; the engine logs each and adds them.

    ``logs`` holds numbers to log that are not part of the loss (shares, histograms), as detached tensors.
    """

    def __init__(self, logs: Mapping[str, Tensor] | None = None, **terms: Tensor) -> None:
        super().__init__(**terms)
        self.logs = dict(logs or {})


class MethodConfig(Settings):
    """Settings that every method has."""

    name: str
    """Registered name, see ``segue list methods``."""
    parts: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """Name of a part (``segue list parts``) -> its settings; null switches one off that a preset has on."""


class Method(nn.Module):
    """Base of all methods. Teachers, discriminators, banks and counters are submodules or buffers: saved by themselves.

    ``needs``: the streams it trains on. ``uses_labels``: which of them must be labelled. ``views``: the graphs that it
    shows its parts. ``trains``: whether there is anything to train. ``head``: how the outputs of new classes start in a
    stage that has more classes than the one it starts from. ``old_data``: whether it sees old steps' images again.
    ``needs_anchor``: whether its model must start with one.
    """

    Config: type[MethodConfig] = MethodConfig
    needs: ClassVar[tuple[str, ...]] = ("source",)
    uses_labels: ClassVar[tuple[str, ...]] = ("source",)
    views: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = True
    head: ClassVar[Literal["random", "background", "unknown"]] = "random"
    old_data: ClassVar[bool] = False
    needs_anchor: ClassVar[bool] = False

    def __init__(
        self, config: MethodConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.labels = labels
        self.references = dict(references)  # frozen, stored by path and hash: not part of the state
        self.key: tuple[int | str, ...] = (0,)  # (run seed, stage), set by the engine
        # Rows (n,…) of this device -> those of all, for state that must not differ between them; set by the engine. All
        # call it together, with equal shapes; the order of rows is not that of the batch (sort by ``meta.uid``).
        self.gather: Callable[[Tensor], Tensor] = _alone
        self.parts = Parts(config.parts, self)

    def networks(self) -> dict[str, nn.Module]:
        """Networks that have an optimiser, by name; ``model`` is the one that is evaluated."""
        return {"model": self.model, **self.parts.networks()}

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Yield loss terms, one graph a yield. Batches are on the device, images float 0..1."""
        raise NotImplementedError(f"{type(self).__name__} has no losses")

    def supervised(self, output: Output, batch: Batch, criterion: CriterionConfig) -> Tensor:
        """Loss on the given labels of a batch, the same however the batch is split."""
        return segmentation(
            output, batch.label, batch.weight, criterion, pixel=batch.pixel, denominator=batch.label_count
        )

    def taught(self, batch: Batch, criterion: CriterionConfig, iteration: int) -> Terms:
        """The graph of given labels, ``source``, with what parts add to it; nothing of it is kept."""
        output = self.model(batch.image)
        terms = Terms(source=self.supervised(output, batch, criterion))
        return self.joined(terms, View("source", batch, output, iteration))

    def joined(self, terms: Terms, view: View) -> Terms:
        """The terms of one graph together with those that parts add to it."""
        return self.parts.join(terms, view, self)

    def part_graphs(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Graphs of the parts' own, for the end of ``losses``."""
        return self.parts.graphs(batches, self, iteration)

    def prepare(self, streams: Mapping[str, object]) -> None:
        """Once before iteration 0, not on resume."""
        target = getattr(streams.get("target"), "datasets", ())
        self.model.meet(pictures(target, MET, self.model.mean.device))
        self.parts.prepare(self, streams)

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Once before training, in a stage that starts from an earlier one: the state dict of that stage's method."""

    def stored_bytes(self) -> int:
        """What this step keeps for later ones beside the model."""
        return 0

    def finish(self, streams: Mapping[str, object]) -> None:
        """Once after the last iteration."""

    def before_step(self, iteration: int) -> None:
        """Gradients are averaged, unscaled and clipped here."""

    def after_step(self, iteration: int) -> None:
        """After the optimisers' step; not called for a skipped step."""
        self.parts.after_step(self, iteration)

    def predictor(self) -> SegModel:
        """The network that is exported."""
        return self.model

    def scored(self) -> tuple[SegModel, ...]:
        """The networks whose mean probability is evaluated."""
        return (self.predictor(),)

    def draw(self, name: str, iteration: int, image: int = -1) -> torch.Generator:
        """Generator for one named random draw: (run seed, stage, name, iteration, image uid)."""
        return generator(*self.key, name, iteration, image)


def _alone(rows: Tensor) -> Tensor:
    return rows


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Gradients pass through the networks, none are kept for their parameters."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


METHODS: Registry[Method] = Registry("method", "segue.methods")
