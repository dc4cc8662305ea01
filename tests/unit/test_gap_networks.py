"""Networks for fingerprints: which layers are chosen, how images reach them, halves, shards, and classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from segue.data.dataset import Dataset
from segue.data.images import write_image
from segue.gap.between import ImageSet, distance_of, fingerprint_of, reference_of
from segue.gap.classes import ClassGap, class_gap, count_classes, merge_classes, planned_bytes
from segue.gap.distances import emd
from segue.gap.errors import GapError
from segue.gap.fingerprint import Histogram, count
from segue.gap.layers import Probe
from segue.gap.networks import Extractor, extractor_of, open_network
from segue.gap.ranges import measure
from segue.gap.reading import NO_CLASSES, images_of, open_images
from segue.labels import U8, LabelSpace
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model

SPACE = LabelSpace("three", ("road", "sky", "car"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), (0, 1, 2))


class Noise(Dataset):
    """Pictures from a seed, the later ones brighter by ``drift``."""

    def __init__(self, number: int, seed: int = 0, drift: float = 0.0, sizes: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__("noise", NO_CLASSES, [f"{i:03d}" for i in range(number)], None)
        self.seed, self.drift, self.sizes = seed, drift, sizes or [(64, 96)]
        self.read: list[int] = []

    def _image(self, index: int) -> U8:
        self.read.append(index)
        height, width = self.sizes[index % len(self.sizes)]
        rng = np.random.default_rng((self.seed, index))
        coarse = rng.uniform(0, 200, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, 0).repeat(16, 1)
        noise = coarse[:height, :width] + self.drift + rng.uniform(0, 20, (height, width, 3))
        return np.clip(noise, 0, 255).astype(np.uint8)


def tiny(name: str, classes: int = 3) -> SegModel:
    torch.manual_seed(0)
    return build_model({"name": name, **MODELS.get(name).tiny()}, classes).eval()


def divided(name: str) -> SegModel:
    """A network that predicts all three classes in about equal parts of a picture."""
    model = tiny(name)
    classifier = next(iter(model.classifiers().values()))
    biases = [p for n, p in classifier.named_parameters() if n.endswith("bias")]
    with torch.no_grad():
        for parameter in classifier.parameters():
            nn.init.normal_(parameter)
        images = torch.from_numpy(Noise(1)._image(0)).permute(2, 0, 1)[None] / 255
        for bias in biases[:1]:
            bias -= model(images).logits.mean((0, 2, 3))
    return model


@pytest.fixture(scope="module")
def erfnet() -> Extractor:
    return extractor_of(tiny("erfnet"), [r"encoder\.layers\.[026]"], labels=SPACE)


def outputs(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    extractor.probe.run([images], lambda name, values: found.update({name: values.clone()}))
    return found


@pytest.mark.parametrize("name", MODELS.names())
def test_every_model_has_blocks_whose_neurons_do_not_change_with_the_picture(name: str) -> None:
    extractor = extractor_of(tiny(name))
    assert all(layer.startswith(extractor.model.encoder_prefix) for layer in extractor.probe.names if extractor.model)
    small, wide = (
        outputs(extractor, torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)))
        for size in ((64, 64), (64, 160))
    )
    assert len(small) > 1
    for layer, values in small.items():
        assert values.shape[:2] == wide[layer].shape[:2], layer
        assert values.shape[2] < wide[layer].shape[2], layer


def test_channels_last_blocks_give_the_maps_that_the_decoder_reads() -> None:
    model = tiny("segformer")
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = outputs(extractor_of(model, [r"encoder\.stages\.\d\.norm"]), images)
    for values, stage in zip(found.values(), model.features(images), strict=True):
        torch.testing.assert_close(values, stage.flatten(2))


def test_an_encoder_that_looks_twice_is_asked_for_its_context() -> None:
    model = tiny("hrda")
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    last = outputs(extractor_of(model, [r"base\.encoder\.stages\.3\.norm"]), images)
    torch.testing.assert_close(*last.values(), model.features(images)[-1].flatten(2))
    with pytest.raises(GapError, match="runs more than once"):
        outputs(extractor_of(model, ["base.classifier"]), images)


@pytest.mark.parametrize(
    ("source", "layers", "size"),
    [
        ("timm:test_resnet@random", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"], (160, 160)),
        ("timm:test_vit@random", [f"blocks.{i}" for i in range(6)], (160, 160)),
        ("torchvision:resnet18@random", [f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)], (224, 224)),
    ],
)
def test_networks_of_libraries(source: str, layers: list[str], size: tuple[int, int]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    extractor = open_network(source, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(extractor.probe.names) == layers and extractor.size == size
    assert open_network(source, seed=3).identity == extractor.identity != open_network(source, seed=4).identity
    images = extractor.batch([Noise(1).read_image(0)], (64, 96))
    found = list(outputs(extractor, images).values())
    for one, other in pairwise(found):
        assert one.shape != other.shape or not torch.equal(one, other)  # a random block does something


def test_a_library_network_sees_normalised_images() -> None:
    extractor = open_network("torchvision:resnet18@random", layers=["conv1"])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    oracle = torchvision.models.resnet18()
    mean, std = ([[[a]] for a in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = oracle.conv1((images - torch.tensor(mean)) / torch.tensor(std))
    torch.testing.assert_close(outputs(extractor, images)["conv1"], expected.flatten(2))


def test_windowed_transformers_have_channels_last() -> None:
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found = outputs(open_network("torchvision:swin_t@random", layers=[r"features\.[01](\.0)?"]), images)
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "features.0": (1, 96, 56 * 56),
        "features.0.0": (1, 96, 56 * 56),
        "features.1": (1, 96, 56 * 56),
        "features.1.0": (1, 96, 56 * 56),
    }
    torch.testing.assert_close(found["features.0"], F.layer_norm(found["features.0.0"].mT, (96,), eps=1e-5).mT)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:nothing@random", "timm .* has no model 'nothing'"),
        ("torchvision:nothing", "no classifier 'nothing'"),
        ("timm:test_resnet@best", "@imagenet, @random, @lite0-package, not @best"),
        ("torchvision:resnet18@lite0-package", "for timm:tf_efficientnet_lite0"),
        ("timm:test_resnet@lite0-package", "lite0-package"),
        ("resnet18", "write timm:resnet18"),
        ("torchvision:alexnet@random", "name layers"),
    ],
)
def test_names_that_mean_no_network(source: str, message: str) -> None:
    with pytest.raises(GapError, match=message):
        open_network(source)


def test_without_a_network_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise ConnectionError("name or service not known\nmore")

    monkeypatch.setattr("timm.create_model", offline)
    monkeypatch.setattr("torchvision.models.get_model", offline)
    for library in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(GapError, match=rf"{library} could not be had .*known\); .*{library}@random"):
            open_network(library)


def test_a_size_that_a_network_refuses() -> None:
    extractor = open_network("timm:mixer_s32_224@random", layers=["stem"])
    with pytest.raises(GapError, match=r"cannot take images of \(64, 96\).*set the size"):
        outputs(extractor, extractor.batch([Noise(1).read_image(0)], (64, 96)))


def test_pictures_reach_the_network_whole_or_as_published() -> None:
    picture = Noise(1, sizes=[(40, 96)])._image(0)
    whole = open_network("timm:test_resnet@random", layers=["conv1"])
    assert whole.batch([picture]).shape == (1, 3, 160, 160)
    exact = whole.batch([picture], (40, 96))
    assert torch.equal(exact, torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    square = open_network("timm:test_resnet@random", layers=["conv1"], square=True)
    (found,) = square.batch([picture], (16, 16))
    for channel in range(3):
        middle = Image.fromarray(picture[:, 28:68, channel].astype(np.float32))
        expected = np.asarray(middle.resize((16, 16), Image.Resampling.BICUBIC)).clip(0, 255) / 255
        np.testing.assert_allclose(found[channel], expected, atol=1e-6)


def test_reading_keeps_order_and_sizes_and_spreads_a_limit(erfnet: Extractor) -> None:
    mixed = Noise(5, sizes=[(64, 96), (64, 96), (64, 64)])
    said: list[tuple[int, int]] = []
    batches = list(images_of(mixed, erfnet, batch_size=4, progress=lambda *done: said.append(done)))
    assert [tuple(b.shape) for b in batches] == [(2, 3, 64, 96), (1, 3, 64, 64), (2, 3, 64, 96)]
    assert said == [(2, 5), (3, 5), (5, 5)]
    assert [len(b) for b in images_of(mixed, erfnet, (64, 64), batch_size=4)] == [4, 1]
    spread = Noise(10)
    list(ImageSet(spread, limit=4).batches(erfnet))
    assert spread.read == [0, 2, 5, 7]


def test_a_plain_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.jpg"):
        (tmp_path / name).parent.mkdir()
        write_image(tmp_path / name, Noise(1)._image(0))
    dataset = open_images(str(tmp_path))
    assert dataset.ids == ["a/1", "b/2"] and not dataset.labelled
    assert (dataset.read_image(1) == Noise(1)._image(0)).all()
    assert open_images(str(tmp_path / "*" / "2.png")).ids == ["b/2"]
    (tmp_path / "gtFine").mkdir()
    write_image(tmp_path / "gtFine/1.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(GapError, match="labels beside images"):
        open_images(str(tmp_path))


def test_a_gap_is_that_of_its_fingerprints_and_halves_are_every_second_image(erfnet: Extractor) -> None:
    a, b = ImageSet(Noise(5), batch_size=2), ImageSet(Noise(3, 1, 60), batch_size=2)
    gap = distance_of(erfnet, a, b, bins=50)
    ranges = measure(erfnet.probe, [erfnet.batch([a.dataset.read_image(i) for i in range(5)])])

    def own(dataset: Dataset, indices: Sequence[int]) -> Histogram:
        return count(erfnet.probe, ranges, [erfnet.batch([dataset.read_image(i)]) for i in indices], 50)

    assert gap.distance.number == pytest.approx(
        emd(own(a.dataset, range(5)), own(b.dataset, range(3))).number, rel=1e-6
    )
    assert gap.floor is not None
    assert gap.floor.number == pytest.approx(emd(own(a.dataset, (0, 2, 4)), own(a.dataset, (1, 3))).number, rel=1e-6)
    assert gap.share == gap.distance.number / 50 and gap.distance.number > 2 * gap.floor.number
    assert distance_of(erfnet, a, a, bins=50).distance.number == 0
    assert distance_of(erfnet, ImageSet(Noise(1)), b).floor is None


@pytest.mark.parametrize("kind", ["nfd", "fd"])
def test_gaps_of_normal_forms(kind: Any, erfnet: Extractor) -> None:
    a, near, far = (ImageSet(Noise(8, seed, drift)) for seed, drift in ((0, 0), (1, 10), (2, 60)))
    gaps = [distance_of(erfnet, a, b, kind) for b in (a, near, far)]
    assert gaps[0].distance.number == pytest.approx(0, abs=1e-8)
    assert gaps[0].distance.number < gaps[1].distance.number < gaps[2].distance.number
    assert gaps[2].bins is None and gaps[2].share is None


def test_stored_fingerprints_give_their_ranges(erfnet: Extractor) -> None:
    a, b = ImageSet(Noise(4)), ImageSet(Noise(3, 1, 60))
    gap = distance_of(erfnet, a, b, bins=32)
    again = distance_of(erfnet, gap.a, b)
    assert again.distance.number == gap.distance.number and again.floor is None
    assert distance_of(None, gap.a, gap.b).distance.number == gap.distance.number
    back = distance_of(erfnet, b, gap.a)
    assert back.distance.number == gap.distance.number  # B counted in A's ranges again
    with pytest.raises(GapError, match="name one"):
        distance_of(None, gap.a, b)
    with pytest.raises(GapError, match="without ranges"):
        distance_of(erfnet, Histogram(gap.a.network, 4, gap.a.counts), b)  # type: ignore[union-attr]
    with pytest.raises(GapError, match="nfd compares normal forms"):
        distance_of(erfnet, gap.a, gap.b, "nfd")
    other = extractor_of(tiny("erfnet", 4), [r"encoder\.layers\.0"])
    with pytest.raises(GapError, match="store it again"):
        distance_of(other, gap.a, b)


def by_hand(extractor: Extractor, histogram_bins: int, dataset: Dataset) -> dict[str, dict[str, Tensor]]:
    """Counts by class through the model's own answer, position by position."""
    assert extractor.model is not None
    ranges = measure(extractor.probe, ImageSet(dataset).batches(extractor))
    found: dict[str, dict[str, Tensor]] = {}
    for index in range(len(dataset)):
        images = extractor.batch([dataset.read_image(index)])
        with torch.inference_mode():
            answer = extractor.model(images)
        ids = answer.to_classes()[0].argmax(0)
        for layer, values in outputs(extractor, images).items():
            low, high = ranges.limits(layer)
            stride = int((64 * 96 / values.shape[2]) ** 0.5)
            for p in range(values.shape[2]):
                row, column = divmod(p, 96 // stride)
                k = int(
                    ids[int((row + 0.5) * stride * ids.shape[0] / 64), int((column + 0.5) * stride * ids.shape[1] / 96)]
                )
                table = found.setdefault(SPACE.classes[k], {}).setdefault(
                    layer, torch.zeros(len(low), histogram_bins, dtype=torch.int64)
                )
                place = ((values[0, :, p].double() - low) * (histogram_bins / (high - low))).clamp(
                    0, histogram_bins - 1
                )
                table[torch.arange(len(low)), place.long()] += 1
    return found


def test_positions_count_for_the_class_that_is_predicted_there() -> None:
    extractor = extractor_of(divided("segformer"), [r"encoder\.stages\.1\.blocks\.1"], labels=SPACE)
    dataset = Noise(2)
    ranges = measure(extractor.probe, ImageSet(dataset).batches(extractor))
    found = count_classes(extractor, ranges, ImageSet(dataset).batches(extractor), 8)
    expected = by_hand(extractor, 8, dataset)
    assert len(expected) > 1
    for name, histogram in found.items():
        for layer, counts in histogram.counts.items():
            own = expected.get(name, {}).get(layer, torch.zeros_like(counts))
            assert torch.equal(counts, own), (name, layer)


@pytest.mark.parametrize("name", ["erfnet", "segformer", "vit", "deeplabv2", "bisenet"])
def test_classes_sum_to_all_and_shards_add_up(name: str) -> None:
    model = divided(name)
    extractor = extractor_of(model, [re.escape(extractor_of(model).probe.names[-1])], labels=SPACE)
    dataset = Noise(4, sizes=[(70, 90)])
    ranges = measure(extractor.probe, ImageSet(dataset).batches(extractor))
    batches = list(ImageSet(dataset, batch_size=1).batches(extractor))
    whole = count_classes(extractor, ranges, batches, 16)
    shards = [count_classes(extractor, ranges, batches[k::3], 16) for k in range(3)]
    merged = merge_classes(merge_classes(shards[0], shards[1]), shards[2])
    everything = count(extractor.probe, ranges, batches, 16)
    tokens_beside = 4 if name == "vit" else 0  # one class token an image, which is nowhere
    for layer, counts in everything.counts.items():
        assert all(torch.equal(whole[k].counts[layer], merged[k].counts[layer]) for k in whole)
        total = sum(int(h.counts[layer][0].sum()) for h in whole.values())
        assert total == int(counts[0].sum()) - tokens_beside
    assert {h.images for h in merged.values()} == {4}


def test_gap_by_class_and_what_it_takes() -> None:
    extractor = extractor_of(divided("segformer"), labels=SPACE).only(["encoder.stages.2.blocks.1"])
    same: ClassGap = class_gap(extractor, ImageSet(Noise(4)), ImageSet(Noise(4)))
    assert set(same.distances) == set(SPACE.classes)
    assert {d.number for d in same.distances.values() if d} == {0.0}
    assert all((d is None) == (0 in same.positions[n]) for n, d in same.distances.items())
    assert any(floor and floor.number > 0 for floor in same.floors.values())
    assert sum(a for a, _ in same.positions.values()) == 4 * 4 * 6
    assert planned_bytes(100, 19, 64) == 5 * 8 * 100 * 19 * 64
    with pytest.raises(GapError, match="trained model of ours"):
        class_gap(open_network("timm:test_resnet@random"), ImageSet(Noise(2)), ImageSet(Noise(2)))


def test_shards_of_a_data_set_add_up(erfnet: Extractor) -> None:
    images = ImageSet(Noise(5), batch_size=1)
    whole = reference_of(erfnet, images, bins=20).fingerprint
    assert isinstance(whole, Histogram) and whole.ranges is not None
    parts = [fingerprint_of(erfnet, images, ranges=whole.ranges, bins=20, indices=i) for i in ([4, 0], [1], [2, 3])]
    merged = parts[0].merge(*parts[1:])  # type: ignore[arg-type]
    assert isinstance(merged, Histogram) and merged.images == whole.images
    assert all(torch.equal(merged.counts[name], table) for name, table in whole.counts.items())


def test_a_probe_of_maps_tells_their_grid(erfnet: Extractor) -> None:
    probe = Probe(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(2)), ["0", "1"])
    probe.run([torch.zeros(1, 3, 8, 12)], lambda *_: None)
    assert probe.grids == {"0": (4, 6), "1": None}
