"""Self-training with a mean teacher and class mixing across domains (DACS), the host of DAFormer, MIC and DIDA.

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021. A teacher labels target images;
half of the classes of a source image are pasted onto a target image; the student learns from source labels and from
the mixed images, whose target part is weighted by the share of confident pixels. Knobs that matter: ``alpha``,
``threshold``, ``predict_with``, ``parts``. Where DACS looks at the whole batch (classes to paste, confident share),
images count one by one here unless ``paste`` and ``confidence`` say ``batch``.
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
from segue.methods.parts.base import View
from segue.methods.teacher import Teacher, TeacherNorm
from segue.methods.trust import TrustConfig, trusted
from segue.models.base import Output, SegModel
from segue.ops.augment import StrongConfig, strong
from segue.ops.losses import CriterionConfig, segmentation
from segue.ops.mixing import class_mask, mix
from segue.ops.precision import full


class SelfTrainingConfig(TrustConfig, MethodConfig):
    """Settings of ``self_training``; defaults are those of plain DACS where it names one."""

    criterion: CriterionConfig = CriterionConfig()
    alpha: float = Field(0.99, ge=0, lt=1)
    """Momentum of the teacher (DACS 0.99, DAFormer 0.999)."""
    teacher_norm: TeacherNorm = "batch"
    """Norm statistics of the teacher: of its batch (as published), the student's, or averaged."""
    predict_with: Literal["student", "teacher"] = "student"
    """Which network is evaluated and exported (published: the student)."""
    paste: Literal["image", "batch"] = "image"
    """Classes to paste: half of those of each source image, or, as DACS and DAFormer do, of the whole (micro-)batch and
    with unlabelled pixels (255) as one of them."""
    strong: StrongConfig = StrongConfig()
    """Colour jitter and blur of the mixed images."""
    weak: StrongConfig | None = None
    """The same of the target images that the teacher labels; unset: it sees them as they are."""


@METHODS.register("self_training")
class SelfTraining(Method):
    """Two graphs an iteration: source, and source mixed with pseudo-labelled target."""

    Config = SelfTrainingConfig
    config: SelfTrainingConfig
    needs = ("source", "target")
    views = ("source", "mixed", "pseudo")

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
        """Source loss; then the loss on mixed images, a mean over all their pixels; then graphs of parts."""
        source, target = batches["source"], batches["target"]
        yield self.taught(source, self.config.criterion, iteration)
        pseudo, seen, logs = self.pseudo_label(target, iteration)
        mixed, pasted = self.mixed(source, pseudo, iteration)
        yield self._mixed(mixed, pasted, seen, logs, iteration)
        yield from self.part_graphs({"source": source, "target": target, "pseudo": pseudo}, iteration)

    @torch.no_grad()
    def pseudo_label(self, target: Batch, iteration: int) -> tuple[Batch, Output, dict[str, Tensor]]:
        """Target with the teacher's labels and their weights, the teacher's output, and what the report shows."""
        image = target.image
        if self.config.weak is not None:
            image = strong(image, [self.draw("weak", iteration, meta.uid) for meta in target.meta], self.config.weak)
        output = self.teacher(image)
        probability = output.upsample(full(output.to_classes())).softmax(1)
        batch, logs = trusted(target, self.parts.calibrate(probability, output, self), self.config)
        return batch, output, logs

    @torch.no_grad()
    def mixed(self, source: Batch, target: Batch, iteration: int) -> tuple[Batch, Tensor]:
        """Half of each source image's classes pasted onto the target image, colours augmented; and where, (N,H,W)."""
        draws = [self.draw("mix", iteration, meta.uid) for meta in source.meta]
        mask = class_mask(source.label, draws, source.pixel, published=self.config.paste == "batch")
        assert target.weight is not None
        image = mix(source.image, target.image, mask)
        strong_draws = [self.draw("strong", iteration, meta.uid) for meta in source.meta]
        pixel = mix(source.pixel, target.pixel, mask)
        own = torch.ones_like(target.weight) if source.weight is None else source.weight
        batch = replace(
            target,
            image=strong(image, strong_draws, self.config.strong),
            label=mix(source.label, target.label, mask).masked_fill(~pixel, IGNORE),
            weight=mix(own, target.weight, mask),
            pixel=pixel,
        )
        return batch, mask

    def after_step(self, iteration: int) -> None:
        """The teacher follows."""
        super().after_step(iteration)
        self.teacher.update(self.model, iteration + 1)

    def prepare(self, streams: Mapping[str, object]) -> None:
        """The teacher starts as the student."""
        super().prepare(streams)
        self.teacher.copy_from(self.model)

    def predictor(self) -> SegModel:
        """The student, or the teacher with its own statistics."""
        return self.teacher.network if self.config.predict_with == "teacher" else self.model

    def _mixed(self, mixed: Batch, pasted: Tensor, teacher: Output, logs: dict[str, Tensor], iteration: int) -> Terms:
        output = self.model(mixed.image)
        loss = segmentation(
            output, mixed.label, mixed.weight, self.config.criterion, pixel=mixed.pixel, denominator="pixels"
        )
        view = View("mixed", mixed, output, iteration, pasted, teacher)
        return self.joined(Terms(logs, mixed=loss), view)
