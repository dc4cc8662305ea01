"""How often an iteration runs through the encoder, by hooks; a unit is one forward pass of one batch, backward 2."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.memory import batch, method
from segue.data.batch import Batch
from segue.methods.base import Method
from segue.models.build import build_model

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import encoder_passes

FD: dict[str, Any] = {"feature_distance": {"classes": None}}
BANK = {"size": 6, "start": "random", "every_iterations": 1}
DIDA: dict[str, Any] = {**FD, "instance_similarity": BANK}
PUBLISHED: dict[str, Any] = {**FD, "instance_similarity": {**BANK, "published": True}}
MIC: dict[str, Any] = {**FD, "masked_consistency": {}}


def make(parts: dict[str, Any], host: str = "self_training") -> tuple[Method, dict[str, Batch]]:
    torch.manual_seed(0)
    settings = {"variant": "b0", "channels": 8, "drop_path": 0.0, "dropout": 0.0}
    built: Method = method(host, build_model({"name": "segformer", **settings}, 7), parts=parts)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # not where it started: the distance has a gradient
        for parameter in built.model.encoder.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=g))
    return built, {"source": batch(0), "target": batch(1)}


def spent(parts: dict[str, Any], backward: Any, host: str = "self_training") -> Counter[str]:
    built, batches = make(parts, host)
    with encoder_passes.units(built, 2) as found:
        encoder_passes.iterate(built, {name: batches[name] for name in built.needs}, backward)
    return found


@pytest.mark.parametrize(
    ("parts", "expected", "published"),
    [
        ({}, {"student": 6, "teacher": 1}, 7),
        (FD, {"student": 6, "teacher": 1, "frozen": 1}, 10),
        (MIC, {"student": 9, "teacher": 1, "frozen": 1}, 13),
        (DIDA, {"student": 6, "teacher": 1, "frozen": 1}, 12),
        (PUBLISHED, {"student": 6, "teacher": 1, "frozen": 1}, 12),
    ],
    ids=["dacs", "daformer", "mic", "dida", "dida_as_published"],
)
def test_units_of_an_iteration(parts: dict[str, Any], expected: dict[str, int], published: int) -> None:
    """DAFormer 8, MIC 11, DIDA 8; with a backward pass a term, as published, 10, 13 and 12."""
    assert dict(spent(parts, encoder_passes.together)) == expected
    assert sum(spent(parts, encoder_passes.apart).values()) == published


@pytest.mark.parametrize(("host", "student"), [("minent", 9), ("adversarial", 9), ("fda", 9), ("supervised", 3)])
def test_units_under_other_hosts(host: str, student: int) -> None:
    parts = {**FD, "masked_consistency": {"images": "target" if host != "supervised" else "source"}}
    own = {} if host == "supervised" else {"teacher": 1}
    masked = 3 if host == "supervised" else 0
    assert dict(spent(parts, encoder_passes.together, host)) == {"student": student + masked, "frozen": 1, **own}


@pytest.mark.parametrize("parts", [FD, DIDA], ids=["daformer", "dida"])
def test_both_orders_have_the_same_gradient(parts: dict[str, Any]) -> None:
    gradients = []
    for backward in (encoder_passes.together, encoder_passes.apart):
        built, batches = make(parts)
        built.double()
        batches = {name: replace(b, image=b.image.double()) for name, b in batches.items()}
        for terms in built.losses(batches, 0):
            backward(terms)
        gradients.append([p.grad for p in built.model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_the_counter_sees_half_batches_and_repeated_backward_passes() -> None:
    built, batches = make({})
    with encoder_passes.units(built, 2) as found:
        output = built.model(batches["source"].image[:1])
        loss = output.logits.sum()
        loss.backward(retain_graph=True)
        output.stages[-1].sum().backward()
    assert dict(found) == {"student": 0.5 + 1 + 1}
    built.model(batches["source"].image)
    assert sum(found.values()) == 2.5, "no hook is left behind"
