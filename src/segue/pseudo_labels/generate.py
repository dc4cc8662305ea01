"""Models label the images of a data set: each image is predicted once, by the mean of their probabilities.

Networks are asked as scoring asks them (protocol ``native``), at the size at which the data set's images are read, and
answer tile by tile. Knobs that matter: ``models`` (several are FDA's multi-band transfer) and the rules
(:mod:`segue.pseudo_labels.judge`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from segue.data.copies import spread
from segue.data.dataset import Dataset
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.models.base import SegModel
from segue.models.classify import evaluating
from segue.pseudo_labelling import PseudoLabelConfig
from segue.pseudo_labels.judge import Judge, views
from segue.pseudo_labels.thresholds import published
from segue.pseudo_labels.write import Writer, require_space
from segue.scoring.inference import Answer
from segue.scoring.protocols import Protocol
from segue.scoring.reading import ahead

MEASURED = 8
"""The bytes that are needed are told from this many images, evenly spaced."""


def generate(
    models: Sequence[SegModel],
    dataset: Dataset,
    labels: LabelSpace,
    folder: Path,
    config: PseudoLabelConfig,
    *,
    device: torch.device | str,
    batch_size: int = 1,
    progress: Callable[[int, int], object] | None = None,
    info: Mapping[str, Any] | None = None,
    source: Dataset | None = None,
) -> dict[str, Any]:
    """Write labels of every image of ``dataset`` into ``folder``; returns what its ``index.json`` holds.

    ``source``: the labelled images of ``config.trust.source``, where that is set.

    The index: ``format``, ``data``, ``model_paths``, ``info``'s own keys; ``labels``, ``split``, ``size``, ``models``
    (hashes of their weights), and the rules as set; by class name ``thresholds``, ``pixels`` (as predicted) and
    ``pixels_kept``; ``share_kept``; ``images``: id to ``file``, ``size``, mean ``entropy`` and ``confidence``,
    ``class_count`` (all of the predictions) and share ``kept``. With trust, each image's ``weight`` file, by class name
    the mean of the labels' ``weights``, and ``source_labels``: what was read of the source and what it told.
    :class:`segue.data.relabelled.Relabelled` reads it. A folder that was begun with the same settings goes on, a
    finished one is left as it is.

    ``UserError`` for models of other classes and for probabilities that are no numbers, and as :class:`Writer`;
    ``DataError`` for source images without label.
    """
    for model in models:
        if model.num_classes != len(labels):
            raise UserError(f"the model has {model.num_classes} classes, label space {labels.name!r} has {len(labels)}")
    judge, weighted = Judge(labels, config, source), config.trust is not None
    settings = {
        "split": dataset.split,
        "size": dataset.size,
        "models": [fingerprint(model) for model in models],
        **judge.settings(),
    }
    told = {**(info or {}), "data": dataset.name, "model_paths": config.models}
    with Writer(folder, labels, dataset.ids, settings, told, weighted) as writer, ExitStack() as asking:
        missing = set(writer.todo)
        todo = [index for index, image_id in enumerate(dataset.ids) if image_id in missing]
        require_space(folder, _pixels(dataset, todo), weighted)
        asking.enter_context(torch.inference_mode())
        for model in models:
            asking.enter_context(evaluating(model.to(device)))
        if writer.predicting:
            judge.learn(models)
        done = len(dataset) - len(todo)
        for batch in _predicted(models, dataset, todo, batch_size, judge.protocol):
            for image_id, answers in batch:
                judge.pass_on(writer, image_id, answers)
            done += len(batch)
            if progress is not None:
                progress(done, len(dataset))
        return writer.finish(lambda counted: published(counted, judge.quantiles, config.cap), judge.learned())


def fingerprint(model: SegModel) -> str:
    """What tells a model from others: a hash of its settings and tensors, wherever they lie."""
    settings = model.config.model_dump(mode="json", exclude={"weights"})
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _predicted(
    models: Sequence[SegModel], dataset: Dataset, todo: Sequence[int], batch_size: int, protocol: Protocol
) -> Iterator[list[tuple[str, list[Answer]]]]:
    """Images and the answers to their views, neighbours of equal size in one forward pass."""
    items = ahead(lambda index: (dataset.ids[index], dataset.read_image(index)), todo)
    for (height, width), same in groupby(items, lambda item: item[1].shape[:2]):
        while batch := list(islice(same, batch_size)):
            ids, pictures = zip(*batch, strict=True)
            yield list(zip(ids, views(models, pictures, protocol, (height, width)), strict=True))


def _pixels(dataset: Dataset, todo: Sequence[int]) -> int:
    """Pixels of images, told from a few of them where their size is not set."""
    if dataset.size is not None or not todo:
        height, width = dataset.size or (0, 0)
        return len(todo) * height * width
    measured = [dataset.read_image(index) for index in spread(todo, MEASURED)]
    return sum(image.size // 3 for image in measured) * len(todo) // len(measured)
