"""Supervised losses of an :class:`Output`.

:func:`segmentation` is the one way a method computes a supervised loss. Every sum is over pixels and is divided by a
number that does not depend on how the global batch is split; nothing becomes NaN when nothing is labelled.

Knobs that matter: ``CriterionConfig.name``, ``class_weights``, and ``denominator`` of :func:`segmentation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from segue.labels import IGNORE
from segue.models.base import Head, Output
from segue.ops.detail import detail_loss
from segue.ops.picture import at_least_one
from segue.ops.precision import full
from segue.ops.resize import bilinear
from segue.settings import Settings


class CriterionConfig(Settings):
    """The loss of one labelled pixel, and which pixels count."""

    name: Literal["cross_entropy", "focal", "ohem"] = "cross_entropy"
    """``cross_entropy``; ``focal`` (Lin et al., ICCV 2017); ``ohem``: only the hard pixels of each image."""
    gamma: float = Field(default=2.0, ge=0)
    """``focal``: exponent of (1 - p); 2 is the paper's choice (table 1b)."""
    ohem_threshold: float = Field(default=0.7, gt=0, lt=1)
    """``ohem``: a pixel is hard when its true class has less probability than this; 0.7 in STDC and BiSeNet."""
    ohem_min_share: float = Field(default=1 / 16, gt=0, le=1)
    """``ohem``: at least this share of the picture's pixels is kept; 1/16 in STDC."""
    class_weights: tuple[float, ...] | None = None
    """Factor of each class's pixels. The denominator stays a count of pixels, unlike torch's weighted mean."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (Szegedy et al., CVPR 2016)."""
    published_detail: bool = False
    """Boundary heads: the official STDC target, with its quirks, see :func:`segue.ops.detail.detail_target`."""

    @model_validator(mode="after")
    def _no_smooth_focal(self) -> CriterionConfig:
        if self.name == "focal" and self.label_smoothing:
            raise ValueError("label_smoothing has no meaning for focal: (1 - p) needs one true class")
        return self


CROSS_ENTROPY = CriterionConfig()
Denominator = Tensor | Literal["pixels"]


@dataclass(frozen=True)
class _Truth:
    """What logits are compared with; ``count`` is None when the denominator is the picture's own pixels."""

    label: Tensor
    pixel: Tensor
    weight: Tensor | None
    count: Tensor | None


def segmentation(
    output: Output,
    label: Tensor,
    weight: Tensor | None = None,
    criterion: CriterionConfig = CROSS_ENTROPY,
    *,
    pixel: Tensor,
    denominator: Denominator,
) -> Tensor:
    """output.weight times the loss of the main logits plus head.weight times that of every head, a scalar.

    ``label`` (N,H,W) int64, 255 = not labelled; ``weight`` (N,H,W) float or None; ``pixel`` (N,H,W) bool. Logits are
    upsampled to the label's size, in float32 (float64 when they are). With S = sum of weight * loss over labelled
    pixels of the picture:

    * ``denominator=batch.label_count``: S / label_count. **For given labels.** A head that saw a window divides by
      label_count times the window's share of the image.
    * ``denominator="pixels"``: mean over images of S_i / (real pixels of image i). **For pseudo-labels**: an image with
      few confident pixels then weighs little (DACS, eq. 4).

    There is no default because the wrong one trains, quietly, at another strength. ``criterion.name="ohem"`` divides by
    the pixels it keeps, image by image, and by the number of images, whichever denominator is given. Boundary heads
    use :func:`segue.ops.detail.detail_loss`, a mean over the pixels of each image.
    """
    truth = _truth(label, pixel, weight, denominator)
    total = output.weight * _class_loss(output, output.logits, truth, criterion, windowed=False)
    for head in output.heads:
        total = total + head.weight * _head_loss(output, head, truth, criterion)
    return total


def _truth(label: Tensor, pixel: Tensor, weight: Tensor | None, denominator: Denominator) -> _Truth:
    for name, tensor in (("pixel", pixel), ("weight", weight)):
        if tensor is not None and tensor.shape != label.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, label is {tuple(label.shape)}: they must be equal")
    if pixel.dtype != torch.bool:
        raise ValueError(f"pixel must be bool, got {pixel.dtype}")
    if isinstance(denominator, Tensor):
        if denominator.numel() != 1:
            raise ValueError(f"denominator must be one number, batch.label_count, got {tuple(denominator.shape)}")
        return _Truth(label, pixel, weight, denominator.detach().reshape(()))
    if denominator != "pixels":
        raise ValueError(f"denominator must be batch.label_count (a tensor) or 'pixels', got {denominator!r}")
    return _Truth(label, pixel, weight, None)


def _head_loss(output: Output, head: Head, truth: _Truth, criterion: CriterionConfig) -> Tensor:
    windowed = head.window is not None
    if head.window is not None:
        truth, logits = _window(output, head.logits, head.window, truth)
    else:
        logits = head.logits
    if head.target == "classes":
        return _class_loss(output, logits, truth, criterion, windowed)
    upsampled = full(logits) if windowed else output.upsample(full(logits), _size(truth.label))
    return detail_loss(upsampled, truth.label, truth.weight, pixel=truth.pixel, published=criterion.published_detail)


def _window(output: Output, logits: Tensor, window: tuple[int, int, int, int], truth: _Truth) -> tuple[_Truth, Tensor]:
    """Truth inside the window, and the window's logits at the label's resolution, without what lies beyond it."""
    height, width = _size(truth.label)
    down, right = height / output.size[0], width / output.size[1]
    top, left = round(window[0] * down), round(window[1] * right)
    rows, columns = round(window[2] * down), round(window[3] * right)
    upsampled = bilinear(full(logits), (rows, columns), output.align_corners)
    at = (..., slice(top, top + rows), slice(left, left + columns))
    label = truth.label[at]
    share = label.shape[-2] * label.shape[-1] / (height * width)
    inside = replace(
        truth,
        label=label,
        pixel=truth.pixel[at],
        weight=None if truth.weight is None else truth.weight[at],
        count=None if truth.count is None else truth.count * share,
    )
    return inside, upsampled[..., : label.shape[-2], : label.shape[-1]]


def _class_loss(output: Output, logits: Tensor, truth: _Truth, criterion: CriterionConfig, windowed: bool) -> Tensor:
    label = truth.label.masked_fill(~truth.pixel, IGNORE)
    # One image at a time on CPU: the upsampled logits then stay in the cache from interpolation to log-softmax
    # (8x19x16x32 to 128x256 on one thread with ops.resize: 20 ms against 38 ms, forward and backward).
    chunk = 1 if logits.device.type == "cpu" else logits.shape[0]
    parts = []
    for small, target in zip(torch.split(logits, chunk), torch.split(label, chunk), strict=True):
        upsampled = small if windowed else output.upsample(full(small), _size(label))
        parts.append(pixel_losses(upsampled, target, criterion))
    loss = torch.cat(parts)
    if criterion.name == "ohem":
        return _hard_mean(loss, label != IGNORE, truth, criterion)
    if truth.weight is not None:
        loss = loss * truth.weight
    if truth.count is not None:
        return loss.sum() / at_least_one(truth.count)
    return (loss.sum((1, 2)) / at_least_one(truth.pixel.sum((1, 2)))).mean()


def pixel_losses(logits: Tensor, label: Tensor, criterion: CriterionConfig = CROSS_ENTROPY) -> Tensor:
    """Loss of every pixel, (N,C,H,W) and (N,H,W) to (N,H,W) in at least 32 bits; 0, with zero gradient, at label 255.

    Cross-entropy -a_y log p_y with label smoothing, or focal -a_y (1 - p_y)^gamma log p_y (Lin et al., eq. 5), a the
    class weights. For ``ohem`` this is its cross-entropy before the choice of pixels.
    """
    alpha = None
    if criterion.class_weights is not None:
        alpha = torch.tensor(criterion.class_weights, dtype=full(logits).dtype, device=logits.device)
        if len(alpha) != logits.shape[1]:
            raise ValueError(f"class_weights has {len(alpha)} values, the logits have {logits.shape[1]} classes")
    loss = F.cross_entropy(
        full(logits),
        label,
        alpha if criterion.name != "focal" else None,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=criterion.label_smoothing,
    )
    if criterion.name != "focal":
        return loss
    # 1 - p from log p without cancellation; the floor keeps the power's gradient finite for gamma < 1 and p = 1.
    loss = loss * (-torch.expm1(-loss)).clamp(min=1e-7) ** criterion.gamma
    return loss if alpha is None else loss * F.pad(alpha, (0, 256 - len(alpha)))[label]


def _hard_mean(loss: Tensor, labelled: Tensor, truth: _Truth, criterion: CriterionConfig) -> Tensor:
    """OHEM per image: mean over the kept pixels of each image, then over images.

    Kept are losses above -ln(threshold), and never fewer than the n_min = share * picture pixels largest (fewer where
    fewer are labelled; all of a tie). STDC does this over the whole batch of one device, so its choice depends on how
    a batch is split; it also fills up with ignored pixels of loss 0 where fewer than n_min are labelled, we do not.
    """
    if truth.weight is not None:
        labelled = labelled & (truth.weight > 0)
    flat = torch.where(labelled, loss.detach(), -1.0).flatten(1)
    most = max(1, int(flat.shape[1] * criterion.ohem_min_share))
    wanted = (truth.pixel.sum((1, 2)) * criterion.ohem_min_share).long().clamp(1, most)
    smallest = flat.topk(most).values.gather(1, wanted.unsqueeze(1).sub(1)).view(-1, 1, 1)
    # Either more than n_min exceed the threshold, then `smallest` does too, or the n_min largest are kept.
    keep = labelled & ((loss > -math.log(criterion.ohem_threshold)) | (loss >= smallest))
    kept = loss * keep if truth.weight is None else loss * keep * truth.weight
    return (kept.sum((1, 2)) / at_least_one(keep.sum((1, 2)))).mean()


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]
