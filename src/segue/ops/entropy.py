"""Entropy of predictions, per pixel and as losses for unlabelled images.

With p the softmax of C logits: weighted self-information I_c = -p_c ln p_c / ln C, a map for each class, and entropy
E = sum_c I_c in 0..1 (Vu et al., "ADVENT", CVPR 2019, sections 3.1 and 3.2). All are computed from log p in at least 32
bits, so p = 0 gives 0 with a finite gradient; ADVENT's code adds 1e-30 to p instead, which changes no digit. Fold
outputs beyond the label space away first (``Output.to_classes``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.models.base import Output
from segue.ops.picture import picture_mean
from segue.ops.precision import full


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax over its maximum, (N,C,h,w) to (N,h,w) in 0..1: -sum_c p_c ln p_c / ln C.

    ADVENT, eq. 2. ``ValueError`` for fewer than two classes.
    """
    return _surprise(logits).sum(1) / math.log(logits.shape[1])


def self_information(logits: Tensor) -> Tensor:
    """Weighted self-information of every class, (N,C,h,w) to the same: -p_c ln p_c / ln C, in 0..1/(e ln C).

    What ADVENT's discriminator looks at (section 3.2). ``ValueError`` for fewer than two classes.
    """
    return _surprise(logits) / math.log(logits.shape[1])


def mean_entropy(output: Output, logits: Tensor, pixel: Tensor) -> Tensor:
    """ADVENT's entropy loss, a scalar: the mean entropy of a level's predictions (eq. 3, its sum made a mean).

    ``logits`` (N,C,h,w) are the output's own or those of a head. They are upsampled to the image's size first, as
    published: the loss is then about the predictions that are scored, and sees the uncertain seam that interpolation
    makes between two certain cells. The logits' own grid has no seams: on smooth random logits at stride 8 its gradient
    points elsewhere (cosine 0.75), so the published weights hold here only. The price is 0.6 s instead of 2 ms for two
    images of 512x1024 with 19 classes, forwards and backwards on one CPU thread. ``pixel`` (N,H,W) bool at the image's
    size. Mean over the picture of each image, then over images.
    """
    # One image at a time on CPU: the upsampled logits then stay in the cache.
    chunk = 1 if logits.device.type == "cpu" else logits.shape[0]
    maps = [entropy(output.upsample(full(part))) for part in torch.split(logits, chunk)]
    return picture_mean(torch.cat(maps), pixel)


def robust_entropy(output: Output, pixel: Tensor, eta: float = 2.0) -> Tensor:
    """FDA's entropy term, a scalar: mean of (e^2 + 1e-8)^eta, Charbonnier penalty of the normalised entropy e.

    Yang and Soatto, "FDA", CVPR 2020, eq. 4 and 5; eta = 2 as published. Computed at the logits' own stride, before any
    upsampling, as the official code does. ``pixel`` (N,H,W) bool at the image's size: a cell counts by the share of it
    that is picture, so padding does not enter. Mean over the picture of each image, then over images.
    """
    penalty = (entropy(output.to_classes()).square() + 1e-8) ** eta
    padding = (0, output.padded[1] - output.size[1], 0, output.padded[0] - output.size[0])
    return picture_mean(penalty, F.pad(pixel.to(penalty), padding))


def _surprise(logits: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise ValueError("entropy needs at least two classes")
    log_p = F.log_softmax(full(logits), 1)
    return -(log_p.exp() * log_p)
