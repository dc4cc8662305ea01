"""A stream is a pure function of (key, position): workers, ranks, micro-batches and restarts change nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.miniatures import SIZE, own, picture, save
from segue.config import DatasetConfig, TransformConfig
from segue.data.batch import Batch
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Order, Stream
from segue.labels import IGNORE

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
    tensors = ("image", "label", "pixel", "label_count")
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


def test_label_count_is_the_global_mean_denominator(yard: Dataset) -> None:
    batches = take(stream(yard, accumulate=2), 0, 1)[0]
    labelled = sum(int((b.label != IGNORE).sum()) for b in batches)
    assert [float(b.label_count) for b in batches] == [labelled / 2] * 2
    assert labelled > 0 and batches[0].label_count.ndim == 0


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
    rounds = [[order.image(p) for p in range(r * 11, (r + 1) * 11)] for r in range(4)]
    assert all(sorted(r) == list(range(11)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 4
    assert order.image(3) == rounds[0][3], "going back gives the same image"
    other = Order([5, 6], None, (2, "a", "b"))
    assert [other.image(p) for p in range(11)] != rounds[0]
    assert sorted(Order([3], [1.0], (0,)).image(p) for p in range(3)) == [0, 1, 2]


def test_an_image_is_drawn_anew_each_time_it_comes(tmp_path: Path) -> None:
    one = opened(own(tmp_path, 1))
    windows = [str(m.geometry) for (b,) in take(stream(one), 0, 4) for m in b.meta]
    assert len(set(windows)) > 8


def test_weights_are_met_and_images_of_a_set_come_equally_often() -> None:
    order = Order([10, 300], [0.7, 0.3], (1, "a", "b"))
    counts = Counter(order.image(p) for p in range(10_000))
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
