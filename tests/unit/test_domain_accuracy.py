"""Does a discriminator learn where there is something to learn, and nothing where there is not?

A fixed small network predicts generated scenes; the method's own discriminator graph is trained on a stream in which no
image comes twice, and judged on images of which none was trained on. The network is random: what it answers differs
between the domains only because the images do.

The unit is an image, since the cells of one image are correlated. With n images a domain, an image's share of right
cells in 0..1 deviates by at most 1/2, so the balanced accuracy of a discriminator that knows nothing has a standard
deviation of at most 0.5 sqrt(2/4/n) = 0.0167 for n = 450, and 0.05 is three of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from segue.data import scenes
from segue.labels import load_space
from segue.methods.adversarial import Adversarial, AdversarialConfig
from segue.methods.levels import without_graph
from segue.models.base import Output, SegModel
from segue.models.build import build_model
from segue.ops import domains

pytestmark = pytest.mark.slow  # half a minute of rendering and training

SIZE = (64, 64)
BATCH = 4
ITERATIONS = 40
HELD_OUT = 450
PART = 50
OTHER = 1_000_000
"""First seed of a second set of scenes of the same domain."""


def images(domain: str, first: int, count: int) -> Tensor:
    given = scenes.domain(domain)
    rendered = [scenes.render(given, seed, SIZE).image for seed in range(first, first + count)]
    return torch.stack([torch.from_numpy(image) for image in rendered]).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def network() -> SegModel:
    """A random network with batch statistics of both domains, in which every class wins somewhere."""
    torch.manual_seed(2)
    built = build_model({"name": "bisenet", "width": 0.125}, 19).train()
    both = torch.cat([images(name, 500_000, 32) for name in ("game", "city")])
    with torch.no_grad():
        for _ in range(4):
            built(both)
        for parameter in built.classifiers()["head.classifier"].parameters():
            parameter.mul_(5)
    return built.eval()


@pytest.fixture(scope="module")
def predicted(network: SegModel) -> Callable[[str, int, int], Output]:
    """Predictions of ``count`` scenes from a seed on, worked out once."""
    known: dict[tuple[str, int], Output] = {}

    def get(domain: str, first: int, count: int) -> Output:
        if (domain, first) not in known:
            with torch.no_grad():
                known[domain, first] = without_graph(network(images(domain, first, count)))
        return known[domain, first]

    return get


def cut(output: Output, first: int, count: int) -> tuple[Output, Tensor]:
    logits = output.logits[first : first + count]
    return replace(output, logits=logits), torch.ones(len(logits), *SIZE, dtype=torch.bool)


def held_out_accuracy(network: SegModel, train: tuple[Output, Output], fresh: tuple[Output, Output]) -> float:
    """Balanced accuracy on fresh predictions of (source, target) after training on others, each seen once."""
    torch.manual_seed(0)
    method = Adversarial(AdversarialConfig(name="adversarial"), network, load_space("cityscapes19"), {})
    optimizer = torch.optim.Adam(method.discriminator.parameters(), betas=(0.9, 0.99), fused=True)
    for k in range(ITERATIONS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - k / ITERATIONS)
        (source, ours), (target, theirs) = (cut(output, BATCH * k, BATCH) for output in train)
        optimizer.zero_grad()
        method.discriminate("main", (source, target), (ours, theirs))["discriminator_main"].backward()
        optimizer.step()
    total = 0.0
    with torch.no_grad():
        for k in range(0, len(fresh[0].logits), PART):
            (source, ours), (target, theirs) = (cut(output, k, PART) for output in fresh)
            logs = method.discriminate("main", (source, target), (ours, theirs)).logs
            total += float(logs["domain_accuracy_main"]) * len(ours)
    return total / len(fresh[0].logits)


Predicted = Callable[[str, int, int], Output]
TRAIN = BATCH * ITERATIONS
FRESH = 20_000


def two_domains(predicted: Predicted) -> tuple[tuple[Output, Output], tuple[Output, Output]]:
    """Predictions to train on and fresh ones, each of (source, target)."""
    fresh, _ = cut(predicted("game", FRESH, HELD_OUT), 0, 100)
    return (predicted("game", 0, TRAIN), predicted("city", 0, TRAIN)), (fresh, predicted("city", FRESH, 100))


def test_two_domains_are_told_apart_on_fresh_images(network: SegModel, predicted: Predicted) -> None:
    assert held_out_accuracy(network, *two_domains(predicted)) > 0.9


def test_the_original_label_of_the_target_teaches_nothing(
    network: SegModel, predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 0 for both domains, the defect of the first code, the test above fails."""
    monkeypatch.setattr(domains, "TARGET", domains.SOURCE)
    assert held_out_accuracy(network, *two_domains(predicted)) == pytest.approx(0.5, abs=0.05)


def test_one_domain_is_not_told_apart_from_itself(network: SegModel, predicted: Predicted) -> None:
    train = predicted("game", 0, TRAIN), predicted("game", OTHER, TRAIN)
    fresh = predicted("game", FRESH, HELD_OUT), predicted("game", OTHER + FRESH, HELD_OUT)
    assert held_out_accuracy(network, train, fresh) == pytest.approx(0.5, abs=0.05)
