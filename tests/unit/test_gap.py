"""Fingerprints of networks: which layers are looked at, shards that add up, and what is refused."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from helpers.memory import model
from segue.gap.distances import emd, frechet_distance, image_distances, normal_distance
from segue.gap.errors import GapError
from segue.gap.fingerprint import Histogram, count, gaussian
from segue.gap.layers import Probe
from segue.gap.ranges import Ranges, measure


class Net(nn.Module):
    """Maps, tokens and a vector; a layer that is written over, one that runs twice and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.tokens = nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 2)
        self.twice = nn.Identity()
        self.never = nn.Identity()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = self.twice(self.drop(self.tokens(x.flatten(2).transpose(1, 2))))
        x = self.twice(self.head(x.mean(1)))
        self.passes += 1
        return x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def images(seed: int, number: int = 2) -> Tensor:
    return torch.rand(number, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_neurons_and_positions_of_every_kind_of_output(net: Net) -> None:
    found: dict[str, Tensor] = {}
    probe = Probe(net, ["head", "conv|tokens"])
    assert probe.names == ("conv", "tokens", "head")
    assert probe.run([images(0)], lambda name, values: found.update({name: values.clone()})) == 2
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "conv": (2, 4, 96),
        "tokens": (2, 5, 96),
        "head": (2, 2, 1),
    }
    with torch.no_grad():
        conv = net.conv(images(0))
        torch.testing.assert_close(found["conv"], conv.flatten(2))  # before the ReLU writes over it
        torch.testing.assert_close(found["tokens"], net.tokens(conv.relu().flatten(2).mT).mT)


def test_a_pass_leaves_the_network_as_it_was_and_ends_at_the_last_layer(net: Net) -> None:
    net.train()
    net.head.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    probe = Probe(net, ["conv", "drop"])
    found: list[Tensor] = []
    probe.run([images(0)] * 3, lambda name, values: found.append(values.clone()))
    assert net.passes == 1  # the first goes on, to meet a layer that runs twice
    assert net.training and not net.head.training
    assert not any(module._forward_hooks for module in net.modules())
    torch.testing.assert_close(found[1], found[3], rtol=0, atol=0)  # eval mode: no dropout
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_layers_that_cannot_be_looked_at(net: Net) -> None:
    for patterns, message in (
        (["con"], "matches 'con'.*such as conv"),
        (["("], "no regular expression"),
        ([], "at least one"),
    ):
        with pytest.raises(GapError, match=message):
            Probe(net, patterns)
    for pattern, message in (("twice", "more than once"), ("never", "does not run")):
        with pytest.raises(GapError, match=message):
            measure(Probe(net, [pattern]), [images(0)])
        assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(GapError, match="no images"):
        measure(Probe(net, ["conv"]), [])
    with pytest.raises(GapError, match="no images"):
        gaussian(Probe(net, ["conv"]), [])
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(GapError, match=r"layer conv .*not finite"):
        measure(Probe(net, ["conv"]), [images(0)])
    with pytest.raises(GapError, match=r"layer backbone .*list|tuple"):
        measure(Probe(Wrapped(), ["backbone"]), [images(0)])


class Wrapped(nn.Module):
    """A layer that gives several tensors."""

    class Backbone(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Wrapped.Backbone()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[0]


def test_a_model_of_ours() -> None:
    network = model()
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    ours = [name for name in convolutions if name.startswith("backbone.")][:2]
    probe = Probe(network, [name.replace(".", r"\.") for name in ours])
    batches = [torch.rand(2, 3, 40, 72) for _ in range(2)]
    reference = count(probe, measure(probe, batches), batches, 64)
    distances = image_distances(probe, reference, [batches[0], 0.2 * batches[0]])
    assert distances.numbers[2:].min() > 2 * distances.numbers[:2].max()


def test_histograms_of_shards_add_up_bit_for_bit(net: Net) -> None:
    probe = Probe(net, ["conv", "tokens", "head"])
    batches = [images(n, number) for n, number in enumerate((2, 3, 1, 2))]
    ranges = measure(probe, batches[:2])
    whole = count(probe, ranges, batches, 50)
    parts = [count(probe, ranges, shard, 50) for shard in (batches[3:], batches[:1], batches[1:3])]
    merged = parts[0].merge(*parts[1:])
    assert merged.images == whole.images == 8
    assert all(torch.equal(merged.counts[k], v) for k, v in whole.counts.items())
    assert emd(merged, whole).number == 0
    assert all(int(v.sum()) == 8 * len(v) * (1 if k == "head" else 96) for k, v in whole.counts.items())


def test_ranges_and_normal_forms_of_shards(net: Net) -> None:
    probe = Probe(net, ["conv", "head"])
    batches = [images(n, number) for n, number in enumerate((2, 3, 1))]
    whole, (first, *others) = measure(probe, batches), [measure(probe, [batch]) for batch in batches]
    assert first.merge(*others).digest() == whole.digest() != first.digest()
    assert first.merge(*others).images == 6
    for full in (False, True):
        together = gaussian(probe, [torch.cat(batches)], full)
        start, *rest = [gaussian(probe, [batch], full) for batch in batches]
        merged = start.merge(*rest)
        assert merged.images == 6 and merged.full == full
        for layer in probe.names:
            torch.testing.assert_close(merged.means[layer], together.means[layer], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(merged.spread(layer), together.spread(layer), rtol=1e-4, atol=1e-9)
        in_turn = gaussian(probe, batches, full)
        assert all(torch.equal(merged.scatter[layer], in_turn.scatter[layer]) for layer in probe.names)


def test_memory_does_not_grow_with_images(net: Net) -> None:
    probe = Probe(net, ["conv", "head"])
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[Tensor]:
        nonlocal most
        for n in range(5):
            batch = images(n)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            most = max(most, sum(ref() is not None for ref in alive))

    reference = count(probe, measure(probe, stream()), stream(), 20)
    gaussian(probe, stream())
    image_distances(probe, reference, stream())
    assert len(alive) == 20 and most <= 1


def test_ranges_are_around_what_was_seen() -> None:
    minima = {"a": torch.tensor([0.0, 2.0, -1.0, 3.0], dtype=torch.float64)}
    maxima = {"a": torch.tensor([10.0, 4.0, 1.0, 3.0], dtype=torch.float64)}
    ours = Ranges("n", 1, minima, maxima)
    low, high = ours.limits("a")
    assert low.tolist() == pytest.approx([-1, 1.8, -1.2, 1.8])
    assert high.tolist() == pytest.approx([11, 4.2, 1.2, 4.2])  # the last never moved: the layer's median
    low, high = Ranges("n", 1, minima, maxima, "published").limits("a")
    assert low.tolist() == pytest.approx([-1e-8, 2.4, -1.2, 3.6])
    assert high.tolist() == pytest.approx([12, 4.8, 1.2, 3.6])
    assert (low < high).all()
    still = Ranges("n", 1, minima, minima)
    assert [end.tolist() for end in still.limits("a")] == [
        pytest.approx([x + s for x in minima["a"].tolist()]) for s in (-1.2, 1.2)
    ]


def test_what_cannot_be_compared_or_added(net: Net) -> None:
    probe, batch = Probe(net, ["conv", "head"]), [images(0)]
    ranges = measure(probe, batch)
    a = count(probe, ranges, batch, 20)
    other = Probe(net, ["conv", "head"], identity="another")
    fewer = Probe(net, ["conv"])
    wrong: list[tuple[Histogram, str]] = [
        (count(other, measure(other, batch), batch, 20), "different networks"),
        (count(fewer, ranges, batch, 20), "only one .* layers head"),
        (count(probe, ranges, batch, 21), "different neurons or bins"),
        (count(probe, measure(probe, [images(1)]), batch, 20), "different ranges"),
    ]
    for b, message in wrong:
        for call in (emd, Histogram.merge):
            with pytest.raises(GapError, match=message):
                call(a, b)
    with pytest.raises(GapError, match=r"no layer hea .*'head'"):
        emd(a, a, ["hea"])
    with pytest.raises(GapError, match="no layer head"):
        count(probe, ranges.only(["conv"]), batch)
    with pytest.raises(GapError, match="ranges are those of"):
        count(other, ranges, batch)
    with pytest.raises(GapError, match="different networks, layers or rules"):
        ranges.merge(ranges.only(["conv"]))
    for reference, message in (
        (wrong[0][0], "the reference is of another"),
        (wrong[1][0], "no layer head"),
        (Histogram(a.network, 1, a.counts), "does not tell its ranges"),
    ):
        with pytest.raises(GapError, match=message):
            image_distances(probe, reference, batch)
    with pytest.raises(GapError, match="without a count"):
        emd(Histogram("n", 1, {"a": torch.zeros(1, 4).long()}), Histogram("n", 1, {"a": torch.ones(1, 4).long()}))


def test_normal_forms_that_do_not_fit(net: Net) -> None:
    batch = [images(0)]
    plain, full = (gaussian(Probe(net, ["conv", "head"]), batch, form) for form in (False, True))
    assert normal_distance(plain, full).number == pytest.approx(0)
    with pytest.raises(GapError, match="covariances"):
        frechet_distance(plain, full)
    with pytest.raises(GapError, match="different neurons"):
        plain.merge(full)
    for distance in (normal_distance, frechet_distance):
        with pytest.raises(GapError, match="layers head"):
            distance(full, gaussian(Probe(net, ["conv"]), batch, True))
        with pytest.raises(GapError, match="different networks"):
            distance(full, gaussian(Probe(net, ["conv", "head"], "another"), batch, True))


def test_neurons_of_another_shape_are_refused(net: Net) -> None:
    batch = [images(0)]
    probe = Probe(net, ["conv"], identity="same")
    ranges = measure(probe, batch)
    reference = count(probe, ranges, batch, 10)
    net.conv = nn.Conv2d(3, 6, 3, 2, 1)
    net.tokens = nn.Linear(6, 5)
    wider = Probe(net, ["conv"], identity="same")
    with pytest.raises(GapError, match="6 neurons, the ranges have 4"):
        count(wider, ranges, batch, 10)
    with pytest.raises(GapError, match="6 neurons, the ranges have 4"):
        image_distances(wider, reference, batch)


def test_a_networks_identity_is_its_weights() -> None:
    first, second = model(), model()
    names = [next(name for name, module in first.named_modules() if isinstance(module, nn.Conv2d))]
    assert Probe(first, names).identity == Probe(second, names).identity
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-3
    assert Probe(first, names).identity != Probe(second, names).identity
