"""What scores say of every pixel: the most likely class, its probability, and the entropy, from one softmax.

With z the logits, m the largest and S = sum_c exp(z_c - m): confidence 1 / S and entropy, in nats,
H = ln S - sum_c (z_c - m) exp(z_c - m) / S, which is -sum_c p_c ln p_c without a logarithm for each class. Weak labels
of the vDNA project (DLL, 2024) take the logarithm of p + 1e-10, which changes H by less than C 1e-10.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Decision(NamedTuple):
    """Of (C, ...) scores: ``winner`` (...) int64, the lower class of equal ones; ``confidence``, ``entropy`` (...)."""

    winner: Tensor
    confidence: Tensor
    entropy: Tensor


def decide(scores: Tensor, *, probabilities: bool = False) -> Decision:
    """Class, probability and entropy in nats from (C, ...) logits, or from probabilities that add up to 1.

    Confidence and entropy stay within what probabilities allow, whatever the rounding: at most 1, and not below 0.
    """
    best, winner = scores.max(0)
    if probabilities:
        return Decision(winner, best.clamp(max=1), torch.special.entr(scores).sum(0).clamp_(min=0))
    below = scores - best
    parts = below.exp()
    total = parts.sum(0)
    entropy = total.log().sub_(parts.mul_(below).sum(0).div_(total))
    return Decision(winner, total.reciprocal(), entropy.clamp_(min=0))
