"""SSUL-style: a frozen network, one binary classifier a class, and an ``unknown`` output from which new ones start.

Cha et al., "SSUL: Semantic Segmentation with Unknown Label for Exemplar-based Class-Incremental Learning", NeurIPS
2021, without its saliency maps, which come from another network, and with a classifier of one linear layer. The first
step trains everything by binary cross-entropy, summed over outputs, a mean over the picture of each image; so it is
trained by this method too. Later ones, which name the model of the step before as ``references: {teacher: EARLIER}``,
train rows of the classifier alone: those of new classes, which start as ``unknown`` did, and ``unknown``. All else
stays bit for bit, and the network runs in evaluation mode, so that norm statistics stay too; the old rows are the old
model, and one pass serves both.

A pixel is 1 for its class. An unlabelled one where an old class (but background) has a sigmoid of at least
``threshold`` is that class: 0 for whatever trains. Any other unlabelled one is 1 for ``unknown`` and, where the label
space has a background, for background: saliency would tell the two apart. Background has then learned the objects of
later steps, so its row trains on too, at ``background_lr_factor`` (published, with saliency: 0.0001). Label 255 next
to a background is void and enters nothing. Predictions leave ``unknown`` out (``Output.to_classes``), where the
published code adds its sigmoid to background's.

Knobs that matter: ``threshold`` and ``background_lr_factor``; of the first step ``model.head_lr_factor: 10``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.errors import UserError
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.models.base import Output, SegModel
from segue.models.growth import class_dim, convolutions
from segue.ops.binary import binary_at_pixels, certain
from segue.ops.picture import picture_mean


class SSULConfig(MethodConfig):
    """Settings of ``ssul``."""

    threshold: float = Field(0.7, gt=0, lt=1)
    """Sigmoid of an old class from which an unlabelled pixel counts as that class (published: 0.7)."""
    background_lr_factor: float = Field(1.0, ge=0, le=1)
    """How far background's row moves after the first step, as a share of a full step of the optimiser."""


@METHODS.register("ssul")
class SSUL(Method):
    """Binary cross-entropy on rows of the classifier, beside an ``unknown`` output."""

    Config = SSULConfig
    config: SSULConfig
    head = "unknown"
    factors: Tensor
    trained: Tensor
    places: Tensor

    def __init__(
        self, config: SSULConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        self.old = references["teacher"].num_classes if "teacher" in references else 0
        self.continues = model.extra == "unknown"
        model.add_unknown()
        factors = torch.ones(len(labels) + 1)
        if self.old:
            factors[: self.old] = 0
            if labels.background is not None:
                factors[0] = config.background_lr_factor
            rows = {id(p) for p, _ in self._rows()}
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in rows)
        self.register_buffer("factors", factors, persistent=False)
        trained = factors.nonzero().flatten()
        places = torch.full((IGNORE + 1,), IGNORE)
        places[trained] = torch.arange(len(trained))
        self.register_buffer("trained", trained, persistent=False)
        self.register_buffer("places", places, persistent=False)  # of an output among the trained ones
        self.teaches_background = labels.background is not None and float(factors[0]) > 0
        self.before: list[Tensor] = []

    def train(self, mode: bool = True) -> SSUL:
        """After the first step the network is always in evaluation mode."""
        super().train(mode)
        if self.old:
            self.model.eval()
        return self

    def prepare(self, streams: Mapping[str, object]) -> None:
        """``UserError`` unless a later step, and no other, starts from a model with an ``unknown`` output."""
        super().prepare(streams)
        if self.old and not (self.continues and self.old <= self.model.num_classes):
            raise UserError(
                "method 'ssul' continues a model with an 'unknown' output that knows the teacher's classes: train the "
                "step before by 'ssul' as well, and give its stage as 'start' and as 'references: {teacher: …}'"
            )
        if self.continues and not self.old:
            raise UserError(
                "method 'ssul' starts from a model with an 'unknown' output, whose classes must stay as they are: give "
                "its stage as 'references: {teacher: …}' too"
            )

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph: binary cross-entropy of what trains, heads included."""
        batch = batches["source"]
        output = self.model(batch.image)
        true, taught, logs = self._truth(output, batch)
        loss = output.weight * self._loss(output, output.logits, true, taught, batch)
        for head in output.heads:
            if head.target == "classes" and head.window is None:
                loss = loss + head.weight * self._loss(output, head.logits, true, taught, batch)
        yield Terms(logs, source=loss)

    @torch.no_grad()
    def before_step(self, iteration: int) -> None:
        """Keep the classifier as it is."""
        if self.old:
            self.before = [parameter.detach().clone() for parameter, _ in self._rows()]

    @torch.no_grad()
    def after_step(self, iteration: int) -> None:
        """Each row has moved by its factor, whatever the optimiser made of momentum and weight decay."""
        super().after_step(iteration)
        for (parameter, dim), before in zip(self._rows() if self.old else (), self.before, strict=True):
            shape = [-1 if d == dim else 1 for d in range(parameter.ndim)]
            parameter.copy_(before.lerp(parameter, self.factors.view(shape)))
        self.before = []

    @torch.no_grad()
    def _truth(self, output: Output, batch: Batch) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """Maps of the outputs that are 1, (N,H,W) each; which pixels are taught; and logs."""
        first = 0 if self.labels.background is None else 1  # of the classes that are not background
        unlabelled = batch.label == (0 if first else IGNORE)
        taught = batch.pixel & (batch.label != IGNORE) if first else batch.pixel
        size = (batch.label.shape[-2], batch.label.shape[-1])
        rest = unlabelled & ~certain(output, output.logits[:, first : self.old], size, self.config.threshold)
        none = torch.full_like(batch.label, IGNORE)
        unknown = self.places[len(self.labels)]
        true = [torch.where(unlabelled, torch.where(rest, unknown, none), self.places[batch.label])]
        if self.teaches_background:
            true.append(torch.where(rest, self.places[0], none))
        return true, taught, {"share_unknown": (rest & taught).sum() / taught.sum().clamp(min=1)}

    def _loss(self, output: Output, logits: Tensor, true: list[Tensor], taught: Tensor, batch: Batch) -> Tensor:
        loss = binary_at_pixels(output, logits[:, self.trained], true) * taught
        return picture_mean(loss if batch.weight is None else loss * batch.weight, batch.pixel)

    def _rows(self) -> Iterator[tuple[Tensor, int]]:
        """Parameters with a row for each output, and which of their dimensions counts outputs."""
        for classifier in self.model.classifiers().values():
            for conv in convolutions(classifier):
                yield conv.weight, class_dim(conv)
                if conv.bias is not None:
                    yield conv.bias, 0
