"""Endless, exactly resumable streams of global batches.

The image at position p of a stream is a pure function of (key, p), and so is everything drawn for it (its ``uid`` is
p). A stream therefore resumes from one integer and does not depend on the number of workers, ranks or micro-batches.
Torch's global generator is neither read nor advanced.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from segue.config import TransformConfig
from segue.data.batch import Batch, Meta
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.sampling import Key, Order, Pixels, Place, RareOrder
from segue.data.transforms import Item, apply, draws
from segue.labels import IGNORE


class Stream:
    """A data set, or several with weights, as an endless sequence of global batches.

    ``weights``: share of each data set in the stream (None: by its number of images, each image once a round).
    ``key``: (run seed, stage, stream name). ``batch_size`` is global: it is split over ``accumulate`` micro-batches and
    ``world`` ranks, and the split changes no sample. ``labelled``: read labels (else all are 255 and no label file is
    opened). ``workers`` 0 reads in the calling thread. ``pixels``: of each data set (images, classes), what
    ``transform.rare_class`` draws by (:func:`segue.data.statistics.class_pixels`); it has no effect without labels.

    ``Batch.label_count`` and ``counts`` hold this rank's part of the sums; the engine adds up the ranks' parts.
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
        pixels: Sequence[Pixels] | None = None,
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
        self._order = self._choose_order(weights, pixels)

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
        """What this rank reads in one iteration, a list for each micro-batch."""
        part = self.batch_size // (self.accumulate * self.world)
        out = []
        for micro in range(self.accumulate):
            first = iteration * self.batch_size + (micro * self.world + self.rank) * part
            out.append([self._order.place(p) for p in range(first, first + part)])
        return out

    def _choose_order(self, weights: Sequence[float] | None, pixels: Sequence[Pixels] | None) -> Order | RareOrder:
        rare = self.transform.rare_class
        if rare is None or not self.labelled:
            return Order([len(d) for d in self.datasets], weights, self.key)
        if pixels is None or [len(p) for p in pixels] != [len(d) for d in self.datasets]:
            raise ValueError("rare_class needs the class pixels of every image")
        order = RareOrder(pixels, weights, rare, self.datasets[0].space, self.key)
        if order.left_out and self.rank == 0:
            names = ", ".join(order.left_out)
            print(f"rare_class leaves out {names}: no image has more than {rare.min_px} pixels of it", file=sys.stderr)
        return order

    def _counted(self, batches: list[Batch]) -> list[Batch]:
        parts = self.accumulate * self.world
        label_count = torch.tensor(sum(float(b.label_count) for b in batches) / parts)
        counts = (torch.stack([b.tally() for b in batches]).sum(0) / parts).float()
        return [replace(b, label_count=label_count, counts=counts) for b in batches]


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
        index, uid, wanted = place
        which = bisect_right(self._ends, index)
        dataset = self._datasets[which]
        index -= int(self._ends[which]) - len(dataset)
        try:
            sample = dataset.read_sample(index, self._labelled)
            numbers = draws(*self._key, uid)
            item = apply(sample.image, sample.label, dataset.size, self._transform, numbers, wanted, sample.weight)
        except DataError as error:
            # As text: torch would wrap an exception into one with the worker's traceback in its message.
            return str(error)
        geometry = {**item.geometry(), "file": dataset.describe(index)}
        if wanted is not None:
            geometry["rare_class"] = wanted
        return item, Meta(uid, dataset.ids[index], dataset.name, item.window.file_size, geometry)


def _good(batch: Batch | str) -> Batch:
    if isinstance(batch, str):
        raise DataError(batch)
    return batch


def _collate(samples: list[tuple[Item, Meta] | str]) -> Batch | str:
    """Stack samples; the text of the first error instead when there is one. It counts the pixels of this stack."""
    good = [s for s in samples if not isinstance(s, str)]
    if len(good) < len(samples):
        return next(s for s in samples if isinstance(s, str))
    height, width = good[0][0].image.shape[:2]
    image = np.empty((len(good), 3, height, width), np.uint8)
    label = np.full((len(good), height, width), IGNORE, np.uint8)
    pixel = np.ones((len(good), height, width), np.bool_)
    weight = None if all(item.weight is None for item, _ in good) else torch.ones(len(good), height, width)
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
        if item.weight is not None and weight is not None:
            weight[n] = torch.from_numpy(item.weight) / 255
    count = torch.tensor(float(np.count_nonzero(label != IGNORE)), dtype=torch.float64)
    masks = pixel.view(np.uint8)
    histograms = [cv2.calcHist([row], [0], mask, [256], [0, 256]) for row, mask in zip(label, masks, strict=True)]
    counts = torch.from_numpy(np.sum(histograms, axis=0, dtype=np.float64).ravel())
    metas = tuple(meta for _, meta in good)
    planes = [torch.from_numpy(plane) for plane in (image, label, pixel)]
    return Batch(planes[0], planes[1], planes[2], weight, count, metas, counts)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # Ctrl-C and signals to the group go to the main process alone, which finishes its iteration and saves.
    os.setpgid(0, 0)
