"""A model on a labelled data set: one pass, one confusion matrix, and the counts of every image.

Protocol ``native``: predictions are scored at the label's own resolution (bilinear on the logits, argmax last),
whatever size the network saw. Other rules will be named protocols; a stored number always names its own.

Knobs that matter: ``batch_size`` (images of equal size are batched in order, so results are a pure function of model,
data and batch size), ``views`` (the first one is the headline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from segue.data.images import resize_image, resize_label, write_image
from segue.errors import UserError
from segue.files import replacing, write_json
from segue.labels import U8, LabelSpace, nearest
from segue.models.base import SegModel
from segue.predict import classify, evaluating, to_input
from segue.scoring.bootstrap import Interval, PerImage, paired_interval, write_per_image
from segue.scoring.matrix import Confusion, Scores
from segue.scoring.names import EVEN_FILE, file_of, folder_of, per_image_file

PROTOCOLS = ("native",)
THUMBNAIL_PX = 640
AHEAD = 4  # images that are read while the network works


class Labelled(Protocol):
    """What scoring needs of a data set; ``segue.data.dataset.Dataset`` is one."""

    @property
    def name(self) -> str:
        """For messages and file names."""

    @property
    def ids(self) -> Sequence[str]:
        """Image ids, unique."""

    def read_image(self, index: int, /) -> U8:
        """(H, W, 3) uint8 RGB, already at the size that the network is to see."""

    def read_label(self, index: int, /) -> U8:
        """(H, W) uint8 train ids at the label's own resolution, 255 = not labelled."""


@dataclass(frozen=True)
class Result:
    """What an evaluation found. ``views[0]`` is the view of the headline numbers and of ``per_image``.

    ``without_label`` counts images of the data set that have no label file and so no score.
    """

    labels: LabelSpace
    confusion: Confusion
    per_image: PerImage
    views: tuple[str, ...]
    protocol: str
    keep_worst: int
    without_label: int = 0

    def scores(self, view: str | None = None) -> Scores:
        """Scores of a view, by default the first."""
        return self.confusion.scores(self.labels, view or self.views[0], self.protocol)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers (NaN is None): an entry of ``evaluations`` in stage.json.

        ``miou``, ``accuracy``, ``mean_accuracy``, ``iou``, ``class_accuracy``, ``protocol``, ``view`` of the first
        view; ``num_images``, ``without_label``; ``confusion`` (C lists of C+1 counts, the last for predictions that
        are no class); ``worst`` (id and miou of the lowest-scoring images); ``views``: name -> scores of every view.
        """
        worst = self.per_image.worst(self.keep_worst)
        return self.scores().to_dict() | {
            "num_images": len(self.per_image.ids),
            "without_label": self.without_label,
            "confusion": self.confusion.counts.tolist(),
            "worst": [{"id": name, "miou": miou} for name, miou in worst],
            "views": {view: self.scores(view).to_dict() for view in self.views},
        }


@dataclass(frozen=True)
class _Item:
    id: str
    image: U8
    label: U8


def evaluate(
    model: SegModel,
    dataset: Labelled,
    labels: LabelSpace,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    views: Sequence[str] = ("all",),
    protocol: str = "native",
    progress: Callable[[int, int], object] | None = None,
    keep_worst: int = 8,
) -> Result:
    """Score ``model`` on every labelled image of ``dataset``; the model's training modes are as before afterwards.

    ``device``: where the network runs; the model is moved there (default: where it is). ``progress(done, total)`` is
    called after every batch. ``UserError`` for an unknown protocol or view, a model of another label space, a data set
    without labels, or an unreadable file.
    """
    _check(model, labels, views, protocol)
    without = set(getattr(dataset, "unlabelled_ids", ()))
    indices = [i for i, name in enumerate(dataset.ids) if name not in without]
    if not indices or not getattr(dataset, "labelled", True):
        raise UserError(f"data set {dataset.name!r} has no labels to score against")
    place = torch.device(device) if device is not None else model.mean.device
    model.to(place)
    total = Confusion(len(labels))
    names: list[str] = []
    sums: list[tuple[np.ndarray[Any, Any], ...]] = []
    with evaluating(model), torch.inference_mode():
        for items in _batches(_read_ahead(dataset, indices), batch_size):
            output = model(to_input([item.image for item in items], place))
            predictions = classify(output, items[0].label.shape[:2]).cpu().numpy()
            for item, prediction in zip(items, predictions, strict=True):
                names.append(item.id)
                sums.append(_add(total, item, prediction, dataset.name))
            if progress is not None:
                progress(len(names), len(indices))
    right, truth, predicted = (np.stack(rows).astype(np.uint32) for rows in zip(*sums, strict=True))
    per_image = PerImage(tuple(names), labels.classes, right, truth, predicted, labels.view(views[0]))
    return Result(labels, total, per_image, tuple(views), protocol, keep_worst, len(dataset.ids) - len(indices))


def paired_bootstrap(result_a: Result, result_b: Result, n: int = 1000, seed: int = 0, level: float = 0.9) -> Interval:
    """Interval of mIoU(b) - mIoU(a) over ``n`` resamples of the images; ``ValueError`` unless these are the same."""
    return paired_interval(result_a.per_image, result_b.per_image, n, seed, level)


def save(result: Result, folder: Path, name: str) -> dict[str, Any]:
    """Write ``folder/per_image_<name>.npz`` (``name``: ``DATASET:split``) and return ``result.to_dict()``.

    The dictionary is what stage.json holds under ``evaluations[name]``.
    """
    write_per_image(result.per_image, folder / per_image_file(name))
    return result.to_dict()


def save_samples(
    model: SegModel,
    dataset: Labelled,
    labels: LabelSpace,
    run_folder: Path,
    stage_folder: Path,
    name: str,
    *,
    count: int = 4,
    ids: Sequence[str] = (),
) -> list[str]:
    """Store thumbnails of a few images for the report; returns their ids.

    The images are ``count`` evenly spaced ones (the same for every stage) and those of ``ids``, such as the worst.
    Shared by all stages, under ``run_folder/samples/<name>/``: ``<id>_image.jpg``, ``<id>_label.png`` (when there are
    labels) and ``evenly_spaced.json`` (ids of the former). ``stage_folder/images/<name>/<id>.png`` is the prediction.
    Maps are palette PNGs of train ids, long side at most 640 px. The model predicts at the label's resolution where
    there is one, else at the picture's.
    """
    chosen = sample_ids(dataset.ids, count)
    even = list(chosen)
    chosen += [i for i in ids if i not in chosen]
    shared, own = run_folder / "samples" / folder_of(name), stage_folder / "images" / folder_of(name)
    without = set(getattr(dataset, "unlabelled_ids", ()))
    for image_id in chosen:
        index = dataset.ids.index(image_id)
        picture = dataset.read_image(index)
        labelled = getattr(dataset, "labelled", True) and image_id not in without
        label = dataset.read_label(index) if labelled else None
        size = picture.shape[:2] if label is None else label.shape
        with evaluating(model), torch.inference_mode():
            ids_map: U8 = classify(model(to_input([picture], model.mean.device)), size)[0].cpu().numpy()
        small = thumbnail_size(size)
        file = file_of(image_id)
        write_image(shared / f"{file}_image.jpg", resize_image(picture, small), quality=90)
        if label is not None:
            _write_indexed(shared / f"{file}_label.png", resize_label(label, small), labels)
        _write_indexed(own / f"{file}.png", resize_label(ids_map, small), labels)
    if chosen:
        write_json(shared / EVEN_FILE, even)
    return chosen


def sample_ids(ids: Sequence[str], count: int) -> list[str]:
    """``count`` evenly spaced ids, from the middle of equal parts; all of them when there are fewer."""
    count = min(count, len(ids))
    return [ids[(2 * k + 1) * len(ids) // (2 * count)] for k in range(count)]


def thumbnail_size(size: tuple[int, ...], long_side_px: int = THUMBNAIL_PX) -> tuple[int, int]:
    """(height, width) with the long side at most ``long_side_px``; never enlarged."""
    factor = min(1.0, long_side_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _write_indexed(path: Path, ids: U8, labels: LabelSpace) -> None:
    """A palette PNG: the numbers are train ids, viewers show the label space's colours."""
    image = Image.fromarray(ids, mode="P")
    image.putpalette(labels.palette().tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def _check(model: SegModel, labels: LabelSpace, views: Sequence[str], protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}{nearest(protocol, PROTOCOLS)}")
    if not views:
        raise UserError("scoring needs at least one view ('all' is every class)")
    for view in views:
        labels.view(view)
    if model.num_classes != len(labels):
        raise UserError(f"the model has {model.num_classes} classes, label space {labels.name!r} has {len(labels)}")


def _add(total: Confusion, item: _Item, prediction: U8, dataset: str) -> tuple[np.ndarray[Any, Any], ...]:
    try:
        return total.add(item.label, prediction).sums()
    except ValueError as error:
        raise UserError(f"data set {dataset!r}, image {item.id!r}: {error}") from error


def _read_ahead(dataset: Labelled, indices: Sequence[int]) -> Iterator[_Item]:
    """Images and labels in order, read by one thread a few images ahead (decoders release the interpreter's lock)."""

    def read(index: int) -> _Item:
        return _Item(dataset.ids[index], dataset.read_image(index), dataset.read_label(index))

    pool = ThreadPoolExecutor(1, "segue-read")
    waiting: list[Future[_Item]] = []
    rest = iter(indices)
    try:
        waiting += [pool.submit(read, i) for i in islice(rest, AHEAD)]
        while waiting:
            item = waiting.pop(0).result()
            waiting += [pool.submit(read, i) for i in islice(rest, 1)]
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(items: Iterator[_Item], batch_size: int) -> Iterator[list[_Item]]:
    """Neighbouring images of equal size together, at most ``batch_size``."""
    batch: list[_Item] = []
    for item in items:
        if batch and _size(item) != _size(batch[0]):
            yield batch
            batch = []
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _size(item: _Item) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return item.image.shape, item.label.shape
