"""Losses and accuracy of a domain classifier: which of two domains does a map come from?

Its labels are 0 for source and 1 for target (Tsai et al., "AdaptSegNet", CVPR 2018, eq. 2 and 4). A prediction is a
logit (``vanilla``) or the label itself (``least_squares``). A cell counts by the share of it that is picture.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.ops.picture import picture_mean
from segue.ops.precision import full

SOURCE = 0.0
TARGET = 1.0
DomainLoss = Literal["vanilla", "least_squares"]
CHANCE = {"vanilla": math.log(2), "least_squares": 0.25}
"""Loss of the best classifier that cannot tell the domains apart: it answers 1/2."""
BOUNDARY = {"vanilla": 0.0, "least_squares": 0.5}
"""Predictions above it say target."""


def domain_loss(prediction: Tensor, domain: float, pixel: Tensor, kind: DomainLoss = "vanilla") -> Tensor:
    """How far predictions (N,1,h,w) are from a domain's label, a scalar, in at least 32 bits.

    ``vanilla``: binary cross-entropy of logits, ln(1 + e^z) - y z (AdaptSegNet, ADVENT); ``least_squares``: (z - y)^2
    (Mao et al., "LSGAN", ICCV 2017, with labels 0 and 1). ``pixel`` (N,H,W) bool. Mean over the picture of each image,
    then over images.
    """
    z = full(prediction).squeeze(1)
    loss = (z - domain).square() if kind == "least_squares" else F.softplus(z) - domain * z
    return picture_mean(loss, pixel)


def discriminator_loss(
    source: Tensor, target: Tensor, pixels: tuple[Tensor, Tensor], kind: DomainLoss = "vanilla"
) -> Tensor:
    """Mean of both domains' losses: 0.5 loss(source, 0) + 0.5 loss(target, 1), so that chance is ``CHANCE``."""
    ours, theirs = pixels
    return 0.5 * domain_loss(source, SOURCE, ours, kind) + 0.5 * domain_loss(target, TARGET, theirs, kind)


@torch.no_grad()
def balanced_accuracy(
    source: Tensor, target: Tensor, pixels: tuple[Tensor, Tensor], kind: DomainLoss = "vanilla"
) -> Tensor:
    """Share of right predictions (N,1,h,w), a mean of both domains' shares: 0.5 is chance, whatever the classifier."""
    says_target = [
        picture_mean((full(z).squeeze(1) > BOUNDARY[kind]).float(), pixel)
        for z, pixel in zip((source, target), pixels, strict=True)
    ]
    return 0.5 * (1 - says_target[0] + says_target[1])
