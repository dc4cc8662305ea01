"""A linear head in closed form: ridge regression on one-hot labels, from sums that can be gathered in any order.

Of features h (with a 1 at the end where the head has a bias) and one-hot labels y the head minimises

    sum_pixels w_class |W h - y|^2 + lambda |W|^2,   so   W = B (A + lambda I)^-1,   A = sum w h h^T,   B = sum w y h^T.

A and B are sums over pixels: however the same labelled pixels are dealt out to batches, processes and class steps, the
head is the same but for rounding (Zhuang et al., "ACIL", NeurIPS 2022; for segmentation Li et al., "CFSSeg",
arXiv:2412.10834, 2024; both update the inverse instead of keeping A). A pixel has the features of its cell of the
network's grid, so pixels of a cell are counted, not multiplied out.

Class weights keep that property because they are functions of the final counts, which is why A is then held by class.
``ridge`` is lambda as a share of the mean of A's diagonal: it means the same for any features and number of pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segue.errors import UserError


def moments(features: Tensor, counts: Tensor, by_class: bool) -> tuple[Tensor, Tensor]:
    """sum h h^T, of all classes together (1,D,D) or of each (C,D,D), and sum y h^T (C,D), in float64.

    ``features`` (M,D) of cells; ``counts`` (M,C): pixels of each class in each cell, or their summed weights.
    """
    used = counts.sum(1) > 0
    h, n = features[used].double(), counts[used].double()
    if not by_class:
        return (h.t() @ (h * n.sum(1, keepdim=True))).unsqueeze(0), n.t() @ h
    gram = h.new_zeros(n.shape[1], h.shape[1], h.shape[1])
    for c in (n > 0).any(0).nonzero().flatten().tolist():
        mine = n[:, c] > 0
        gram[c] = h[mine].t() @ (h[mine] * n[mine, c : c + 1])
    return gram, n.t() @ h


def class_weights(counts: Tensor, balance: float) -> Tensor:
    """(C,) factor of each class's pixels: (mean count / its count)^balance, 0 for a class without pixels.

    ``balance`` 0: every pixel counts the same, 1: every class does.
    """
    seen = counts > 0
    mean = counts.sum() / seen.sum().clamp(min=1)
    return torch.where(seen, (mean / counts.clamp(min=torch.finfo(counts.dtype).tiny)) ** balance, 0.0)


def ridge_head(gram: Tensor, moment: Tensor, ridge: float, bias: bool) -> Tensor:
    """The head W (C,D) of A (D,D) and B (C,D) in float64; with ``bias`` the last feature is 1 and not penalised.

    ``UserError`` when there are no pixels, or when A is singular and ``ridge`` too small to mend it.
    """
    penalty = torch.ones_like(moment[0])
    if bias:
        penalty[-1] = 0
    diagonal = gram.diagonal()
    if not bool(diagonal.sum() > 0):
        raise UserError("no labelled pixel was seen: there is nothing to solve the head from")
    strength = ridge * (diagonal * penalty).sum() / penalty.sum()
    factor, failed = torch.linalg.cholesky_ex(gram + torch.diag(strength * penalty))
    if int(failed) or not bool(factor.isfinite().all()):
        raise UserError(f"the features do not determine a head at ridge {ridge:g}: make it larger")
    return torch.cholesky_solve(moment.t(), factor).t()
