"""Self-training with a mean teacher and class mixing across domains (DACS).

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021. A teacher labels target images;
half of the classes of a source image are pasted onto a target image; the student learns from source labels and from
the mixed images, whose target part is weighted by the share of confident pixels. Knobs that matter: ``alpha``,
``threshold``, ``predict_with``. Where DACS looks at the whole batch (classes to paste, confident share), images count
one by one here unless ``published`` is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.methods.teacher import Teacher, TeacherNorm
from segue.models.base import SegModel
from segue.ops.augment import StrongConfig, strong
from segue.ops.losses import CriterionConfig, segmentation
from segue.ops.mixing import class_mask, confidence_weight, mix, without_margin


class SelfTrainingConfig(MethodConfig):
    """Settings of ``self_training``; defaults are those of plain DACS where it names one."""

    criterion: CriterionConfig = CriterionConfig()
    alpha: float = Field(0.99, ge=0, lt=1)
    """Momentum of the teacher (DACS 0.99, DAFormer 0.999)."""
    threshold: float = Field(0.968, ge=0, le=1)
    """A target pixel is confident when the teacher's largest probability reaches this."""
    teacher_norm: TeacherNorm = "batch"
    """Norm statistics of the teacher: of its batch (as published), the student's, or averaged."""
    predict_with: Literal["student", "teacher"] = "student"
    """Which network is evaluated and exported (published: the student)."""
    published: bool = False
    """Choose pasted classes (255 too) and the confident share over the whole batch, as DACS and DAFormer do."""
    strong: StrongConfig = StrongConfig()
    """Colour jitter and blur of the mixed images."""
    ignore_top_px: int = Field(0, ge=0)
    """Rows at the top whose pseudo-labels get weight 0 (DAFormer on Cityscapes: 15)."""
    ignore_bottom_px: int = Field(0, ge=0)
    """Rows at the bottom, likewise (120)."""


@METHODS.register("self_training")
class SelfTraining(Method):
    """Two graphs an iteration: source, and source mixed with pseudo-labelled target."""

    Config = SelfTrainingConfig
    config: SelfTrainingConfig
    needs = ("source", "target")

    def __init__(
        self,
        config: SelfTrainingConfig,
        model: SegModel,
        labels: LabelSpace,
        references: Mapping[str, SegModel],
    ) -> None:
        super().__init__(config, model, labels, references)
        self.teacher = Teacher(model, config.alpha, config.teacher_norm)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Source loss; then the loss on mixed images, a mean over all their pixels."""
        source, target = batches["source"], batches["target"]
        yield Terms(source=self.supervised(self.model(source.image), source, self.config.criterion))
        pseudo, weight, logs = self.pseudo_label(target)
        mixed = self.mixed(source, replace(target, label=pseudo, weight=weight), iteration)
        output = self.model(mixed.image)
        loss = segmentation(
            output, mixed.label, mixed.weight, self.config.criterion, pixel=mixed.pixel, denominator="pixels"
        )
        yield Terms(logs, mixed=loss)

    @torch.no_grad()
    def pseudo_label(self, target: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Teacher's labels (N,H,W), their weight (N,H,W), and what the report shows of them."""
        output = self.teacher(target.image)
        confidence, pseudo = output.upsample(output.to_classes()).softmax(1).max(1)
        unit: Literal["batch", "image"] = "batch" if self.config.published else "image"
        share = confidence_weight(confidence, self.config.threshold, target.pixel, per=unit)
        weight = without_margin(share.expand_as(confidence), self.config.ignore_top_px, self.config.ignore_bottom_px)
        kept = (confidence >= self.config.threshold)[target.pixel]
        counts = torch.bincount(pseudo[target.pixel], minlength=len(self.labels)).float()
        logs = {"share_kept": kept.float().mean(), "pseudo_histogram": counts / counts.sum().clamp(min=1)}
        return pseudo, weight, logs

    @torch.no_grad()
    def mixed(self, source: Batch, target: Batch, iteration: int) -> Batch:
        """Half of each source image's classes pasted onto the target image, colours augmented."""
        draws = [self.draw("mix", iteration, meta.uid) for meta in source.meta]
        mask = class_mask(source.label, draws, source.pixel, published=self.config.published)
        assert target.weight is not None
        image = mix(source.image, target.image, mask)
        strong_draws = [self.draw("strong", iteration, meta.uid) for meta in source.meta]
        pixel = mix(source.pixel, target.pixel, mask)
        return replace(
            target,
            image=strong(image, strong_draws, self.config.strong),
            label=mix(source.label, target.label, mask).masked_fill(~pixel, IGNORE),
            weight=mix(torch.ones_like(target.weight), target.weight, mask),
            pixel=pixel,
        )

    def after_step(self, iteration: int) -> None:
        """The teacher follows."""
        self.teacher.update(self.model, iteration + 1)

    def prepare(self, streams: Mapping[str, object]) -> None:
        """The teacher starts as the student."""
        self.teacher.copy_from(self.model)

    def predictor(self) -> SegModel:
        """The student, or the teacher with its own statistics."""
        return self.teacher.network if self.config.predict_with == "teacher" else self.model
