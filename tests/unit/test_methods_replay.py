"""Replay as a method: two graphs, each a mean over its own labels."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.steps import PLAIN, TREATMENTS, backward, build, earlier, gradients, grown, in_padding, part, shown, train
from segue.methods.base import METHODS
from segue.ops.losses import CROSS_ENTROPY, segmentation


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_new_and_kept_images_are_two_graphs(treatment: str) -> None:
    labels = TREATMENTS[treatment]
    built = build("replay", labels, None, grown(earlier(norm="frozen")), weight=0.25)
    batches = {"source": shown(1, labels), "replay": shown(2, labels)}
    graphs = [dict(terms) for terms in built.losses(batches, 0)]
    assert [list(terms) for terms in graphs] == [["source"], ["replay"]]
    kept = batches["replay"]
    expected = segmentation(
        built.model(kept.image),
        kept.label,
        criterion=CROSS_ENTROPY,
        pixel=kept.pixel,
        denominator=kept.label_count,
    )
    torch.testing.assert_close(graphs[1]["replay"], 0.25 * expected)
    assert all(map(math.isfinite, train(built, labels)))


def test_padding_and_the_split_of_a_batch_change_nothing() -> None:
    built = build("replay", PLAIN, None, grown(earlier(norm="frozen")))
    batches = {"source": shown(1, PLAIN), "replay": shown(2, PLAIN)}
    whole = backward(built, batches)
    expected = gradients(built)
    split = 0.0
    for k in range(2):
        split += backward(built, {n: part(b, slice(k, k + 1), 0.5) for n, b in batches.items()}, share=0.5)
    assert split == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients(built).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert backward(built, {name: in_padding(b) for name, b in batches.items()}) == whole


def test_it_says_that_it_sees_old_data() -> None:
    cls = METHODS.get("replay")
    assert cls.old_data and cls.needs == cls.uses_labels == ("source", "replay")
    assert [name for name in METHODS.names() if METHODS.get(name).old_data] == ["replay"]
