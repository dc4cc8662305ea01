"""Endless, exactly resumable streams of global batches.

The image at position p of a stream is a pure function of (key, p), and so is everything drawn for it (its ``uid`` is
p). A stream therefore resumes from one integer and does not depend on the number of workers, ranks or micro-batches.
Torch's global generator is neither read nor advanced.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from segue.config import TransformConfig
from segue.data.batch import Batch, Meta
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.transforms import Item, apply, draws
from segue.labels import IGNORE
from segue.ops.keys import generator

Key = tuple[int | str, ...]
Place = tuple[int, int]
"""(image index over all data sets, uid)"""

_SHORTEST_ROUND = 1000
"""A weighted round has at least this many positions, so that weights are met to 0.1 %."""


class Stream:
    """A data set, or several with weights, as an endless sequence of global batches.

    ``weights``: share of each data set in the stream (None: by its number of images, each image once a round).
    ``key``: (run seed, stage, stream name). ``batch_size`` is global: it is split over ``accumulate`` micro-batches and
    ``world`` ranks, and the split changes no sample. ``labelled``: read labels (else all are 255 and no label file is
    opened). ``workers`` 0 reads in the calling thread.

    ``Batch.label_count`` holds this rank's part of the sum; the engine adds up the ranks' parts.
    ``DataError`` when a labelled stream lacks labels or the sizes do not divide.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None,
        transform: TransformConfig,
        key: Key,
        batch_size: int,
        labelled: bool,
        workers: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % (accumulate * world):
            raise DataError(
                f"batch size {batch_size} cannot be split over {accumulate} micro-batches and {world} devices: "
                f"make it a multiple of {accumulate * world}"
            )
        if labelled:
            for dataset in datasets:
                dataset.require_labels()
        self.datasets = list(datasets)
        self.transform = transform
        self.key = key
        self.batch_size = batch_size
        self.labelled = labelled
        self.workers = workers
        self.accumulate = accumulate
        self.rank = rank
        self.world = world
        self._order = Order([len(d) for d in self.datasets], weights, key)

    @property
    def length(self) -> int:
        """Number of images."""
        return sum(len(d) for d in self.datasets)

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations after which at least as many images were seen as the stream has."""
        return -(-self.length // self.batch_size)

    def iterate(self, start: int = 0) -> Iterator[list[Batch]]:
        """For iteration ``start``, ``start + 1``, …: this rank's ``accumulate`` micro-batches. Never ends.

        ``DataError`` of a worker is raised here as it is, naming the file. Closing the iterator stops the workers.
        """
        loader: DataLoader[Any] = DataLoader(
            _Samples(self.datasets, self.transform, self.key, self.labelled),
            batch_sampler=_Places(self, start),
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker if self.workers else None,
        )
        micro_batches = iter(loader)
        try:
            while True:
                yield self._counted([_good(next(micro_batches)) for _ in range(self.accumulate)])
        finally:
            # Workers stop when their iterator goes; without this a traceback would keep both.
            del micro_batches

    def places(self, iteration: int) -> list[list[Place]]:
        """This rank's (image index, uid) of one iteration, a list for each micro-batch."""
        part = self.batch_size // (self.accumulate * self.world)
        out = []
        for micro in range(self.accumulate):
            first = iteration * self.batch_size + (micro * self.world + self.rank) * part
            out.append([(self._order.image(p), p) for p in range(first, first + part)])
        return out

    def _counted(self, batches: list[Batch]) -> list[Batch]:
        total = sum(float(b.label_count) for b in batches)
        count = torch.tensor(total / (self.accumulate * self.world))
        return [replace(b, label_count=count) for b in batches]


class Order:
    """Which image stands at a position: a keyed permutation a round, the rounds one after the other.

    With one data set, or without weights, a round is every image once. With weights it holds of each data set its
    share, and each data set runs through its own keyed permutations, so that its images come equally often.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, key: Key) -> None:
        if not sizes or min(sizes) < 1:
            raise DataError("a stream needs at least one data set with at least one image")
        self._sizes = list(sizes)
        self._starts = [sum(sizes[:d]) for d in range(len(sizes))]
        self._weighted = weights is not None and len(sizes) > 1
        shares = None if weights is None else _shares(weights, len(sizes), sum(sizes))
        self._counts = shares if shares is not None and self._weighted else list(sizes)
        self._key = key
        self._round = lru_cache(maxsize=2)(self._make_round)

    def image(self, position: int) -> int:
        """Index over all data sets of the image at a position."""
        number, place = divmod(position, sum(self._counts))
        return int(self._round(number)[place])

    def _make_round(self, number: int) -> npt.NDArray[np.int64]:
        parts = []
        for d, (count, size, start) in enumerate(zip(self._counts, self._sizes, self._starts, strict=True)):
            turns = np.arange(number * count, (number + 1) * count) if self._weighted else np.arange(size)
            parts.append(start + (self._turn(d, turns) if self._weighted else turns))
        images = np.concatenate(parts)
        return images[_permutation(len(images), *self._key, "order", number)]

    def _turn(self, d: int, turns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Images of data set ``d`` at its own positions ``turns``."""
        passes, places = np.divmod(turns, self._sizes[d])
        out = np.empty_like(turns)
        for number in np.unique(passes):
            here = passes == number
            out[here] = _permutation(self._sizes[d], *self._key, "order", d, int(number))[places[here]]
        return out


class _Places(Sampler[list[Place]]):
    """Hands the loader the places of micro-batch after micro-batch, for ever."""

    def __init__(self, stream: Stream, start: int) -> None:
        self._stream = stream
        self._start = start

    def __iter__(self) -> Iterator[list[Place]]:
        iteration = self._start
        while True:
            yield from self._stream.places(iteration)
            iteration += 1


class _Samples(TorchDataset[Any]):
    """Reads and transforms one sample; what a worker process holds."""

    def __init__(self, datasets: Sequence[Dataset], transform: TransformConfig, key: Key, labelled: bool) -> None:
        self._datasets = list(datasets)
        self._transform = transform
        self._key = key
        self._labelled = labelled
        self._ends = list(np.cumsum([len(d) for d in datasets]))

    def __getitem__(self, place: Place) -> tuple[Item, Meta] | str:
        index, uid = place
        which = bisect_right(self._ends, index)
        dataset = self._datasets[which]
        index -= int(self._ends[which]) - len(dataset)
        try:
            sample = dataset.read_sample(index, self._labelled)
            item = apply(sample.image, sample.label, dataset.size, self._transform, draws(*self._key, uid))
        except DataError as error:
            # As text: torch would wrap an exception into one with the worker's traceback in its message.
            return str(error)
        geometry = {**item.window.to_dict(), "file": dataset.describe(index)}
        return item, Meta(uid, dataset.ids[index], dataset.name, item.window.file_size, geometry)


def _good(batch: Batch | str) -> Batch:
    if isinstance(batch, str):
        raise DataError(batch)
    return batch


def _collate(samples: list[tuple[Item, Meta] | str]) -> Batch | str:
    """Stack samples; the text of the first error instead when there is one. ``label_count``: pixels of this stack."""
    good = [s for s in samples if not isinstance(s, str)]
    if len(good) < len(samples):
        return next(s for s in samples if isinstance(s, str))
    height, width = good[0][0].image.shape[:2]
    image = np.empty((len(good), 3, height, width), np.uint8)
    label = np.full((len(good), height, width), IGNORE, np.uint8)
    pixel = np.ones((len(good), height, width), np.bool_)
    for n, (item, meta) in enumerate(good):
        if item.image.shape[:2] != (height, width):
            h, w = item.image.shape[:2]
            return (
                f"images of one batch differ in size: {meta.geometry['file']} is {w}x{h} pixels after resizing, "
                f"{good[0][1].geometry['file']} is {width}x{height}; set 'crop: [height, width]' in the transform, or "
                f"'size' of the data set"
            )
        image[n] = item.image.transpose(2, 0, 1)
        if item.label is not None:
            label[n] = item.label
        if item.pixel is not None:
            pixel[n] = item.pixel
    count = torch.tensor(float(np.count_nonzero(label != IGNORE)), dtype=torch.float64)
    metas = tuple(meta for _, meta in good)
    return Batch(torch.from_numpy(image), torch.from_numpy(label), torch.from_numpy(pixel), None, count, metas)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # Ctrl-C and signals to the group go to the main process alone, which finishes its iteration and saves.
    os.setpgid(0, 0)


def _permutation(length: int, *key: int | str) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = torch.randperm(length, generator=generator(*key)).numpy()
    return out


def _shares(weights: Sequence[float], number: int, length: int) -> list[int]:
    """Positions of each data set in one round, by largest remainder; at least one each."""
    if len(weights) != number or not all(w > 0 for w in weights):
        raise DataError(f"a stream of {number} data sets needs {number} positive weights, not {list(weights)}")
    wanted = np.array(weights, np.float64) / sum(weights) * max(length, _SHORTEST_ROUND)
    counts = np.floor(wanted).astype(int)
    for d in np.argsort(counts - wanted, kind="stable")[: round(float(wanted.sum())) - int(counts.sum())]:
        counts[d] += 1
    return [max(1, int(c)) for c in counts]
