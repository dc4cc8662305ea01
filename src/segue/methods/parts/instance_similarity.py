"""Instance similarity: the student sees a mixed image as similar to the same class instances as the teacher sees it.

DIDA (Yao & Li, 2023), of whose released code this is the corrected form, or with ``published`` what it computes; the
formulas are SimMatch's (Zheng et al., CVPR 2022), see :mod:`segue.ops.instance` and docs/dida.md. A bank of labelled
instances, embeddings of source pixels, follows training; it is the same on every device and however a batch is split.

Scatter: the teacher's class probabilities shape its similarities. Gather: similarities shape its probabilities before
they become labels. Knobs that matter: ``weight``, ``start``, ``update``, the temperatures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from segue.errors import UserError
from segue.labels import IGNORE
from segue.methods.base import Method, Terms
from segue.methods.levels import outline
from segue.methods.parts.banks import absent, instances, on_padded, read_bank
from segue.methods.parts.base import PARTS, Part, PartConfig, View
from segue.models.base import Output
from segue.ops.bank import Bank, fill, momentum_update, random_bank, replace_balanced, replace_oldest
from segue.ops.instance import SimilarityConfig, gather_instances, instance_loss
from segue.ops.precision import full

Update = Literal["balanced", "oldest", "momentum", "none"]


class InstanceSimilarityConfig(SimilarityConfig, PartConfig):
    """Settings of ``instance_similarity``; numbers are those of DIDA's code where it names one."""

    weight: float = Field(0.5, ge=0)
    """Factor of the loss."""
    size: int = Field(300, ge=1)
    """Instances in the bank; a bank from a file has as many as the file."""
    start: str | None = None
    """``fill``: empty, filled with source instances until it is full, without a loss till then. ``random``: random unit
    vectors. Else a folder of bank files (``segue bank`` makes one). Unset: ``fill``, or ``random`` as published."""
    update: Update | None = None
    """Source instances replace those of classes that own too few, then the rarest (``balanced``), or the oldest of
    their own class (``oldest``); or move all of their class (``momentum``). Unset: balanced, or momentum as published.
    """
    every_iterations: int = Field(50, ge=1)
    """Iterations from one update to the next."""
    from_iteration: int = Field(0, ge=0)
    """First iteration whose instances enter the bank."""
    momentum: float = Field(0.999, ge=0, le=1)
    """``update: momentum``: share of an instance that stays."""
    stride: int = Field(5, ge=1)
    """``update: balanced``: classes of an image that are written when none owns too few."""
    instance: Literal["mean", "boundary"] = "mean"
    """What an image gives for each of its classes: the mean embedding, or that of one pixel at a border."""
    boundary_classes: int = Field(2, ge=2, le=9)
    """``instance: boundary``: distinct classes in the 3x3 pixels around it."""
    scatter: bool = True
    """Class probabilities shape the teacher's similarities."""


class Candidates(NamedTuple):
    """What the images of a micro-batch offer the bank."""

    uid: Tensor  # (N,)
    vectors: Tensor  # (N,C,D)
    present: Tensor  # (N,C)


@PARTS.register("instance_similarity")
class InstanceSimilarity(Part):
    """Student and teacher see a picture as similar to the same instances of a labelled bank (DIDA)."""

    Config = InstanceSimilarityConfig
    config: InstanceSimilarityConfig
    views = ("source", "mixed")

    vectors: Tensor
    labels: Tensor
    used: Tensor
    seen: Tensor
    turn: Tensor
    pointer: Tensor

    def __init__(self, config: InstanceSimilarityConfig, host: Method) -> None:
        super().__init__(config, host)
        self.start = config.start or ("random" if config.published else "fill")
        self.update = config.update or ("momentum" if config.published else "balanced")
        dim, classes = outline(host.model).embedding.shape[1], len(host.labels)
        bank = Bank(torch.zeros(config.size, dim), torch.zeros(config.size, dtype=torch.int64))
        if self.start not in ("fill", "random"):
            bank = read_bank(Path(self.start).expanduser(), host.labels, dim)
            if config.published and bool((bank.vectors < 0).any()):
                raise UserError(f"bank {self.start} has negative numbers, which 'published' cannot divide by their sum")
        self.register_buffer("vectors", bank.vectors)
        self.register_buffer("labels", bank.labels)
        self.register_buffer("used", torch.tensor(0 if self.start == "fill" else len(bank.labels)))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.int64))  # images with each class
        self.register_buffer("turn", torch.zeros(classes, dtype=torch.int64))  # of ``oldest``
        self.register_buffer("pointer", torch.tensor(0))  # of ``balanced``
        self.full = False
        self.iteration = -1
        self.offered: list[Candidates] = []  # by the micro-batches of ``iteration``

    @property
    def bank(self) -> Bank:
        """The instances."""
        return Bank(self.vectors, self.labels)

    def prepare(self, host: Method, streams: Mapping[str, object]) -> None:
        """Random vectors, the same on every device; what a bank from a file lacks is told."""
        if self.start == "random":
            size, dim = self.vectors.shape
            bank = random_bank(size, dim, len(self.seen), host.draw("bank", 0), nonnegative=self.config.published)
            self.vectors.copy_(bank.vectors)
            self.labels.copy_(bank.labels)
        elif self.start != "fill" and (lacking := absent(self.bank, host.labels)):
            left_out = "" if self.config.published else "; the instance loss leaves out pixels that are labelled so"
            print(f"bank {self.start} has no instance of {', '.join(lacking)}{left_out}", file=sys.stderr)

    def calibrate(self, probability: Tensor, output: Output, host: Method) -> Tensor:
        """Gathering, unless ``smoothing`` is 1 or the bank is not full yet."""
        if self.config.smoothing == 1 or not self._is_full():
            return probability
        height, width = probability.shape[-2:]
        whole = on_padded(probability, output, 0)
        found = gather_instances(whole, self._embedding(output), self.bank, self.config, output.align_corners)
        return found[..., :height, :width]

    def terms(self, view: View, host: Method) -> Terms | None:
        """On source images instances are collected; on mixed ones there is the loss, 0 until the bank is full."""
        if view.name == "source":
            self._collect(view, host)
        if view.name != "mixed":
            return None
        logs = {"bank_filled": self.used.float() / len(self.labels)}
        if not self._is_full():
            return Terms(logs, instance_similarity=torch.zeros_like(logs["bank_filled"]))
        return Terms(logs, instance_similarity=self.config.weight * self._loss(view))

    @torch.no_grad()
    def after_step(self, host: Method, iteration: int) -> None:
        """The images of the whole batch, in order, enter the bank; as published the first alone, once it is full."""
        if not self.offered or self.iteration != iteration:
            return
        mine = Candidates(*map(torch.cat, zip(*self.offered, strict=True)))
        self.offered = []
        uid, vectors, present = (host.gather(rows) for rows in mine)
        order, filling = uid.argsort(), not self._is_full()
        if self.config.published and not filling:
            order = order[:1]
        for means, here in zip(vectors[order], present[order], strict=True):
            self.seen += here
            if filling:
                self._fill(means, here)
            else:
                self._update(means, here)

    def _loss(self, view: View) -> Tensor:
        output, batch, teacher = view.output, view.batch, view.teacher
        assert teacher is not None and view.pasted is not None and batch.weight is not None
        published = self.config.published
        weight = scores = None
        if not published:
            # Where both views show the same content, and the class that it is taken for has instances.
            known = torch.zeros(IGNORE + 1, dtype=torch.bool, device=self.labels.device)
            known.index_fill_(0, self.labels, True)
            weight = on_padded(batch.weight * (known[batch.label] & ~view.pasted), output, 0)
        if self.config.scatter:
            scores = full((output if published else teacher).to_classes().detach())
            scores = scores if published else scores.softmax(1)
        return instance_loss(
            self._embedding(output),
            self._embedding(teacher),
            self.bank,
            scores,
            self.config,
            pixel=on_padded(batch.pixel, output, False),
            weight=weight,
            align_corners=output.align_corners,
        )

    def _embedding(self, output: Output) -> Tensor:
        # As published they come from a ReLU, and so this changes nothing; those of other networks can be negative.
        embedding = output.embedding
        return torch.where(embedding < 0, 0, embedding) if self.config.published else embedding

    @torch.no_grad()
    def _collect(self, view: View, host: Method) -> None:
        config, batch, iteration = self.config, view.batch, view.iteration
        if self.iteration != iteration:  # the step before may have been skipped
            self.offered, self.iteration = [], iteration
        due = iteration % config.every_iterations == 0 and self.update != "none"
        if iteration < config.from_iteration or not (due or not self._is_full()):
            return
        uids = [meta.uid for meta in batch.meta]
        draws = None
        if config.instance == "boundary":
            draws = [host.draw("boundary", iteration, uid) for uid in uids]
        label = batch.label.masked_fill(~batch.pixel, IGNORE)
        embedding, number = self._embedding(view.output), len(self.seen)
        found = instances(embedding, label, view.output, number, draws, config.boundary_classes)
        self.offered.append(Candidates(torch.tensor(uids, device=label.device), *found))

    def _is_full(self) -> bool:
        if not self.full:  # every such question waits for the device
            self.full = bool(self.used == len(self.labels))
        return self.full

    def _fill(self, means: Tensor, present: Tensor) -> None:
        classes = torch.arange(len(present), device=present.device)
        (self.vectors, self.labels), used = fill(self.bank, self.used, means, classes, present)
        self.used = used.clamp(max=len(self.labels))

    def _update(self, means: Tensor, present: Tensor) -> None:
        bank, config = self.bank, self.config
        if self.update == "momentum":
            bank = momentum_update(bank, means, present, config.momentum, config.published)
        elif self.update == "oldest":
            bank, self.turn = replace_oldest(bank, self.turn, means, present)
        else:
            rarest = self.seen.argsort(stable=True)
            bank, self.pointer = replace_balanced(bank, self.pointer, means, present, rarest, config.stride)
        self.vectors, self.labels = bank
