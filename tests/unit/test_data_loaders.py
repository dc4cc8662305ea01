"""A stream is a pure function of (key, position): workers, ranks, micro-batches and restarts change nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.miniatures import SIZE, own, picture, save
from segue.config import DatasetConfig, RareClassConfig, TransformConfig
from segue.data.batch import Batch
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.data.sampling import Order, Pixels, RareOrder, probabilities
from segue.data.statistics import class_pixels
from segue.labels import IGNORE, load_space

RICH = TransformConfig(scale=(0.5, 1.5), crop=(20, 28), brightness=0.3, hue=0.1, max_class_share=0.75)


@pytest.fixture
def yard(tmp_path: Path) -> Dataset:
    return opened(own(tmp_path / "yard", 7))


def opened(root: Path, name: str = "yard") -> Dataset:
    return open_dataset(name, DatasetConfig(dataset=str(root)), "train")


def stream(*datasets: Dataset, weights: list[float] | None = None, **options: object) -> Stream:
    arguments: dict[str, object] = {"transform": RICH, "batch_size": 4, "labelled": True, "workers": 0, **options}
    return Stream(list(datasets), weights, key=(3, "stage", "source"), **arguments)  # type: ignore[arg-type]


def take(source: Stream, start: int, number: int) -> list[list[Batch]]:
    batches = source.iterate(start)
    return [next(batches) for _ in range(number)]


def same(a: Batch, b: Batch) -> bool:
    tensors = ("image", "label", "pixel", "label_count", "counts")
    return a.meta == b.meta and all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors)


def test_workers_and_restarts_change_nothing(yard: Dataset) -> None:
    alone = take(stream(yard), 0, 6)
    with_workers = take(stream(yard, workers=2), 0, 6)
    resumed = take(stream(yard, workers=1), 4, 2)
    assert all(same(a[0], b[0]) for a, b in zip(alone, with_workers, strict=True))
    assert all(same(a[0], b[0]) for a, b in zip(alone[4:], resumed, strict=True))
    assert not torch.equal(alone[0][0].image, alone[1][0].image)


def test_micro_batches_and_ranks_split_the_same_global_batch(yard: Dataset) -> None:
    (whole,) = take(stream(yard, batch_size=8), 2, 1)[0]
    parts = {}
    for rank in range(2):
        one = stream(yard, batch_size=8, accumulate=2, rank=rank, world=2)
        for micro, batch in enumerate(take(one, 2, 1)[0]):
            parts[micro, rank] = batch
    ordered = [parts[k] for k in sorted(parts)]
    assert torch.equal(torch.cat([b.image for b in ordered]), whole.image)
    assert [m.uid for b in ordered for m in b.meta] == [m.uid for m in whole.meta]
    both = float(parts[0, 0].label_count) + float(parts[0, 1].label_count)  # as the engine's all-reduce adds them
    assert both == float(whole.label_count) / 4
    assert torch.equal(parts[0, 0].tally() + parts[0, 1].tally(), whole.tally() / 4)


def test_label_count_is_the_global_mean_denominator(yard: Dataset) -> None:
    batches = take(stream(yard, accumulate=2), 0, 1)[0]
    labelled = sum(int((b.label != IGNORE).sum()) for b in batches)
    assert [float(b.label_count) for b in batches] == [labelled / 2] * 2
    assert labelled > 0 and batches[0].label_count.ndim == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_counts_are_those_of_the_pictures_labels_in_the_global_batch(yard: Dataset, labelled: bool) -> None:
    padded = TransformConfig(crop=(SIZE[0] + 8, SIZE[1] + 8))
    batches = take(stream(yard, accumulate=2, transform=padded, labelled=labelled), 0, 1)[0]
    own = torch.stack([replace(b, counts=None).tally() for b in batches])
    assert all(torch.equal(b.tally(), own.sum(0) / 2) for b in batches)
    assert int(own.sum()) == sum(int(b.pixel.sum()) for b in batches) < sum(b.pixel.numel() for b in batches)
    assert float(own[:, :IGNORE].sum()) == 2 * float(batches[0].label_count)
    assert float(own[:, IGNORE].sum()) == (4 if labelled else float(own.sum()))


def test_global_generators_are_left_alone(yard: Dataset) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = take(stream(yard, workers=2), 0, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[arg-type]
    torch.manual_seed(6)
    np.random.seed(6)
    assert same(first[1][0], take(stream(yard), 1, 1)[0][0])


def test_every_image_comes_once_a_round_in_a_new_order(yard: Dataset) -> None:
    order = Order([5, 6], None, (1, "a", "b"))
    rounds = [[order.place(p).image for p in range(r * 11, (r + 1) * 11)] for r in range(4)]
    assert all(sorted(r) == list(range(11)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 4
    assert order.place(3).image == rounds[0][3], "going back gives the same image"
    other = Order([5, 6], None, (2, "a", "b"))
    assert [other.place(p).image for p in range(11)] != rounds[0]
    assert sorted(Order([3], [1.0], (0,)).place(p).image for p in range(3)) == [0, 1, 2]


def test_an_image_is_drawn_anew_each_time_it_comes(tmp_path: Path) -> None:
    one = opened(own(tmp_path, 1))
    windows = [str(m.geometry) for (b,) in take(stream(one), 0, 4) for m in b.meta]
    assert len(set(windows)) > 8


def test_weights_are_met_and_images_of_a_set_come_equally_often() -> None:
    order = Order([10, 300], [0.7, 0.3], (1, "a", "b"))
    counts = Counter(order.place(p).image for p in range(10_000))
    small = [counts[i] for i in range(10)]
    assert sum(small) == 7000 and max(small) - min(small) <= 1
    large = [counts[i] for i in range(10, 310)]
    assert sum(large) == 3000 and max(large) - min(large) <= 1


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_bad_weights_are_named(weights: list[float]) -> None:
    with pytest.raises(DataError, match="needs 2 positive weights"):
        Order([3, 4], weights, (0,))


def test_concatenated_sets_read_their_own_files(tmp_path: Path) -> None:
    one, two = opened(own(tmp_path / "one", 2), "one"), opened(own(tmp_path / "two", 3), "two")
    whole = TransformConfig(flip=0)
    source = stream(one, two, transform=whole, batch_size=5)
    assert source.length == 5 and source.iterations_per_epoch == 1
    (batch,) = take(source, 0, 1)[0]
    assert sorted((m.domain, m.id) for m in batch.meta) == [
        ("one", "0"),
        ("one", "1"),
        *[("two", str(n)) for n in range(3)],
    ]
    for image, meta in zip(batch.image, batch.meta, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(int(meta.id)))
        assert meta.file_size == SIZE and meta.geometry["flip"] is False


def test_unlabelled_streams_never_open_a_label(tmp_path: Path) -> None:
    root = own(tmp_path, 4)
    for path in (root / "labels/train").iterdir():
        path.write_bytes(b"not a label")
    (batch,) = take(stream(opened(root), labelled=False), 0, 1)[0]
    assert (batch.label == IGNORE).all() and batch.pixel.any() and float(batch.label_count) == 0.0
    with pytest.raises(DataError, match="not an image"):
        take(stream(opened(root)), 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_arrive_as_they_are(tmp_path: Path, workers: int) -> None:
    root = own(tmp_path, 1)
    path = root / "images/train/0.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError) as caught:
        take(stream(opened(root), workers=workers), 0, 1)
    assert str(path) in str(caught.value) and "Traceback" not in str(caught.value)


def test_images_of_different_size_ask_for_a_crop(tmp_path: Path) -> None:
    root = own(tmp_path, 4)
    save(root / "images/train/2.png", picture(2, (10, 12)))
    save(root / "labels/train/2.png", np.ones((10, 12), np.uint8))
    with pytest.raises(DataError, match=r"differ in size: .*\d\.png .* set 'crop"):
        take(stream(opened(root), transform=TransformConfig()), 0, 1)
    assert take(stream(opened(root)), 0, 1)[0][0].image.shape == (4, 3, 20, 28)


def test_size_of_the_data_set_resizes_training_labels_but_not_scored_ones(tmp_path: Path) -> None:
    root = own(tmp_path, 4)
    dataset = open_dataset("x", DatasetConfig(dataset=str(root), size=(12, 16)), "train")
    assert dataset.read_image(0).shape == (12, 16, 3) and dataset.read_label(0).shape == SIZE
    (batch,) = take(stream(dataset, transform=TransformConfig()), 0, 1)[0]
    assert batch.label.shape == (4, 12, 16) and batch.meta[0].file_size == SIZE


def test_batch_size_must_divide(yard: Dataset) -> None:
    with pytest.raises(DataError, match="make it a multiple of 3"):
        stream(yard, accumulate=3)


def test_closing_stops_the_workers(yard: Dataset) -> None:
    import multiprocessing

    batches = stream(yard, workers=2).iterate(0)
    next(batches)
    assert len(multiprocessing.active_children()) >= 2
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_bytes_travel_and_the_device_gets_floats(yard: Dataset) -> None:
    (batch,) = take(stream(yard), 0, 1)[0]
    assert batch.image.dtype == batch.label.dtype == torch.uint8 and batch.pixel.dtype == torch.bool
    moved = batch.to(torch.device("cpu"))
    assert moved.image.dtype == torch.float32 and float(moved.image.max()) <= 1 and moved.label.dtype == torch.int64


CITY = load_space("cityscapes19")


def table(rows: dict[int, dict[int, int]], images: int) -> Pixels:
    """(images, 19) pixels, class -> image -> count."""
    out = np.zeros((images, len(CITY)), np.uint32)
    for c, counts in rows.items():
        for image, count in counts.items():
            out[image, c] = count
    return out


def rare(pixels: list[Pixels], weights: list[float] | None = None, **given: object) -> RareOrder:
    config = RareClassConfig.model_validate({"min_px": 10, "temperature": 0.5, **given})
    return RareOrder(pixels, weights, config, CITY, (1, "stage", "source"))


def chi_square(counts: list[int], chances: list[float]) -> float:
    return sum((n - sum(counts) * p) ** 2 / (sum(counts) * p) for n, p in zip(counts, chances, strict=True))


def test_classes_are_drawn_by_their_rarity_and_images_evenly() -> None:
    rng = np.random.default_rng(0)
    pixels = (rng.integers(0, 400, (60, 19)) * (rng.random((60, 19)) < 0.4)).astype(np.uint32)
    pixels[:, [9, 14]] = 0
    order = rare([pixels], min_px=50)
    places = [order.place(p) for p in range(20_000)]
    occurring = [c for c in range(19) if pixels[:, c].any()]
    assert order.classes == occurring and len(occurring) == 17
    shares = pixels.sum(0)[occurring] / pixels.sum()
    wanted = np.exp((1 - shares) / 0.5) / np.exp((1 - shares) / 0.5).sum()
    counts = Counter(p.wanted for p in places)
    # 99.9 % quantiles of chi square with 16 degrees of freedom, and with one less than the images of a class
    assert chi_square([counts[c] for c in occurring], wanted.tolist()) < 39.25
    for c in occurring[:3]:
        images = np.flatnonzero(pixels[:, c] > 50)
        seen = Counter(p.image for p in places if p.wanted == c)
        assert set(seen) == set(images.tolist())
        freedom = len(images) - 1
        even = chi_square([seen[i] for i in images.tolist()], [1 / len(images)] * len(images))
        assert even < freedom + 3.3 * (2 * freedom) ** 0.5 + 4
    assert [p.uid for p in places] == list(range(20_000))
    again = sum((a.image, a.wanted) == (b.image, b.wanted) for a, b in pairwise(places))
    assert again < 300, "neighbours are drawn for themselves"


def test_a_draw_depends_on_key_and_position_alone() -> None:
    pixels = np.random.default_rng(1).integers(0, 100, (30, 19)).astype(np.uint32)
    order = rare([pixels])
    forwards = [order.place(p) for p in range(50)]
    assert [order.place(p) for p in reversed(range(50))] == forwards[::-1]
    other = RareOrder([pixels], None, RareClassConfig(min_px=10), CITY, (2, "stage", "source"))
    assert [other.place(p) for p in range(50)] != forwards


def test_thresholds_are_strict() -> None:
    order = rare([table({0: {0: 10, 1: 11}, 1: {2: 500}}, 3)])
    assert {p.image for p in map(order.place, range(200)) if p.wanted == 0} == {1}


def test_classes_without_an_image_are_left_out_by_name() -> None:
    pixels = table({0: {0: 9000, 1: 9000}, 13: {1: 8000}, 16: {0: 7}, 18: {1: 3}}, 2)
    order = rare([pixels], min_px=3000)
    assert order.left_out == ["train", "bicycle"] and order.classes == [0, 13]
    full = probabilities(pixels.sum(0).astype(float), 0.5)
    assert np.allclose(order.probabilities, full[[0, 13]] / full[[0, 13]].sum())
    with pytest.raises(DataError, match="no image has more than 10000 pixels of road or car or train or bicycle"):
        rare([pixels], min_px=10_000)
    with pytest.raises(DataError, match="no image has more than 10 pixels of any class"):
        rare([pixels * 0])


def test_a_subset_of_classes_keeps_its_ratios() -> None:
    pixels = table({0: {0: 900}, 13: {0: 80, 1: 70}, 16: {1: 12}}, 2)
    everything, some = rare([pixels]), rare([pixels], classes=("car", "train", "bus"))
    assert some.classes == [13, 16] and some.left_out == ["bus"]
    assert np.allclose(some.probabilities, everything.probabilities[1:] / everything.probabilities[1:].sum())
    cold = rare([pixels], classes=("road", "car"), temperature=1e-6)
    assert cold.probabilities.tolist() == [0, 1], "not a number where every chance underflows"


def test_data_sets_are_drawn_with_their_weights_where_they_show_the_class() -> None:
    one = table({0: dict.fromkeys(range(10), 1000), 16: {3: 500}}, 10)
    two = table({0: dict.fromkeys(range(40), 1000), 13: {5: 600}, 16: dict.fromkeys(range(8), 500)}, 40)
    plain, weighted = rare([one, two]), rare([one, two], [0.75, 0.25])
    totals = one.sum(0) / 10 * 0.75 + two.sum(0) / 40 * 0.25
    occurring = [0, 13, 16]
    assert np.allclose(weighted.probabilities, probabilities(totals, 0.5)[occurring])
    assert np.allclose(plain.probabilities, probabilities((one.sum(0) + two.sum(0)).astype(float), 0.5)[occurring])
    for order, chance in ((plain, 1 / 9), (weighted, 0.075 / (0.075 + 0.25 / 40 * 8))):
        trains = [p.image for p in map(order.place, range(6000)) if p.wanted == 16]
        assert set(trains) == {3, *range(10, 18)}
        assert abs(trains.count(3) / len(trains) - chance) < 4 * (chance * (1 - chance) / len(trains)) ** 0.5
        assert {p.image for p in map(order.place, range(500)) if p.wanted == 13} == {15}
    with pytest.raises(DataError, match="needs 2 positive weights"):
        rare([one, two], [1.0, 0.0])


def grassy(root: Path, number: int = 6) -> Dataset:
    """A yard of road with a patch of grass of 16 pixels in its last two labels, each elsewhere."""
    own(root, number)
    for n in range(number):
        label = np.full(SIZE, 1, np.uint8)
        if n >= number - 2:
            label[2 + 8 * (n % 2) :, 4 + 9 * (n % 2) :][:4, :4] = 2
        save(root / f"labels/train/{n}.png", label)
    return opened(root)


def rare_stream(dataset: Dataset, counted: bool = True, **options: object) -> Stream:
    transform = TransformConfig(crop=(12, 14), rare_class=RareClassConfig(min_px=8, crop_px=8, tries=60, temperature=1))
    pixels = [class_pixels(dataset, DatasetConfig(dataset=dataset.name))] if counted else None
    return stream(dataset, **{"transform": transform, "pixels": pixels, **options})  # type: ignore[arg-type]


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    dataset = grassy(tmp_path / "yard")
    dataset.name = str(tmp_path / "yard")
    return dataset


def test_rare_classes_are_in_the_crops(patches: Dataset) -> None:
    seen = Counter()
    for (batch,) in take(rare_stream(patches), 0, 40):
        for label, meta in zip(batch.label, batch.meta, strict=True):
            wanted = meta.geometry["rare_class"]
            seen[wanted] += 1
            assert int((label == wanted).sum()) > 8
            assert wanted == 0 or meta.id in ("4", "5")
    assert seen[1] > 60 and seen[0] > 20
    free = Counter(m.id for (b,) in take(stream(patches), 0, 15) for m in b.meta)
    assert len(free) == 6, "without the setting every image comes"


def test_rare_streams_do_not_depend_on_workers_restarts_or_ranks(patches: Dataset) -> None:
    alone = take(rare_stream(patches), 0, 4)
    with_workers = take(rare_stream(patches, workers=2), 0, 4)
    resumed = take(rare_stream(patches), 2, 2)
    assert all(same(a[0], b[0]) for a, b in zip(alone, with_workers, strict=True))
    assert all(same(a[0], b[0]) for a, b in zip(alone[2:], resumed, strict=True))
    (whole,) = take(rare_stream(patches, batch_size=8), 1, 1)[0]
    parts = {}
    for rank in range(2):
        one = rare_stream(patches, batch_size=8, accumulate=2, rank=rank, world=2)
        parts.update({(micro, rank): batch for micro, batch in enumerate(take(one, 1, 1)[0])})
    ordered = [parts[k] for k in sorted(parts)]
    assert torch.equal(torch.cat([b.image for b in ordered]), whole.image)
    assert [m for b in ordered for m in b.meta] == list(whole.meta)


def test_rare_class_needs_labels_and_their_counts(patches: Dataset) -> None:
    (batch,) = take(rare_stream(patches, labelled=False, counted=False), 0, 1)[0]
    assert (batch.label == IGNORE).all() and "rare_class" not in batch.meta[0].geometry
    with pytest.raises(ValueError, match="class pixels of every image"):
        rare_stream(patches, counted=False)


def test_what_is_left_out_is_told_once(patches: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = [np.array([[700, 0]] * 5 + [[700, 3]], np.uint32)]
    for rank in range(2):
        rare_stream(patches, counted=False, pixels=pixels, rank=rank, world=2)
    assert capsys.readouterr().err == "rare_class leaves out grass: no image has more than 8 pixels of it\n"
