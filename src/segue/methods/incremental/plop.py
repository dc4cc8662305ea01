"""PLOP: pseudo-labels of the old model where it is certain, and maps whose local averages stay what they were.

Douillard et al., "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR 2021. Of the unlabelled
pixels those where the old model is certain (eq. 8, :mod:`segue.ops.plop`) are taught its class, the others nothing.
Cross-entropy (eq. 9) is a mean over all pixels of an image, multiplied by the share of certain among its unlabelled
pixels; 1 where none is unlabelled (the published code multiplies such an image by 0). Distillation is the mean over
maps of weight * sqrt(classes / new classes) * local POD (eq. 6, :mod:`segue.ops.pod`).

Maps: the encoder's (``Output.stages``), what the classifier reads (``Output.embedding``) and the logits at their own
stride, for the four stages, the ASPP output and the logits of the paper. Ours are taken after their activation, the
paper's before. Thresholds come from one pass over the step's images, as the stream crops and augments them.

Where the label space has a background, unlabelled is label 0, and as in the published code the logits of new classes
are added to background's for the distillation. Otherwise unlabelled is 255, the old logits alone are distilled, and new
outputs have no background to start from: give such a stage ``head: random``.

Knobs that matter: ``weight`` and ``logits_weight``, which belong to a network's width and to the data (VOC 0.01 and
0.0005, ADE 0.001 and 0.00001, Cityscapes domains 0.0001), and ``published``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.data.loaders import Stream
from segue.errors import UserError
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import METHODS, Batches, MethodConfig, Terms
from segue.methods.incremental import Distillation
from segue.methods.levels import outline
from segue.methods.parts.base import View
from segue.models.base import Output, SegModel
from segue.ops.losses import CriterionConfig, segmentation
from segue.ops.plop import BINS, PUBLISHED_BINS, histogram, medians, predicted, published_medians
from segue.ops.pod import folded, local_pod, picture_share
from segue.ops.precision import full


class PLOPConfig(MethodConfig):
    """Settings of ``plop``; defaults are those for VOC, with the thresholds that the paper describes."""

    criterion: CriterionConfig = CriterionConfig()
    weight: float = Field(0.01, ge=0)
    """Factor of the local POD of encoder maps and embedding."""
    logits_weight: float = Field(0.0005, ge=0)
    """That of the logits."""
    min_threshold: float = Field(0.001, ge=0, le=1)
    """No class has a smaller threshold of uncertainty; that of classes never predicted."""
    published: bool = False
    """Thresholds as the shipped code finds them, which is not the median; see :mod:`segue.ops.plop`."""


@METHODS.register("plop")
class PLOP(Distillation):
    """Cross-entropy on labels and certain pseudo-labels, local POD on all maps."""

    Config = PLOPConfig
    config: PLOPConfig
    head = "background"
    thresholds: Tensor

    def __init__(
        self, config: PLOPConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        mine, theirs = ([m.shape[1:] for m in _maps(outline(net))] for net in (model, references["teacher"]))
        if mine != theirs:
            raise UserError(
                f"method 'plop' compares all maps of model and teacher, which must be alike: {model.config.name!r} has "
                f"{[tuple(m) for m in mine]}, the teacher {[tuple(m) for m in theirs]}; use the teacher's model, or "
                f"method 'mib'"
            )
        self.register_buffer("thresholds", torch.full((self.old,), config.min_threshold))

    @torch.no_grad()
    def prepare(self, streams: Mapping[str, object]) -> None:
        """Find the thresholds: one pass over the images of ``source``."""
        super().prepare(streams)
        stream = cast(Stream, streams["source"])
        bins = PUBLISHED_BINS if self.config.published else BINS
        counts = torch.zeros(self.old, bins, dtype=torch.int64, device=self.thresholds.device)
        with closing(stream.iterate(0)) as iterations:  # type: ignore[type-var]
            for micro_batches in islice(iterations, math.ceil(stream.iterations_per_epoch)):
                for given in micro_batches:
                    batch = given.to(self.thresholds.device)
                    label, u = self._predicted(self.remembered(batch), batch)
                    unlabelled = self._unlabelled(batch)
                    counts += histogram(label[unlabelled], u[unlabelled], self.old, bins)
        counts = self.gather(counts.unsqueeze(0)).sum(0)
        found = published_medians(counts) if self.config.published else medians(counts)
        # Not clamp: what the shipped code finds may be no number, which accepts nothing, and infinity, which does all.
        found = torch.where(found < self.config.min_threshold, self.config.min_threshold, found)
        self.thresholds.copy_(found)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph: cross-entropy and local POD; then those of parts."""
        batch = batches["source"]
        remembered = self.remembered(batch)
        output = self.model(batch.image)
        taught, logs = self.pseudo_labelled(batch, remembered)
        source = segmentation(
            output, taught.label, taught.weight, self.config.criterion, pixel=batch.pixel, denominator="pixels"
        )
        terms = Terms(logs, source=source, pod=self._pod(output, remembered, batch))
        yield self.joined(terms, View("source", batch, output, iteration))
        yield from self.part_graphs(batches, iteration)

    @torch.no_grad()
    def pseudo_labelled(self, batch: Batch, remembered: Output) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with certain predictions of the old model as labels, its images' factors as weights; and logs."""
        label, u = self._predicted(remembered, batch)
        unlabelled = self._unlabelled(batch)
        certain = unlabelled & (u < self.thresholds[label])
        label = torch.where(certain, label, IGNORE)
        number = unlabelled.sum((1, 2), keepdim=True)
        factor = torch.where(number > 0, certain.sum((1, 2), keepdim=True) / number.clamp(min=1), 1.0)
        weight = factor.expand(label.shape) if batch.weight is None else factor * batch.weight
        taught = replace(batch, label=torch.where(unlabelled, label, batch.label), weight=weight)
        return taught, {"share_certain": factor.mean()}

    def _unlabelled(self, batch: Batch) -> Tensor:
        return self.unlabelled[batch.label] & batch.pixel

    def _predicted(self, remembered: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        size = (batch.label.shape[-2], batch.label.shape[-1])
        return predicted(remembered, size, len(self.labels) if self.config.published else None)

    def _pod(self, output: Output, remembered: Output, batch: Batch) -> Tensor:
        student, teacher = _maps(output), _maps(remembered)
        logits = full(output.to_classes())
        student.append(folded(logits, self.old) if self.labels.background else logits[:, : self.old])
        teacher.append(full(remembered.to_classes()))
        weights = [self.config.weight] * (len(student) - 1) + [self.config.logits_weight]
        total = logits.new_zeros(())
        for a, b, weight in zip(student, teacher, weights, strict=True):
            share = picture_share(output, batch.pixel, (a.shape[-2], a.shape[-1]))
            total = total + weight * local_pod(a, b, share).mean()
        classes = len(self.labels)
        schedule = math.sqrt(classes / (classes - self.old)) if classes > self.old else 1.0  # no new class: new domain
        return schedule * total / len(student)


def _maps(output: Output) -> list[Tensor]:
    return [*output.stages, output.embedding]
