"""PLOP's pseudo-labels: which predictions of the old model are certain enough to be taught as labels.

Douillard et al., "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR 2021, section 3.3: with
u the old model's entropy at an unlabelled pixel and c its class there, the pixel is taught c when u < tau_c, the median
of u over the unlabelled pixels of that class in the step's images, found from a histogram.

The shipped code differs from the paper, and ``published`` reproduces it. Its u is the entropy over ln K, divided once
more by K (a mean over the K old classes) and by ln of all classes, so that nearly every pixel falls into the first of
100 bins; and its search for the median adds bin numbers instead of pixels. What comes out is 0.005 to 0.01 for a class
with half of its pixels in the first bin, else often infinity, which accepts everything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segue.models.base import Output
from segue.ops.entropy import entropy
from segue.ops.precision import full

BINS = 1000
"""A bin is as wide as the published floor of thresholds, below which no median matters."""
PUBLISHED_BINS = 100


def uncertainty(logits: Tensor, all_classes: int | None = None) -> Tensor:
    """Entropy of the old model's K classes over ln K, (N,K,h,w) to (N,h,w) in 0..1; 0 for a single class.

    With ``all_classes``, the number of old and new ones, the shipped code's: divided by K and ln ``all_classes`` too.
    """
    classes = logits.shape[1]
    if classes == 1:
        return torch.zeros_like(logits[:, 0])
    u = entropy(logits)
    return u if all_classes is None else u / (classes * math.log(all_classes))


def predicted(output: Output, size: tuple[int, int], all_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """The old model's class and :func:`uncertainty` at every pixel of ``size`` (H,W), (N,H,W) each."""
    label, u = [], []
    # One image at a time on CPU: what is made of its logits then stays in the cache.
    logits = output.to_classes()
    for part in torch.split(logits, 1 if logits.device.type == "cpu" else len(logits)):
        upsampled = output.upsample(full(part), size)
        label.append(upsampled.argmax(1))
        u.append(uncertainty(upsampled, all_classes))
    return torch.cat(label), torch.cat(u)


def histogram(label: Tensor, u: Tensor, classes: int, bins: int) -> Tensor:
    """Pixels of each class in each of ``bins`` equal bins of u on 0..1, two (n,) tensors to (classes,bins) int64."""
    place = (u * bins).long().clamp(0, bins - 1)
    return torch.bincount(label * bins + place, minlength=classes * bins).view(classes, bins)


def medians(counts: Tensor) -> Tensor:
    """The median of every row of a histogram on 0..1, (K,bins) to (K,) float64, linear in its bin; 0 for empty rows."""
    counts = counts.cpu().double()
    total, reached = counts.sum(1, keepdim=True), counts.cumsum(1)
    at = (2 * reached >= total).int().argmax(1, keepdim=True)
    inside = counts.gather(1, at)
    before = reached.gather(1, at) - inside
    median = (at + (total / 2 - before) / inside.clamp(min=1)) / counts.shape[1]
    return torch.where(total > 0, median, 0.0).squeeze(1)


def published_medians(counts: Tensor) -> Tensor:
    """What the shipped code takes for the median of every row, (K,bins) to (K,) float64; 0 for empty rows.

    It stops at the first bin k with r <= half <= r + n, where r = 0 + 1 + … + (k - 1), the sum of bin numbers, stands
    in for the number of pixels before the bin, and n is the bin's count (by rounding, for three bins of 100, that of
    the one before). Where it never stops it ends with the last bin and r = 0 + … + (bins - 1).
    """
    bins = counts.shape[1]
    number = torch.arange(bins, dtype=torch.float64)
    n = counts.cpu().double()[:, (number / bins * bins).long()]
    half = counts.cpu().sum(1, keepdim=True).double() / 2
    r = (number * (number - 1) / 2).expand_as(n)
    stops = (r <= half) & (half <= r + n)
    found = stops.any(1, keepdim=True)
    at = torch.where(found, stops.int().argmax(1, keepdim=True), bins - 1)
    running = torch.where(found, r.gather(1, at), bins * (bins - 1) / 2)
    median = at / bins + (half - running) / n.gather(1, at) / bins
    return torch.where(half > 0, median, 0.0).squeeze(1)
