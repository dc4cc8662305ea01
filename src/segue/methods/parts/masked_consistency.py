"""Masked image consistency: the student says of an image with hidden blocks what the teacher says of the whole one.

Hoyer et al., "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation", CVPR 2023, eq. 2 to 6. Blocks of
``block_px`` are hidden with probability ``ratio`` (64 at crops of 1024, 32 at 512). The host's pseudo-labels are used
where it makes some; ``adversarial``, ``minent`` and others get a teacher of their own. The full loss of the network,
heads included, has weight ``weight``; the published code leaves HRDA's detail term out of it.

The published modes are ``images`` and ``strong``: separatetrgaug is the default here; separate is ``images: both`` and
``strong: null``; trg, src and their aug forms likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import Batches, Method, Terms
from segue.methods.parts.base import PARTS, Part, PartConfig
from segue.methods.teacher import Teacher, TeacherNorm
from segue.methods.trust import TrustConfig, trusted
from segue.ops.augment import StrongConfig, strong
from segue.ops.losses import CriterionConfig, segmentation
from segue.ops.masking import block_mask
from segue.ops.precision import full


class OwnTeacherConfig(TrustConfig):
    """A teacher of the part's own."""

    alpha: float = Field(0.999, ge=0, lt=1)
    """Momentum; 0 is the student itself (the paper's ablation)."""
    norm: TeacherNorm = "batch"
    """Norm statistics of the teacher, see ``self_training``."""


class MaskedConsistencyConfig(PartConfig):
    """Settings of ``masked_consistency``; defaults are MIC's on DAFormer for synthetic to real."""

    weight: float = Field(1.0, ge=0)
    """Factor of the loss on masked images."""
    block_px: int = Field(32, ge=1)
    """Side of the hidden squares."""
    ratio: float = Field(0.7, ge=0, le=1)
    """Probability that a square is hidden."""
    images: Literal["target", "source", "both"] = "target"
    """Images that are masked; ``both``: source and target in turn, source with its true labels."""
    strong: StrongConfig | None = StrongConfig()
    """Colour jitter and blur before masking; null: none (clear weather to adverse, as published)."""
    teacher: OwnTeacherConfig | None = None
    """Unset: the host's pseudo-labels, or these defaults under a host that has none."""
    criterion: CriterionConfig = CriterionConfig()

    @model_validator(mode="after")
    def _labelled_by(self) -> MaskedConsistencyConfig:
        if self.images == "source" and self.teacher is not None:
            raise ValueError("masked_consistency: images: source have true labels, a teacher has no say there")
        return self


@PARTS.register("masked_consistency")
class MaskedConsistency(Part):
    """The student labels images with hidden blocks as the teacher labels whole ones (MIC)."""

    Config = MaskedConsistencyConfig
    config: MaskedConsistencyConfig

    def __init__(self, config: MaskedConsistencyConfig, host: Method) -> None:
        super().__init__(config, host)
        self.streams = {"target": ("target",), "source": ("source",), "both": ("source", "target")}[config.images]
        own = config.teacher or OwnTeacherConfig()
        needed = config.images != "source" and (config.teacher is not None or "pseudo" not in host.views)
        self.teacher = Teacher(host.model, own.alpha, own.norm) if needed else None
        self.trust = own

    def prepare(self, host: Method, streams: Mapping[str, object]) -> None:
        """The teacher starts as the student."""
        if self.teacher is not None:
            self.teacher.copy_from(host.model)

    def graphs(self, batches: Batches, host: Method, iteration: int) -> Iterator[Terms]:
        """One graph: the student on masked images."""
        batch = self._images(batches)
        output = host.model(self._masked(batch, host, iteration))
        loss = segmentation(
            output, batch.label, batch.weight, self.config.criterion, pixel=batch.pixel, denominator="pixels"
        )
        yield Terms(masked=self.config.weight * loss)

    def after_step(self, host: Method, iteration: int) -> None:
        """The teacher follows."""
        if self.teacher is not None:
            self.teacher.update(host.model, iteration + 1)

    def _images(self, batches: Batches) -> Batch:
        """What is masked, with labels and weights."""
        if self.config.images == "source":
            return batches["source"]
        target = self._labelled(batches["target"]) if self.teacher else batches["pseudo"]
        if self.config.images == "target":
            return target
        source = batches["source"]
        if source.image.shape != target.image.shape:
            sizes = " and ".join("x".join(map(str, b.image.shape[-2:])) for b in (source, target))
            raise UserError(f"part 'masked_consistency' takes images: both of one size, they are {sizes}")
        even = torch.tensor([meta.uid % 2 == 0 for meta in target.meta], device=target.image.device)
        return _either(source, target, even)

    @torch.no_grad()
    def _labelled(self, target: Batch) -> Batch:
        assert self.teacher is not None
        output = self.teacher(target.image)
        return trusted(target, output.upsample(full(output.to_classes())).softmax(1), self.trust)[0]

    @torch.no_grad()
    def _masked(self, batch: Batch, host: Method, iteration: int) -> Tensor:
        image = batch.image
        if self.config.strong is not None:
            draws = [host.draw("masked_strong", iteration, meta.uid) for meta in batch.meta]
            image = strong(image, draws, self.config.strong)
        draws = [host.draw("mask", iteration, meta.uid) for meta in batch.meta]
        seen = block_mask(draws, (image.shape[-2], image.shape[-1]), self.config.block_px, self.config.ratio)
        return torch.where(seen.unsqueeze(1).to(image.device), image, host.model.mean.to(image.dtype))


def _either(a: Batch, b: Batch, first: Tensor) -> Batch:
    """Images of ``a`` where ``first`` (N,) is true, of ``b`` elsewhere; ``meta`` of ``b``, no weight of ``a``."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(first.view(-1, *[1] * (x.ndim - 1)), x, y)

    weight = None if b.weight is None else pick(torch.ones_like(b.weight), b.weight)
    return replace(
        b, image=pick(a.image, b.image), label=pick(a.label, b.label), pixel=pick(a.pixel, b.pixel), weight=weight
    )
