"""The closed-form head as a method: partitions of pixels into class steps, old predictions, what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.memory import SPACE, batch
from segue.config import OptimConfig, TrainConfig
from segue.data.batch import Batch, Meta
from segue.engine import Place, fit
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model

SEEN = (3, 5, 7)
"""Classes after each step."""
NETWORKS: dict[str, dict[str, Any]] = {
    "without a bias": {"name": "bisenet", "width": 0.125},
    "with a bias": {"name": "deeplabv3plus", **MODELS.get("deeplabv3plus").tiny()},
}


def space(classes: int, background: str | None = None) -> LabelSpace:
    return LabelSpace(
        f"first {classes}",
        SPACE.classes[:classes],
        SPACE.colors[:classes],
        SPACE.ids[:classes],
        background=background,
    )


def network(classes: int, **config: Any) -> SegModel:
    torch.manual_seed(0)
    return build_model(config or NETWORKS["without a bias"], classes)


@cache
def known_network(kind: str) -> SegModel:
    return network(SEEN[0], **NETWORKS[kind])


def built(model: SegModel, labels: LabelSpace | None = None, **config: Any) -> Any:
    cls = METHODS.get("closed_form")
    given = cls.Config.model_validate({"name": "closed_form", **config})
    method = cls(given, model, labels or space(model.num_classes), {})
    return method.train()


class Images:
    """Batches as a stream of one image each."""

    iterations_per_epoch = 1.0

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.length = batches, sum(len(b.meta) for b in batches)

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        while True:
            yield [self.batches[start % len(self.batches)]]
            start += 1


def trained(method: Any, batches: Sequence[Batch], old: Mapping[str, Tensor] | None = None) -> Any:
    stream = {"source": Images(batches)}
    if old is not None:
        method.take_over(old)
    method.prepare(stream)
    for iteration, own in enumerate(batches):
        for terms in method.losses({"source": own}, iteration):
            assert not terms
    method.finish(stream)
    return method


def head(method: Any) -> Tensor:
    conv = method.classifier
    rows = conv.weight.flatten(1)
    return (rows if conv.bias is None else torch.cat([rows, conv.bias.unsqueeze(1)], 1)).detach()


def steps(batches: Sequence[Batch], dealt: Tensor, first: SegModel, **config: Any) -> Any:
    """A chain of methods, each taught the pixels that ``dealt`` (images,H,W) gives its step."""
    model, old = copy.deepcopy(first), None
    for step, seen in enumerate(SEEN):
        if step:
            model = copy.deepcopy(model)
            model.grow_head(seen - model.num_classes, generator=torch.Generator().manual_seed(step))
        own = [replace(b, label=torch.where(dealt[n] == step, b.label, 255)) for n, b in enumerate(batches)]
        method = trained(built(model, **config), own, old)
        model, old = method.model, method.state_dict()
    return method


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**31), balance=st.sampled_from([0.0, 0.5]), kind=st.sampled_from(sorted(NETWORKS)))
def test_any_partition_into_steps_gives_the_head_of_all_pixels_at_once(seed: int, balance: float, kind: str) -> None:
    """A pixel belongs to any step in which its class is known, blocks of one picture to several."""
    batches = [batch(n, size=1) for n in range(2)]
    g = torch.Generator().manual_seed(seed)
    known = torch.tensor([next(n for n, seen in enumerate(SEEN) if c < seen) for c in range(7)])
    first = torch.stack([known[b.label] for b in batches])
    chance = torch.rand((*first.shape[:2], 8, 12), generator=g).repeat_interleave(8, -2).repeat_interleave(8, -1)
    dealt = first + (chance * (len(SEEN) - first)).long()
    assert set(dealt.unique().tolist()) == {0, 1, 2}
    first_network = known_network(kind)
    wide = copy.deepcopy(first_network)
    wide.grow_head(7 - SEEN[0])
    whole = trained(built(wide, balance=balance), batches)
    last = steps(batches, dealt, first_network, balance=balance)
    torch.testing.assert_close(head(last), head(whole), rtol=1e-5, atol=1e-5 * float(head(whole).abs().max()))
    assert head(whole).abs().max() > 0.1


def test_micro_batches_processes_and_repeated_images_change_nothing() -> None:
    batches = [batch(n) for n in range(2)]
    whole = trained(built(network(7)), batches)
    halves = [
        replace(b, image=b.image[i : i + 1], label=b.label[i : i + 1], pixel=b.pixel[i : i + 1], meta=(b.meta[i],))
        for b in batches
        for i in range(2)
    ]
    torch.testing.assert_close(head(trained(built(network(7)), halves)), head(whole), rtol=1e-6, atol=1e-6)
    one, two = (built(network(7)) for _ in range(2))
    shared: dict[int, list[Tensor]] = {}
    for number, (method, own) in enumerate(((two, batches[1]), (one, batches[0]))):
        rows = shared.setdefault(number, [])
        method.gather = lambda own, rows=rows: rows.append(own) or own
        list(method.losses({"source": own}, 0))
    theirs = iter(shared[0])
    again = built(network(7))
    again.gather = lambda own: torch.cat([own, next(theirs)])
    list(again.losses({"source": batches[0]}, 0))
    again.finish({})
    torch.testing.assert_close(head(again), head(whole), rtol=1e-6, atol=1e-6)
    repeated = built(network(7))
    repeated.prepare({"source": Images(batches)})
    numbered = [replace(b, meta=tuple(replace(m, uid=2 * n + m.uid) for m in b.meta)) for n, b in enumerate(batches)]
    second = replace(batches[0], meta=tuple(replace(m, uid=4 + m.uid) for m in batches[0].meta))
    for given_batch in (*numbered, second):
        list(repeated.losses({"source": given_batch}, 0))
    assert repeated.count.sum() == sum(b.label.numel() for b in batches)


def test_what_is_no_picture_does_not_count_and_the_trunk_does_not_move() -> None:
    given_batch, method = batch(0), built(network(7))
    before = {k: v.clone() for k, v in method.model.state_dict().items()}
    given_batch.pixel[:, 40:] = False
    given_batch.label[0, :8] = 255
    trained(method, [given_batch])
    assert method.count.sum() == 40 * 96 * 2 - 8 * 96
    moved = {k for k, v in method.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"head.classifier.weight"} and method.model.training


@pytest.mark.parametrize("background", [None, SPACE.classes[0]])
def test_old_predictions_count_where_the_old_head_is_sure(background: str | None) -> None:
    """Against a loop over cells; background: class 0 is what is not taught."""
    model, unlabelled = network(SEEN[0]), 255 if background is None else 0
    first = trained(built(model, space(3, background), scale=30.0), [batch(0)])
    grown = copy.deepcopy(first.model)
    grown.grow_head(2, generator=torch.Generator().manual_seed(0))
    second = built(grown, space(5, background), old_confidence=0.6)
    second.take_over(first.state_dict())
    now = batch(1)
    now = replace(now, label=torch.where(now.label >= 3, now.label.clamp(max=4), unlabelled))
    now.label[1, :8] = 255
    with torch.no_grad():
        output = grown.eval()(now.image)
    probability = output.logits[:, :3].softmax(1)
    expected = first.count.new_zeros(5)
    expected[:3] = first.count
    cell = 64 // output.logits.shape[-2]
    sure = 0
    for n in range(2):
        for y in range(64):
            for x in range(96):
                label = int(now.label[n, y, x])
                if label >= 3 and label != 255:
                    expected[label] += 1
                elif label == unlabelled:
                    own = probability[n, :, y // cell, x // cell] if not output.align_corners else None
                    own = _aligned(probability[n], y, x) if own is None else own
                    if own.max() >= 0.6:
                        expected[int(own.argmax())] += 1
                        sure += 1
    list(second.train().losses({"source": now}, 0))
    assert torch.equal(second.count, expected)
    assert 0 < sure < int((now.label == unlabelled).sum())


def _aligned(values: Tensor, y: int, x: int) -> Tensor:
    rows, columns = values.shape[-2:]
    return values[:, int(y * (rows - 1) / 63 + 0.5), int(x * (columns - 1) / 95 + 0.5)]


def test_it_trains_without_an_optimiser(tmp_path: Path) -> None:
    batches = [replace(batch(n), meta=(Meta(n, str(n), "memory", (64, 96)),) * 2) for n in range(2)]
    method = built(network(7))
    method.key = (0, 0)
    place = Place(tmp_path, torch.device("cpu"), space(7), {})
    done = fit(method, {"source": Images(batches)}, TrainConfig(iterations=2), OptimConfig(), place, resume=False)
    assert done == 2 and method.count.sum() == sum(b.label.numel() for b in batches)
    right = [(method.model.eval()(b.image).logits.argmax(1)).unique().numel() for b in batches]
    assert max(right) > 1
    again = built(network(7))
    assert fit(again, {"source": Images(batches)}, TrainConfig(iterations=2), OptimConfig(), place, resume=True) == 2
    assert torch.equal(head(again), head(method))


def test_what_it_keeps_and_what_it_refuses() -> None:
    method = built(network(3))
    channels = method.classifier.in_channels
    assert method.stored_bytes() == 8 * (channels**2 + 3 * channels + 3)
    with pytest.raises(UserError, match="no labelled pixel"):
        method.finish({})
    with pytest.raises(UserError, match=r"1x1 convolution.*'erfnet'"):
        built(network(3, name="erfnet"))
    hrda = {"name": "hrda", "base": {"name": "bisenet", "width": 0.125}}
    with pytest.raises(UserError, match="'hrda'"):
        built(network(3, **hrda))
    wider = built(network(5))
    plain = {f"model.{k}": v for k, v in network(3).state_dict().items()}
    with pytest.raises(UserError, match="forget the 3 old classes"):
        wider.take_over(plain)
    built(network(3)).take_over(plain)
    with pytest.raises(UserError, match="'balance'"):
        built(network(5), balance=0.5).take_over(trained(method, [_three()]).state_dict())


def _three() -> Batch:
    given_batch = batch(0)
    return replace(given_batch, label=given_batch.label.clamp(max=2))
