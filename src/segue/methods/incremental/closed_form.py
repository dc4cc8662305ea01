"""A head solved in closed form over a frozen network: no gradient, no old image, and no forgetting in the head.

Li et al., "CFSSeg" (arXiv:2412.10834, 2024), after Zhuang et al., "ACIL" (NeurIPS 2022). Each step adds its pixels to
the two sums A and B of :mod:`segue.ops.ridge`, new classes are new rows of B, and the sums travel to the next step: the
head is that of all steps' pixels at once, in any order and division. Each image counts once, as it first comes: train
for one epoch, without random crops, jitter or ``rare_class``. The first step is a stage of its own that starts from a
trained network (any method); later ones start from it.

A pixel has the features of the nearest cell of the embedding's grid. Labelled pixels alone count; with
``old_confidence`` unlabelled ones count as what the old head says where it is sure, and the result then depends on the
order of the steps. Without CFSSeg's random expansion of the features, so that the head is the model's own classifier,
one 1x1 convolution, and any export holds it.

Knobs that matter: ``balance`` (rare classes), ``old_confidence`` (images that show old classes unlabelled), ``ridge``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from segue.data.batch import Batch
from segue.errors import UserError
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.models.base import Output, SegModel
from segue.models.classify import evaluating
from segue.ops.cells import cell_counts
from segue.ops.ridge import class_weights, moments, ridge_head

UNLIMITED = 2**62
SUMS = ("gram", "moment", "count")


class ClosedFormConfig(MethodConfig):
    """Settings of ``closed_form``."""

    ridge: float = Field(1e-3, gt=0)
    """Penalty on the head, as a share of the features' mean square."""
    balance: float = Field(0.0, ge=0, le=1)
    """Exponent of the class weights: 0 as in CFSSeg, every pixel counts the same; 1: every class does. Above 0 the sums
    are kept for each class."""
    old_confidence: float | None = Field(None, gt=0, le=1)
    """Unlabelled pixels (``background``: those of the background) count as what the old outputs say where their softmax
    reaches this; background below it does not count. Null: unlabelled is unlabelled."""
    scale: float = Field(10.0, gt=0)
    """Logits are this times the solution, whose targets are 0 and 1: 10 makes a perfect fit 0.999 sure among 19
    classes. The argmax does not depend on it."""


@METHODS.register("closed_form")
class ClosedForm(Method):
    """Sums over labelled pixels; the classifier solved from them at the end of the stage."""

    Config = ClosedFormConfig
    config: ClosedFormConfig
    gram: Tensor
    moment: Tensor
    count: Tensor
    images: Tensor
    old: Tensor

    def __init__(
        self, config: MethodConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        self.path = _checked(model)
        conv, classes = self.classifier, len(labels)
        size = conv.in_channels + int(conv.bias is not None)
        self.register_buffer("gram", torch.zeros(classes if self.config.balance else 1, size, size).double())
        self.register_buffer("moment", torch.zeros(classes, size).double())
        self.register_buffer("count", torch.zeros(classes).double())
        self.register_buffer("images", torch.tensor(UNLIMITED))
        self.register_buffer("old", torch.tensor(0))

    @property
    def classifier(self) -> nn.Conv2d:
        """The convolution that is solved."""
        conv = self.model.get_submodule(self.path)
        assert isinstance(conv, nn.Conv2d)
        return conv

    def networks(self) -> dict[str, nn.Module]:
        """None has an optimiser."""
        return {}

    def prepare(self, streams: Mapping[str, object]) -> None:
        """Learn how many images there are, each of which counts once."""
        super().prepare(streams)
        self.images.fill_(getattr(streams.get("source"), "length", UNLIMITED))

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Start from an earlier step's sums; ``UserError`` for other settings, or a step that left none."""
        outputs = len(state[f"model.{self.path}.weight"])
        if "gram" not in state:
            if outputs < self.classifier.out_channels:
                raise UserError(
                    f"closed_form would forget the {outputs} old classes: the stage that this one starts from kept no "
                    "sums of their pixels; put a closed_form stage of the same step between the two"
                )
            return
        classes = len(state["moment"])
        if state["gram"].shape != (classes if self.config.balance else 1, *self.gram.shape[1:]):
            raise UserError(
                "closed_form cannot go on with the sums of the stage that this one starts from: all steps need one "
                "model, and 'balance' 0 in all or above 0 in all"
            )
        for name in SUMS:
            mine = getattr(self, name)
            mine[: len(state[name])] = state[name].to(mine)
        self.old.fill_(classes)

    def stored_bytes(self) -> int:
        """The sums."""
        return sum(getattr(self, name).nbytes for name in SUMS)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """No graph: the batch is added to the sums."""
        share = self._add(batches["source"])
        yield Terms(logs={"labelled_share": share})

    def finish(self, streams: Mapping[str, object]) -> None:
        """Solve the classifier; ``UserError`` when no labelled pixel was seen."""
        weights = class_weights(self.count, self.config.balance)
        gram = self.gram[0] if not self.config.balance else torch.tensordot(weights, self.gram, 1)
        conv = self.classifier
        head = ridge_head(gram, self.moment * weights.unsqueeze(1), self.config.ridge, conv.bias is not None)
        head = (head * self.config.scale).to(conv.weight)
        with torch.no_grad():
            conv.weight[: len(head)] = head[:, : conv.in_channels, None, None]
            if conv.bias is not None:
                conv.bias[: len(head)] = head[:, -1]

    @torch.no_grad()
    def _add(self, batch: Batch) -> Tensor:
        """The share of the batch's pixels that count."""
        sums = [torch.zeros_like(getattr(self, name)) for name in SUMS]
        fresh = [n for n, meta in enumerate(batch.meta) if meta.uid < int(self.images)]
        with evaluating(self.model):
            for n in fresh:  # one by one: in a batch of another size features would be rounded in another way
                for total, own in zip(sums, self._sums(batch, n, self.model(batch.image[n : n + 1])), strict=True):
                    total.add_(own)
        for name, total in zip(SUMS, sums, strict=True):
            getattr(self, name).add_(self.gather(total.unsqueeze(0)).sum(0))
        return sums[-1].sum() / batch.label.numel()

    def _sums(self, batch: Batch, n: int, output: Output) -> tuple[Tensor, Tensor, Tensor]:
        counts = self._counts(batch, n, output).flatten(0, 2)
        features = output.embedding.permute(0, 2, 3, 1).flatten(0, 2)
        if self.classifier.bias is not None:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
        return *moments(features, counts, bool(self.config.balance)), counts.double().sum(0)

    def _counts(self, batch: Batch, n: int, output: Output) -> Tensor:
        """(1,h,w,C) pixels of each class in each cell of image ``n``."""
        label = torch.where(batch.pixel[n], batch.label[n], IGNORE).unsqueeze(0)
        weight = None if batch.weight is None else batch.weight[n].unsqueeze(0)
        grid, align = output.embedding.shape[-2:], output.align_corners
        place, number = (output.padded, (grid[0], grid[1])), len(self.labels)
        counts = cell_counts(label, *place, number, align_corners=align, weight=weight)[..., :number]
        old, background = int(self.old), self.labels.background is not None
        if self.config.old_confidence is None or not old:
            return counts
        free = label == (0 if background else IGNORE)
        free &= batch.pixel[n]
        if background:
            counts[..., 0] = 0
        confidence, guess = output.logits[:, :old].float().softmax(1).max(1)
        number_free = cell_counts(torch.where(free, 0, IGNORE), *place, 1, align_corners=align)[..., 0]
        sure = number_free * (confidence >= self.config.old_confidence)
        return counts.scatter_add_(-1, guess.unsqueeze(-1), sure.unsqueeze(-1))


def _checked(model: SegModel) -> str:
    """Path of the classifier; ``UserError`` unless it is one 1x1 convolution of the embedding."""
    path, conv = next(iter(model.classifiers().items()), ("", None))
    fits = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1
    if fits:
        with torch.no_grad(), evaluating(model):
            output = model(torch.full((1, 3, 64, 64), 0.5).to(model.mean))
            logits = conv(output.embedding)  # type: ignore[misc]
        fits = logits.shape == output.logits.shape and torch.allclose(logits, output.logits, rtol=1e-3, atol=1e-4)
    if not fits:
        raise UserError(
            f"closed_form solves one 1x1 convolution that reads the embedding, which is not how model "
            f"{model.config.name!r} ends; use bisenet, deeplabv3, deeplabv3plus, or another network that ends so"
        )
    return path
