"""The densities of classes in two domains: what comes first, what is left out and why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segue.errors import UserError
from segue.ops.density import fit_domains, log_densities
from segue.ops.mixtures import MixtureConfig

CONFIG = MixtureConfig(points_per_component=50)


def regions(shift: float, seed: int, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    classes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = torch.randn(len(classes), 3, generator=g, dtype=torch.float64) + 5 * classes[:, None]
    features[:, 0] += shift
    return features, classes


def test_what_is_dense_in_the_target_only_comes_first() -> None:
    domains = {"source": regions(0.0, 0, (300, 300)), "target": regions(2.0, 1, (300, 300))}
    fits = fit_domains(domains["source"], domains["target"], 2, CONFIG, torch.Generator().manual_seed(0))
    assert fits.skipped() == {}
    difference = {name: torch.sub(*log_densities(*domain, fits)) for name, domain in domains.items()}
    assert difference["target"].mean() < 0 < difference["source"].mean()
    for c in (0, 1):
        ranked = difference["target"][domains["target"][1] == c].argsort()
        moved = domains["target"][0][domains["target"][1] == c, 0]
        assert moved[ranked[:20]].mean() > moved.mean() + 1


def test_a_class_without_enough_regions_costs_only_itself() -> None:
    whole = (regions(0.0, 0, (120, 120, 1)), regions(1.0, 1, (120, 120, 120)))
    fits = fit_domains(*whole, 4, CONFIG, torch.Generator().manual_seed(0))
    missing = "0 points: at least 2 are needed"
    assert fits.skipped() == {
        2: "source: 1 points: at least 2 are needed",
        3: f"source: {missing}; target: {missing}",
    }
    for density in log_densities(*whole[1], fits):
        assert density[:240].isfinite().all() and density[240:].isnan().all()


def test_ids_that_are_no_class_have_no_density() -> None:
    features, classes = regions(0.0, 0, (120,))
    fits = fit_domains((features, classes), (features, classes), 1, CONFIG, torch.Generator().manual_seed(0))
    source, target = log_densities(features[:2], torch.tensor([0, 255]), fits)
    assert source.isnan().tolist() == target.isnan().tolist() == [False, True]


def test_each_domain_has_as_many_components_as_its_own_regions_allow() -> None:
    fits = fit_domains(regions(0.0, 0, (60,)), regions(0.0, 1, (210,)), 1, CONFIG, torch.Generator().manual_seed(0))
    shapes = [fit[0].mixture.weights.shape for fit in (fits.source, fits.target) if fit[0].mixture is not None]
    assert shapes == [(1,), (4,)]


def test_classes_that_do_not_fit_their_features_are_refused() -> None:
    features, classes = regions(0.0, 0, (5,))
    with pytest.raises(UserError, match=r"target: 5 features but classes of shape \(4,\)"):
        fit_domains((features, classes), (features, classes[:4]), 1, CONFIG, torch.Generator())
    with pytest.raises(UserError, match="target: 5 of 5 points are not finite"):
        fit_domains((features, classes), (features / 0, classes), 1, CONFIG, torch.Generator())
