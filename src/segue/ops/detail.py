"""Boundary ("detail") target and loss of STDC: Fan et al., "Rethinking BiSeNet for real-time semantic segmentation",
CVPR 2021, section 3.3 and eq. 4-6; numbers as in the official code.

The target fuses Laplacians of the label map at strides 1, 2 and 4: response > 0.1 is an edge, strided maps go up by
nearest neighbour, 0.6 e1 + 0.3 e2 + 0.1 e4 > 0.1 is a boundary. What that does, on purpose or not:

* 0.1 is not > 0.1: an edge at stride 4 alone never counts, and with the other two it decides nothing. The target is
  exactly e1 or e2, and that is how it is computed here.
* The official fuse weights are a parameter. Behind a threshold their gradient is zero, but weight decay shrinks them,
  so the official target drifts during training. Ours are constants.
* The Laplacian sees train ids as numbers: an edge lies on the side of the higher id, and at a corner of three classes
  responses can cancel.
* ``published``: 255 is a value like any other, so borders of unlabelled areas are boundaries; and zeros are padded
  on, so the image's frame is one wherever its class is not 0. Without ``published`` (default) a pixel whose answer
  depends on an unlabelled pixel is left out (255 here also means a region that was not bought, or a pseudo-label below
  a threshold: its border is no object's border), and the frame is continued outwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.labels import IGNORE
from segue.ops.precision import full


def detail_target(label: Tensor, pixel: Tensor, published: bool = False) -> tuple[Tensor, Tensor]:
    """Boundary (N,H,W) bool of a label map (N,H,W), and where it is known, bool. See the module's text."""
    ids = label.float().unsqueeze(1)
    unknown = (label == IGNORE) | ~pixel
    edge = torch.zeros_like(pixel)
    unsure = ~pixel if published else unknown
    for stride in (1, 2):
        edge = edge | _grow(_laplacian(ids, stride, published) > 0.1, label.shape)
        if not published:
            reach = F.max_pool2d(unknown.float().unsqueeze(1), 3, stride, 1) > 0
            unsure = unsure | _grow(reach, label.shape)
    return edge, ~unsure


def _laplacian(ids: Tensor, stride: int, published: bool) -> Tensor:
    """8 centre - 8 neighbours = 9 (centre - mean of 3x3); a pooling, because autocast would run a convolution in 16
    bits."""
    padded = F.pad(ids, (1, 1, 1, 1), mode="constant" if published else "replicate")
    return 9 * (ids[..., ::stride, ::stride] - F.avg_pool2d(padded, 3, stride))


def _grow(mask: Tensor, shape: torch.Size) -> Tensor:
    if mask.shape[-2:] == shape[-2:]:
        return mask.squeeze(1)
    return F.interpolate(mask.float(), shape[-2:], mode="nearest").squeeze(1) > 0


def detail_loss(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, *, pixel: Tensor, published: bool = False
) -> Tensor:
    """Binary cross-entropy plus dice of boundary logits (N,1,H,W) against the boundaries of ``label``, a scalar.

    BCE is summed with its weight and divided by the known pixels of each image; dice is, per image,
    1 - (2 sum w p t + 1) / (sum w p + sum w t + 1). Both are averaged over images. An image without a known pixel adds
    0 and no gradient.
    """
    if logits.shape[1] != 1:
        raise ValueError(f"a boundary head has one channel, got {logits.shape[1]}")
    target, known = detail_target(label, pixel, published)
    score = full(logits[:, 0])
    trust = known.to(score) if weight is None else known * weight.to(score)
    truth = target.to(score)
    bce = F.binary_cross_entropy_with_logits(score, truth, weight=trust, reduction="none").sum((1, 2))
    bce = bce / known.sum((1, 2)).clamp(min=1)
    p = score.sigmoid() * trust
    dice = 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + (truth * trust).sum((1, 2)) + 1)
    return (bce + dice).mean()
