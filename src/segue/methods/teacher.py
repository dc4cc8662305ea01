"""Mean teacher: a copy of the student whose weights follow by an exponential moving average.

Tarvainen & Valpola, NeurIPS 2017; schedule alpha_t = min(1 - 1/(t+1), alpha) as in DACS (Tranheden et al., WACV 2021).
The norm policy is named because published systems differ silently: DACS and DAFormer run the teacher on batch
statistics and never average its buffers.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from segue.models.base import Output, SegModel
from segue.models.trained import BATCH_NORM, FIXED_STATISTICS

TeacherNorm = Literal["batch", "copy", "average"]


class Teacher(nn.Module):
    """``forward`` predicts without a graph. Dropout and stochastic depth are always off.

    ``norm``: ``batch`` = statistics of the batch it sees (as published); ``copy`` = running statistics of the student;
    ``average`` = running statistics averaged like the weights.
    """

    def __init__(self, student: SegModel, alpha: float, norm: TeacherNorm) -> None:
        super().__init__()
        self.network = copy.deepcopy(student)
        self.network.requires_grad_(False)
        self.alpha = alpha
        # A student whose statistics are frozen has a teacher with the same frozen statistics.
        self.norm = "copy" if student.config.norm in FIXED_STATISTICS else norm
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """The teacher never trains; only its batch norms may look at the batch."""
        super().train(False)
        if self.norm == "batch":
            for module in self.network.modules():
                if isinstance(module, BATCH_NORM):
                    module.train()
        return self

    @torch.no_grad()
    def forward(self, image: Tensor) -> Output:
        """(N,3,H,W) float 0..1 to the teacher's output, no graph."""
        output: Output = self.network(image)
        return output

    @torch.no_grad()
    def copy_from(self, student: SegModel) -> None:
        """Become the student."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def update(self, student: SegModel, step: int) -> None:
        """Follow after optimiser step ``step`` (1-based): theta <- alpha_t theta + (1 - alpha_t) student."""
        rate = 1 - min(1 - 1 / (step + 1), self.alpha)
        mine: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(mine, theirs, rate)
        if self.norm == "batch":
            return
        for own, new in zip(self.network.buffers(), student.buffers(), strict=True):
            if self.norm == "average" and own.is_floating_point():
                own.lerp_(new, rate)
            else:
                own.copy_(new)
