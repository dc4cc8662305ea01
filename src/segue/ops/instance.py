"""Similarity of pixels to a bank of class instances: DIDA's calibration and instance loss.

Two views of the same picture, weak (teacher) and strong (student), are compared with K class instances b_i; their
similarity distributions q (weak) and p (strong) over the instances should agree: L = mean of -sum_i q_i log p_i over
pixels. *Scatter* sharpens q by what the classifier thinks of each instance's class, *gather* smooths class
probabilities by the instances. The formulas are those of SimMatch (Zheng et al., CVPR 2022, eq. 3-8), brought to
segmentation by DIDA, whose released code executes something else: both forms are here, see :class:`SimilarityConfig`.

f = U(E_weak) . b and s = U(E_strong) . b at every pixel, U bilinear upsampling to the label's size. As U is linear,
U(E) . b = U(E . b): similarities are computed on the embedding's own grid and upsampled one tile after the other; loss
and gradient of a tile are added up and the tile is forgotten. No K×H×W tensor exists, forwards or backwards.

Knobs that matter: ``published``, the temperatures, ``smoothing``.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from segue.ops.bank import Bank
from segue.ops.picture import at_least_one
from segue.ops.precision import full
from segue.ops.resize import bilinear
from segue.ops.upsampling import Upsampling, tiles
from segue.settings import Settings


class SimilarityConfig(Settings):
    """How pixels are compared with instances."""

    published: bool = False
    """As DIDA's code does it: plain dot products divided by their sum. Ours: softmax of cosine / temperature."""
    weak_temperature: float = Field(default=0.1, gt=0)
    """Temperature of the teacher's similarities, unless ``published``; 0.1 in SimMatch."""
    strong_temperature: float = Field(default=0.1, gt=0)
    """Temperature of the student's similarities, unless ``published``; 0.1 in SimMatch."""
    smoothing: float = Field(default=1.0, ge=0, le=1)
    """Share of the classifier's own probabilities after gathering; 1, as in DIDA, gathers nothing. 0.9 in SimMatch."""
    epsilon: float = Field(default=1e-10, gt=0)
    """``published``: added to probabilities before the logarithm; 1e-10 in DIDA's code."""


def instance_loss(
    strong: Tensor,
    weak: Tensor,
    bank: Bank,
    scores: Tensor | None,
    similarity: SimilarityConfig,
    *,
    pixel: Tensor,
    weight: Tensor | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Cross-entropy between the instance similarities of two views, a scalar; only ``strong`` receives a gradient.

    ``strong``, ``weak`` (N,D,h,w) embeddings; ``scores`` (N,C,h',w') on any grid, the semantic factor of the scatter
    calibration, None to leave it out; ``pixel`` (N,H,W) bool and ``weight`` (N,H,W) or None set the size at which the
    loss is taken and what counts: mean over images of (sum of weight * L over the picture) / (its pixels). With z_c the
    upsampled scores and l_i the class of instance i:

    * ours: q_i = softmax(cos(E_weak, b_i) / T_weak) z_{l_i} over its sum, with z the teacher's probabilities;
      p = softmax(cos(E_strong, b_i) / T_strong); L = -sum_i q_i log p_i. Embeddings are made unit vectors on their own
      grid, so that cosines are what is upsampled. Give weight 0 where the two views do not show the same content.
    * ``published``: q_i = f_i z_{l_i} / sum_j f_j z_{l_j} with z the student's raw logits of the mixed image (signed:
      q is no distribution then); p_i = s_i / sum_j s_j; L = -sum_i q_i log(p_i + epsilon). Embeddings and bank must not
      be negative, a negative p + epsilon gives NaN. Where a sum is 0, where the code divides 0 by 0, q (or p) is 0 for
      all instances, and a pixel without any similarity passes no gradient.

    ValueError for shapes that do not fit. It cannot be differentiated twice.
    """
    _check(strong, weak, bank, pixel, weight)
    count = at_least_one(pixel.sum((1, 2), keepdim=True))
    with torch.autocast(strong.device.type, enabled=False):
        strong = _queries(strong, similarity)
        coefficient = pixel.to(strong) / (len(pixel) * count)
        if weight is not None:
            coefficient = coefficient * weight.detach()
        loss: Tensor = _InstanceLoss.apply(
            strong,
            _queries(weak.detach(), similarity).to(strong),
            _keys(bank, similarity, strong),
            None if scores is None else scores.detach().to(strong),
            coefficient.to(strong),
            similarity,
            align_corners,
        )
    return loss


def gather_instances(
    prob: Tensor, weak: Tensor, bank: Bank, similarity: SimilarityConfig, align_corners: bool = False
) -> Tensor:
    """Class probabilities smoothed by the similarities to instances of each class, (N,C,H,W) to (N,C,H,W), no gradient.

    With a = ``smoothing`` and A_c the summed weak similarity to the instances of class c at a pixel:

    * ours: a P + (1 - a) A, softmax similarities as in :func:`instance_loss`: still a distribution (SimMatch, eq. 7-8).
    * ``published``: P + (1 - a) A, sum-normalised dot products: the code adds A to P before it mixes with P, so the
      classes sum to 2 - a. A is 0 where a pixel has no similarity.
    """
    size = (prob.shape[-2], prob.shape[-1])
    prob, a = full(prob.detach()), similarity.smoothing
    if a == 1:
        return prob
    with torch.autocast(prob.device.type, enabled=False):
        weak, bank = _queries(weak.detach(), similarity).to(prob), _keys(bank, similarity, prob)
        member = _membership(bank.labels, prob)
        if similarity.published:  # sums over a class commute with upsampling: C maps instead of K
            maps = torch.einsum("cd,ndhw->nchw", member @ bank.vectors, weak)
            maps = bilinear(maps, size, align_corners)
            return prob + (1 - a) * maps / _nonzero(maps.sum(1, keepdim=True))
        result = torch.empty_like(prob)
        upsampling = Upsampling(weak, size, align_corners)
        for n in range(len(prob)):
            coarse = _similarities(bank, weak[n])
            for at in tiles(size, len(bank.labels), prob.device):
                share = torch.softmax(upsampling.tile(coarse, at) / similarity.weak_temperature, 0)
                gathered = (member @ share.flatten(1)).view(-1, *share.shape[1:])
                result[n, :, *at] = torch.lerp(gathered, prob[n, :, *at], a)
    return result


class _InstanceLoss(torch.autograd.Function):
    """The gradient is found with the loss, tile by tile, and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        strong: Tensor,
        weak: Tensor,
        bank: Bank,
        factor: Tensor | None,
        coefficient: Tensor,
        similarity: SimilarityConfig,
        align_corners: bool,
    ) -> Tensor:
        size = (coefficient.shape[-2], coefficient.shape[-1])
        upsampling = Upsampling(strong, size, align_corners)
        upsampling_factor = None if factor is None else Upsampling(factor, size, align_corners)
        tile_loss = _published if similarity.published else _softmax
        total, gradient = strong.new_zeros(()), torch.empty_like(strong) if ctx.needs_input_grad[0] else None
        for n in range(len(strong)):
            s_coarse, f_coarse = _similarities(bank, strong[n]), _similarities(bank, weak[n])
            s_gradient = torch.zeros_like(s_coarse)
            for at in tiles(size, len(bank.labels), strong.device):
                s, q = upsampling.tile(s_coarse, at), upsampling.tile(f_coarse, at)
                if not similarity.published:
                    q = q.div_(similarity.weak_temperature).softmax(0)
                if factor is not None and upsampling_factor is not None:
                    q *= upsampling_factor.tile(factor[n], at)[bank.labels]
                q /= _nonzero(q.sum(0))
                loss, slope = tile_loss(s, q, coefficient[n, *at], similarity)
                total += loss
                if gradient is not None:
                    upsampling.add_adjoint(s_gradient, slope, at)
            if gradient is not None:
                gradient[n] = (bank.vectors.t() @ s_gradient.flatten(1)).view_as(strong[n])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (outer * gradient, None, None, None, None, None, None)


# Both: similarities s, distribution q (K,r,c), coefficient (r,c) -> weighted loss, its derivative by s. s and q are
# overwritten: a tile is used once, and new memory costs more than the arithmetic.


def _published(s: Tensor, q: Tensor, coefficient: Tensor, similarity: SimilarityConfig) -> tuple[Tensor, Tensor]:
    total = s.sum(0)
    p = s.div_(_nonzero(total))
    safe = p + similarity.epsilon
    loss = -(safe.log().mul_(q).sum(0) * coefficient).sum()
    # dL/ds_i = (sum_j r_j p_j - r_i) / sum s, with r = q / (p + epsilon)
    r = q.div_(safe)
    scale = torch.where(total != 0, coefficient / _nonzero(total), 0)
    mean = p.mul_(r).sum(0)
    return loss, r.neg_().add_(mean).mul_(scale)


def _softmax(s: Tensor, q: Tensor, coefficient: Tensor, similarity: SimilarityConfig) -> tuple[Tensor, Tensor]:
    log_p = s.div_(similarity.strong_temperature).log_softmax(0)
    mass = q.sum(0)  # 1, or 0 where no instance is of a class that the teacher allows
    loss = -((log_p * q).sum(0) * coefficient).sum()
    return loss, log_p.exp_().mul_(mass).sub_(q).mul_(coefficient / similarity.strong_temperature)


def _queries(embedding: Tensor, similarity: SimilarityConfig) -> Tensor:
    embedding = full(embedding)
    return embedding if similarity.published else _unit(embedding, 1)


def _keys(bank: Bank, similarity: SimilarityConfig, like: Tensor) -> Bank:
    vectors = bank.vectors.detach().to(like)
    return bank._replace(vectors=vectors if similarity.published else _unit(vectors, 1))


def _unit(x: Tensor, dim: int) -> Tensor:
    # Not F.normalize: its derivative at a zero vector is 1e12.
    return x / at_least_one(torch.linalg.vector_norm(x, dim=dim, keepdim=True))


def _similarities(bank: Bank, embedding: Tensor) -> Tensor:
    return (bank.vectors @ embedding.flatten(1)).view(-1, *embedding.shape[1:])


def _membership(labels: Tensor, prob: Tensor) -> Tensor:
    return (torch.arange(prob.shape[1], device=labels.device).unsqueeze(1) == labels).to(prob)


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total != 0, total, 1)


def _check(strong: Tensor, weak: Tensor, bank: Bank, pixel: Tensor, weight: Tensor | None) -> None:
    if strong.shape != weak.shape:
        raise ValueError(f"strong is {tuple(strong.shape)}, weak is {tuple(weak.shape)}: they must be equal")
    if bank.vectors.shape != (len(bank.labels), strong.shape[1]):
        raise ValueError(
            f"the bank is {tuple(bank.vectors.shape)} with {len(bank.labels)} labels, "
            f"the embedding has {strong.shape[1]} channels: a bank belongs to the network that filled it"
        )
    if pixel.dtype != torch.bool:
        raise ValueError(f"pixel must be bool, got {pixel.dtype}")
    if weight is not None and weight.shape != pixel.shape:
        raise ValueError(f"weight is {tuple(weight.shape)}, pixel is {tuple(pixel.shape)}: they must be equal")
