"""Losses that keep old classes while new ones are learned from labels of the new ones alone.

Everywhere: K old classes come first, n_s >= K outputs in all; z student's and t teacher's logits of one pixel,
p = softmax(z), q = softmax(t / T). Knowledge distillation is -sum_c q_c log r_c, and methods differ in what r, the
student's word on the K old classes, is:

* ``all``: r_c = softmax(z / T)_c over all n_s outputs, so that r of a new class is driven to 0. CIL (Klingner et al.,
  "Class-Incremental Learning for Semantic Segmentation Re-Using Neither Old Data Nor Old Labels", ITSC 2020).
* ``old``: softmax over the old outputs only; says nothing about old against new. LwF (Li and Hoiem, ECCV 2016) as in
  the comparisons of MiB; also the form of MiB where there is no background.
* ``background``: as ``all``, but r_0 = p_0 + sum of the new p: what the teacher calls background may be a class that is
  new. MiB (Cermelli et al., "Modeling the Background", CVPR 2020, eq. 7).

Beside the student's log-softmax only maps of K channels are made, no masks of n_s channels and no one-hot targets
(six times 11x192x640, K = 5, one CPU thread: 40 ms forwards and backwards).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from segue.models.base import Head, Output
from segue.ops.picture import at_least_one
from segue.ops.precision import full
from segue.ops.resize import bilinear

Among = Literal["all", "old", "background"]


def distillation(
    student: Tensor, teacher: Tensor, among: Among, temperature: float = 1.0, entropy_weight: float = 0.0
) -> Tensor:
    """w * -sum_c q_c log r_c at every pixel: (N,n_s,h,w) and (N,K,h,w) logits to (N,h,w).

    w = 1 + entropy_weight * E with E = -sum_c q_c log2 q_c in bits, 0 to log2 K (CIL; 0 log 0 = 0). No graph to the
    teacher. ``ValueError`` when the teacher has more outputs than the student.
    """
    old = teacher.shape[1]
    if student.shape[1] < old:
        raise ValueError(f"the teacher has {old} outputs, the student only {student.shape[1]}")
    # Where q is 0 its logarithm may be -inf; the smallest number instead makes their product 0.
    log_q = _cooled(teacher.detach().to(student), temperature).log_softmax(1).clamp_(min=torch.finfo(student.dtype).min)
    q = log_q.exp()
    loss = -(q * _log_r(_cooled(student, temperature), old, among)).sum(1)
    if entropy_weight == 0:
        return loss
    bits = (q * log_q).sum(1) / -math.log(2)
    return loss * (1 + entropy_weight * bits)


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _log_r(z: Tensor, old: int, among: Among) -> Tensor:
    if among == "old":
        return z[:, :old].log_softmax(1)
    log_p = z.log_softmax(1)
    if among == "all" or z.shape[1] == old:
        return log_p[:, :old]
    background = torch.cat([log_p[:, :1], log_p[:, old:]], 1).logsumexp(1, keepdim=True)
    return torch.cat([background, log_p[:, 1:old]], 1)


def at_pixels(
    student: Output, teacher: Output, size: tuple[int, int], loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``loss`` of both outputs' logits upsampled to ``size`` (H,W), (N,H,W); the teacher's fold to its classes."""
    # One image at a time on CPU: what is made of its logits then stays in the cache.
    chunk = 1 if student.logits.device.type == "cpu" else len(student.logits)
    rows = zip(torch.split(student.logits, chunk), torch.split(teacher.to_classes(), chunk), strict=True)
    return torch.cat([loss(student.upsample(full(z), size), teacher.upsample(full(t), size)) for z, t in rows])


def mean_over(values: Tensor, chosen: Tensor, count: Tensor) -> Tensor:
    """Sum of (N,H,W) values where ``chosen`` (N,H,W) bool, over ``count``; 0, with zero gradient, when none is.

    ``count`` is the number of chosen pixels of the global batch, so the result does not depend on how that is split.
    """
    return torch.where(chosen, values, 0.0).sum() / at_least_one(count)


def merged_old(logits: Tensor, old: int) -> Tensor:
    """(N,C,h,w) to (N,1+C-old,h,w): the first ``old`` outputs as one, whose probability is the sum of theirs."""
    return torch.cat([logits[:, :old].logsumexp(1, keepdim=True), logits[:, old:]], 1)


def old_as_one(output: Output, old: int, size: tuple[int, int]) -> Output:
    """The output, and its heads', with the old classes merged at the resolution of labels of ``size`` (H,W).

    Cross-entropy on it with label 0 for "one of the old classes" and 1, 2, … for the new ones is MiB's unbiased one
    (Cermelli et al., eq. 5). A head that saw a window is merged on its own grid.
    """

    def merged(logits: Tensor) -> Tensor:
        return merged_old(bilinear(full(logits), output.covered(size), output.align_corners), old)

    def head(given: Head) -> Head:
        if given.target != "classes":
            return given
        logits = merged(given.logits) if given.window is None else merged_old(full(given.logits), old)
        return replace(given, logits=logits)

    return replace(output, logits=merged(output.logits), heads=tuple(head(h) for h in output.heads))
