"""Models on a labelled data set: one pass, one decode an image, one confusion matrix a model, counts of every image.

Protocol ``native``: predictions are scored at the label's own resolution (bilinear on the logits, argmax last),
whatever size the network saw. The published rules are in ``segue.scoring.protocols``; a number names its own.

``classes`` and a view are different questions. A view chooses which classes are averaged: the network still answers
with any class, and loses where it answers with a left-out one. ``classes`` restricts the argmax, as if the network had
no other output (the task-restricted scores of class-incremental learning), which can only help it. ``tasks`` asks that
of many sets of classes in the same pass, beside the full result, each on the pixels of its own classes.

Knobs that matter: ``batch_size`` (images of equal size are batched in order, so results are a pure function of model,
data and batch size), ``views`` (the first one is the headline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from PIL import Image

from segue.data.images import resize_image, resize_label, write_image
from segue.errors import UserError
from segue.files import file_of, replacing, write_json
from segue.labels import U8, LabelSpace
from segue.models.base import SegModel
from segue.models.classify import evaluating
from segue.scoring.bootstrap import write_per_image
from segue.scoring.calibration import Calibration, Fit, Sample
from segue.scoring.inference import Answer, ask, together
from segue.scoring.names import EVEN_FILE, folder_of, per_image_file
from segue.scoring.protocols import NATIVE, Protocol, protocol_of
from segue.scoring.reading import ahead
from segue.scoring.result import KEEP_WORST, Group, Result, Tally, check_views, labelled_indices

THUMBNAIL_PX = 640


class Labelled(Interface):
    """What scoring needs of a data set; ``segue.data.dataset.Dataset`` is one."""

    @property
    def name(self) -> str:
        """For messages and file names."""

    @property
    def ids(self) -> Sequence[str]:
        """Image ids, unique."""

    def read_scored(self, index: int, /) -> tuple[U8, U8]:
        """(H, W, 3) uint8 RGB at the size that the network is to see; train ids at the label's own resolution."""


class Pictures(Interface):
    """What thumbnails need of a data set, labelled or not."""

    @property
    def ids(self) -> Sequence[str]:
        """Image ids, unique."""

    def read_image(self, index: int, /) -> U8:
        """(H, W, 3) uint8 RGB, already at the size that the network is to see."""

    def read_label(self, index: int, /) -> U8:
        """(H, W) uint8 train ids at the label's own resolution, 255 = not labelled."""


@dataclass(frozen=True)
class Measure:
    """What is asked of the models and counted: see the module's text for ``classes`` against ``views``.

    ``classes``: names among which the networks must choose (empty: all). ``tasks``: name -> class names, scored besides
    as with those ``classes`` and the pixels of all others ignored. ``calibration``: count confidences too, also at
    ``temperature`` when that is given.
    """

    views: tuple[str, ...] = ("all",)
    protocol: Protocol = NATIVE
    classes: tuple[str, ...] = ()
    boundary: bool = False
    calibration: bool = False
    temperature: Fit | None = None
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def groups(self, labels: LabelSpace) -> dict[str, Group]:
        """Train ids of each task, ascending; ``UserError`` for an empty one, or beside ``classes``."""
        if self.tasks and self.classes:
            raise UserError("tasks are sets of classes to choose among: give either them or classes")
        found = {name: tuple(sorted({labels.index(own) for own in names})) for name, names in self.tasks.items()}
        if empty := [name for name, group in found.items() if not group]:
            raise UserError(f"task {empty[0]!r} has no class to choose")
        return found

    def kept(self, labels: LabelSpace) -> tuple[int, ...] | None:
        """Train ids that the networks may answer with, None for all."""
        return tuple(sorted({labels.index(name) for name in self.classes})) or None


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
    keep_worst: int = KEEP_WORST,
) -> Result:
    """Score ``model`` on every labelled image of ``dataset``; the model's training modes are as before afterwards.

    ``device``: where the network runs; the model is moved there (default: where it is). ``progress(done, total)`` is
    called after every batch. ``UserError`` for an unknown protocol or view, a model of another label space, a data set
    without labels, an unreadable file, or a label file of another size than its image file.
    """
    measure = Measure(tuple(views), protocol_of(protocol))
    return measure_models(
        [model],
        dataset,
        labels,
        measure,
        device=device,
        batch_size=batch_size,
        progress=progress,
        keep_worst=keep_worst,
    )[0]


def measure_models(
    models: Sequence[SegModel],
    dataset: Labelled,
    labels: LabelSpace,
    measure: Measure,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], object] | None = None,
    keep_worst: int = KEEP_WORST,
) -> list[Result]:
    """Score models in one pass over the data; errors as for :func:`evaluate`.

    Returns the result of the only model; of several, that of their averaged probabilities and then each model's own.
    Calibration is counted for the first result.
    """
    for model in models:
        _check(model, labels)
    check_views(labels, measure.views)
    indices = labelled_indices(dataset)
    number, groups = len(models) + (len(models) > 1), measure.groups(labels)
    tallies = [
        Tally(labels, measure.views, measure.protocol, boundary=measure.boundary, tasks=groups) for _ in range(number)
    ]
    meters = _meters(measure, labels)

    def told(done: int) -> None:
        if progress is not None:
            progress(done, len(indices))

    with _asking(models, device):
        items = _read_ahead(dataset, indices)
        for item, label, answers in _answers(models, items, measure, labels, batch_size, told):
            for tally, answer in zip(tallies, answers, strict=True):
                _add(tally, item, label, answer.restricted_ids(), dataset.name)
            for meter in meters:
                meter.add(tallies[0].scored(label), answers[0])
    found = _calibration(meters, measure, labels)
    without = len(dataset.ids) - len(indices)
    first, *rest = tallies
    return [first.result(without, keep_worst, found), *(tally.result(without, keep_worst) for tally in rest)]


def fit_temperature(
    models: Sequence[SegModel],
    dataset: Labelled,
    labels: LabelSpace,
    measure: Measure,
    *,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Fit:
    """The temperature of the models' answer (averaged, if several) on a labelled data set, best a source one."""
    for model in models:
        _check(model, labels)
    indices = labelled_indices(dataset)
    sample = Sample(measure.kept(labels) or tuple(range(len(labels))), len(indices))

    def told(done: int) -> None:
        if progress is not None:
            progress(done, len(indices))

    with _asking(models, device):
        for _, label, answers in _answers(models, _read_ahead(dataset, indices), measure, labels, 1, told):
            sample.add(label, answers[0])
    return sample.fit()


@contextmanager
def _asking(models: Sequence[SegModel], device: torch.device | str | None) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            model.to(model.mean.device if device is None else device)
            stack.enter_context(evaluating(model))
        yield


def _answers(
    models: Sequence[SegModel],
    items: Iterator[_Item],
    measure: Measure,
    labels: LabelSpace,
    batch_size: int,
    progress: Callable[[int], object],
) -> Iterator[tuple[_Item, U8, list[Answer]]]:
    """Every image with its label at the scored size and the models' answers, of several the joint one first."""
    rule, kept, groups, done = measure.protocol, measure.kept(labels), tuple(measure.groups(labels).values()), 0
    for batch in _batches(items, batch_size):
        size = rule.label_size or (batch[0].label.shape[0], batch[0].label.shape[1])
        asked = [ask(model, [item.image for item in batch], rule, size, kept, groups) for model in models]
        for item, own in zip(batch, zip(*asked, strict=True), strict=True):
            yield item, resize_label(item.label, size), [together(own), *own] if len(own) > 1 else list(own)
        done += len(batch)
        progress(done)


def _meters(measure: Measure, labels: LabelSpace) -> list[Calibration]:
    if not measure.calibration:
        return []
    kept = measure.kept(labels) or tuple(range(len(labels)))
    fitted = [] if measure.temperature is None else [measure.temperature.temperature]
    return [Calibration(kept, temperature) for temperature in (1.0, *fitted)]


def _calibration(meters: Sequence[Calibration], measure: Measure, labels: LabelSpace) -> dict[str, Any]:
    if not meters:
        return {}
    found = meters[0].to_dict(labels.classes)
    if measure.temperature is not None:
        found["after"] = meters[1].to_dict(labels.classes)
        found["fit"] = measure.temperature.to_dict()
    return {"calibration": found}


def save(result: Result, folder: Path, name: str) -> dict[str, Any]:
    """Write ``folder/per_image_<name>.npz`` (``name``: ``DATASET:split``) and return ``result.to_dict()``.

    The dictionary is what stage.json holds under ``evaluations[name]``.
    """
    write_per_image(result.per_image, folder / per_image_file(name))
    return result.to_dict()


def save_samples(
    models: Sequence[SegModel],
    dataset: Pictures,
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
    Maps are palette PNGs of train ids, long side at most 640 px. The models (by their mean probability) predict at the
    label's resolution where there is one, else at the picture's.
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
        size = (picture if label is None else label).shape[:2]
        with _asking(models, None):
            answers = [ask(model, [picture], NATIVE, (size[0], size[1]))[0] for model in models]
        ids_map = (together(answers) if len(answers) > 1 else answers[0]).ids()
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


def _check(model: SegModel, labels: LabelSpace) -> None:
    if model.num_classes != len(labels):
        raise UserError(f"the model has {model.num_classes} classes, label space {labels.name!r} has {len(labels)}")


def _add(tally: Tally, item: _Item, label: U8, predictions: Sequence[U8], dataset: str) -> None:
    try:
        tally.add(item.id, label, predictions[0])
        tally.add_tasks(label, predictions[1:])
    except ValueError as error:
        raise UserError(f"data set {dataset!r}, image {item.id!r}: {error}") from error


def _read_ahead(dataset: Labelled, indices: Sequence[int]) -> Iterator[_Item]:
    return ahead(lambda index: _Item(dataset.ids[index], *dataset.read_scored(index)), indices)


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
