"""Weak labels of an unlabelled bucket, and distillation from the source model so that the source is not forgotten.

With y the weak labels (255: none), w the trust in them, L the labelled and P all pixels of the pictures, p the
student's softmax and q that of the source model's logits times alpha, both on the same augmented crop:

    (1/|L|) sum_L -w log p_y  +  distillation * (1/|P|) sum_P -sum_c q_c log p_c

No image and no label of the source is needed. |L| and |P| are counts of the global batch. The published form (DLL
project, "DeeplabV3_Cityscapes", 2024; preset ``vdna``) divides the first sum by |P|, so that a mask on weak labels also
weakens them against the source, and the second by |P| times the number of classes. Its focal loss is
``criterion: {name: focal, gamma: 0}``, which is cross-entropy.

The one knob that matters: ``distillation``, its weight. Distilling on the network's own grid instead of at every pixel
was tried and saves nothing (BiSeNet, two of 256x512, one CPU thread: 1.07 s an iteration instead of 1.03 s).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.methods.incremental import at_rest, recalled
from segue.methods.parts.base import View
from segue.models.base import Output, SegModel
from segue.ops.incremental import at_pixels, distillation, mean_over
from segue.ops.losses import CriterionConfig


class WeakLabelsConfig(MethodConfig):
    """Settings of ``weak_labels``."""

    criterion: CriterionConfig = CriterionConfig()
    weak_over: Literal["labelled", "all"] = "labelled"
    """What the loss on weak labels is a mean over: labelled pixels, or all of the picture (published)."""
    distillation: float = Field(1.0, ge=0)
    """Weight of the source model's predictions; 0: none, and no ``source`` is needed."""
    distillation_over: Literal["pixels", "pixels_and_classes"] = "pixels"
    """What distillation is a mean over; with classes it is as many times weaker (published)."""
    teacher_scale: float = Field(1.0, gt=0)
    """alpha: factor of the source model's logits, and of them alone (1 in the published run)."""


@METHODS.register("weak_labels")
class WeakLabels(Method):
    """Cross-entropy on weak labels; at every pixel, what the source model says."""

    Config = WeakLabelsConfig
    config: WeakLabelsConfig
    needs = ("target",)
    uses_labels = ("target",)
    views = ("target",)

    def __init__(
        self, config: WeakLabelsConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        if config.distillation:
            at_rest(self._source())

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph: weak labels, and the source model's predictions; then those of parts."""
        batch = batches["target"]
        remembered = recalled(self.references["source"], batch) if self.config.distillation else None
        output = self.model(batch.image)
        pixels = batch.tally().sum()
        counted = batch if self.config.weak_over == "labelled" else replace(batch, label_count=pixels)
        terms = Terms(weak=self.supervised(output, counted, self.config.criterion))
        if remembered is not None:
            terms["distillation"] = self.config.distillation * self._kept(output, remembered, batch.pixel, pixels)
        yield self.joined(terms, View("target", batch, output, iteration))
        yield from self.part_graphs(batches, iteration)

    def _source(self) -> SegModel:
        source = self.references.get("source")
        if source is None:
            raise UserError(
                "method 'weak_labels' holds on to the source model and has none: give the stage 'references: {source: "
                "EARLIER_STAGE_OR_FILE}', or set 'method.distillation: 0'"
            )
        if source.num_classes != len(self.labels):
            raise UserError(
                f"method 'weak_labels' distils a source model of {source.num_classes} classes into one of "
                f"{len(self.labels)}: both must have the same label space"
            )
        return source

    def _kept(self, output: Output, remembered: Output, pixel: Tensor, count: Tensor) -> Tensor:
        def loss(z: Tensor, t: Tensor) -> Tensor:
            return distillation(z, t * self.config.teacher_scale, "all")

        mean = mean_over(at_pixels(output, remembered, (pixel.shape[-2], pixel.shape[-1]), loss), pixel, count)
        return mean if self.config.distillation_over == "pixels" else mean / len(self.labels)
