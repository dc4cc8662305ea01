"""What the density difference of D2ADA is made of: log p_S(z|c) and log p_T(z|c) of regions.

Wu et al., "D2ADA: Dynamic Density-aware Active Domain Adaptation for Semantic Segmentation", ECCV 2022:
KL(p_T(z,c) || p_S(z,c)) = KL(p_T(c) || p_S(c)) + E_{p_T(c)} KL(p_T(z|c) || p_S(z|c)), so labelling regions that are
dense in the target and sparse in the source reduces the second term. p(z|c) is a Gaussian mixture of the features of
the regions predicted as c, one a domain (:mod:`segue.ops.mixtures`); features of both domains must be projected alike.

In D2ADA's code a source class of fewer regions than components loses the fits of all classes, or takes those of the
last round. Here each domain has the components that its own regions allow, and a class that cannot be fitted is left
out with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.errors import UserError
from segue.ops.mixtures import Fit, MixtureConfig, check_points, fit_mixtures


@dataclass(frozen=True)
class DomainFits:
    """For each class c, what became of the mixtures of its regions: ``source[c]`` and ``target[c]``."""

    source: list[Fit]
    target: list[Fit]

    def skipped(self) -> dict[int, str]:
        """Classes without a score, because one of their mixtures is missing, and why."""
        pairs = {"source": self.source, "target": self.target}
        reasons: dict[int, str] = {}
        for domain, fits in pairs.items():
            for c, fit in enumerate(fits):
                if fit.mixture is None:
                    reasons[c] = "; ".join(filter(None, [reasons.get(c), f"{domain}: {fit.reason}"]))
        return reasons


def fit_domains(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    num_classes: int,
    config: MixtureConfig,
    generator: torch.Generator,
) -> DomainFits:
    """Mixtures of every class in both domains, each with as many components as its own regions allow.

    A domain is its regions' features (N,d), of the same projection in both, and classes (N,) int64; ids outside
    0..num_classes-1 are left out. UserError: features that are not finite, shapes that do not fit.
    """
    sets = []
    for name, (features, classes) in {"source": source, "target": target}.items():
        if classes.shape != features.shape[:1]:
            raise UserError(f"{name}: {len(features)} features but classes of shape {tuple(classes.shape)}")
        check_points(features, name, source[0].shape[-1])
        sets += [features[classes == c] for c in range(num_classes)]
    fits = fit_mixtures(sets, config, generator)
    return DomainFits(fits[:num_classes], fits[num_classes:])


def log_densities(features: Tensor, classes: Tensor, fits: DomainFits) -> tuple[Tensor, Tensor]:
    """log p_S(z|c) and log p_T(z|c) in nats of regions (N,d) of classes (N,), each (N,) float64.

    NaN in both for regions of a class that has not both mixtures. D2ADA wants the lowest difference p_S - p_T first.
    """
    source, target = (features.new_full((len(features),), math.nan, dtype=torch.float64) for _ in range(2))
    for c, (ours, theirs) in enumerate(zip(fits.source, fits.target, strict=True)):
        mine = (classes == c).nonzero().squeeze(1)
        if ours.mixture is not None and theirs.mixture is not None:
            source[mine] = ours.mixture.log_density(features[mine])
            target[mine] = theirs.mixture.log_density(features[mine])
    return source, target
