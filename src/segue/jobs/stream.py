"""Order the images of a stream by what is measured of them, filter them, and cut them into buckets.

"Unsupervised Incremental Learning using vDNA" (DLL project, 2024) ranked offline, in a notebook, and stored lists; here
the ranking is part of the run. What is measured of an image is stored as it is measured, so a run that was killed goes
on; what is random is keyed by (seed, group).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segue import checkpoint
from segue.config import StageConfig
from segue.data.buckets import (
    F64,
    I64,
    Cut,
    EqualCount,
    EqualWidth,
    ImageFilter,
    Within,
    ids_of_ranking,
    make_buckets,
    order,
    read_ranking,
)
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.view import View
from segue.errors import UserError
from segue.files import remove
from segue.following import FollowConfig
from segue.gap import files
from segue.gap.between import ImageSet, fingerprint_of
from segue.gap.distances import image_distances
from segue.gap.fingerprint import Histogram
from segue.gap.layers import matching
from segue.gap.networks import Extractor, extractor_of, open_network
from segue.gap.reading import images_of
from segue.jobs.bucket import StreamBucket, group_folder, group_of, write_buckets
from segue.jobs.build import Job, began_with, reference_model, weights_source
from segue.labels import U8
from segue.models.base import SegModel
from segue.models.classify import evaluating
from segue.ops.keys import seed_of
from segue.progress import Progress
from segue.pseudo_labels.generate import fingerprint
from segue.pseudo_labels.judge import whole
from segue.scoring.inference import ask
from segue.scoring.protocols import NATIVE

PREDICTED = ("class_count", "entropy", "confidence")
GAP = "gap"
START = "start"
MEASURES, REFERENCE = "measures.jsonl", "reference.npz"
CHUNK = 32
"""Images whose numbers are stored together."""

Image = tuple[str, str]


@dataclass(frozen=True)
class _Stream:
    """The images of a stream as they come, and what a ranking file says of them (NaN: nothing)."""

    images: list[Image]
    listed: dict[str, F64]
    left_out: dict[str, int]


def cut_stream(job: Job, stage: StageConfig) -> None:
    """Measure, order, filter and cut the stream of a stage, and store its buckets.

    ``UserError`` for a stream with fewer buckets than rounds, and as :mod:`segue.data.buckets`.
    """
    assert stage.follow is not None
    given, folder = stage.follow, group_folder(job.folder, stage)
    stream = _images(job, stage)
    measured = _measured(job, stage, stream)
    passing = ImageFilter(**given.filters.model_dump()).mask(measured, len(stream.images))
    places = np.flatnonzero(passing)
    if not len(places):
        raise UserError(f"stage {stage.name!r}: none of {len(stream.images)} images passes follow.filters: loosen them")
    scores = np.arange(len(places), dtype=np.float64) if given.rank.by == "stream" else measured[given.rank.by][places]
    seed = seed_of(job.recipe.seed, str(group_of(stage)), "order")
    made = make_buckets(scores, given.order, _cut(given), seed)
    if len(made) < given.total:
        raise UserError(f"stage {stage.name!r}: the stream has {len(made)} buckets, 'rounds' visits {given.total}")
    buckets = []
    for number, bucket in enumerate(made[: given.total]):
        chosen = _drawn(bucket.indices, given.images, seed_of(seed, number))
        images = tuple(stream.images[places[i]] for i in chosen)
        ends = (math.nan, math.nan) if given.rank.by == "stream" else (bucket.low, bucket.high)
        buckets.append(StreamBucket(images, *ends))
    stream.left_out["filtered"] = len(stream.images) - len(places)
    stream.left_out["in buckets that are not visited"] = sum(len(b.indices) for b in made[given.total :])
    told = {"by": given.rank.by, "order": given.order, "start": began_with(job, stage), "left_out": stream.left_out}
    write_buckets(folder, buckets, told)
    if not given.keep_measures:
        remove(folder / MEASURES)


def check_follow(job: Job, stage: StageConfig) -> None:
    """What can be wrong with a stream before anything is measured: data, ranking file, network, number of buckets."""
    if (given := stage.follow) is None:
        return
    if given.source is not None:
        job.dataset(given.source, stage.name)
    stream = _images(job, stage)
    measured = GAP in _wanted(stage, stream)
    if given.cut == "count" and len(stream.images) < (number := given.buckets or given.total):
        raise UserError(
            f"stage {stage.name!r}: {len(stream.images)} images cannot fill {number} buckets: ask for fewer"
        )
    ranked = given.rank.layers if measured else ()
    if measured and given.rank.network != START:
        open_network(given.rank.network, layers=ranked)
        ranked = ()
    named = [patterns for patterns in (ranked, given.layers.layers if given.layers else ()) if patterns]
    if named and given.bucket == 1:
        model = reference_model(job, stage, began_with(job, stage), trained=False)
        for patterns in named:
            matching(model, patterns)


def in_bucket(stage: StageConfig, text: str, images: int) -> int:
    """How many of a data set's images a stage trains on, about: before the stream is cut."""
    if stage.follow is None or text not in stage.follow.data:
        return images
    each = -(-images // (stage.follow.buckets or stage.follow.total))
    return min(each, stage.follow.images or each)


def looks(job: Job, stage: StageConfig) -> int:
    """How many images a stage looks at to order its stream and to choose its layers, for a plan."""
    if (given := stage.follow) is None:
        return 0
    source = 0 if given.source is None else len(job.dataset(given.source, stage.name))
    compared = min(source, given.source_images or source)
    stream = sum(len(job.dataset(text, stage.name)) for text in given.data)
    found = 0
    if given.bucket == 1 and (wanted := _wanted(stage, _images(job, stage))):
        found += stream + 2 * compared * (GAP in wanted)  # ranges, then counts
    if given.layers is not None:
        found += 2 * compared + in_bucket(stage, given.data[0], stream)
    return found


def _images(job: Job, stage: StageConfig) -> _Stream:
    assert stage.follow is not None
    datasets = {text: job.dataset(text, stage.name) for text in stage.follow.data}
    everything = [(text, image_id) for text, dataset in datasets.items() for image_id in dataset.ids]
    if stage.follow.rank.file is None:
        return _Stream(everything, {}, {})
    ranking = read_ranking(stage.follow.rank.file)
    rows: dict[Image, int] = {}
    faults = []
    for text, dataset in datasets.items():
        try:
            places = ids_of_ranking(ranking, dataset)
        except DataError as error:  # it may be of the other data sets
            faults.append(error)
            continue
        rows |= {(text, dataset.ids[p]): row for row, p in enumerate(places) if p is not None}
    if not rows:
        raise faults[0]
    taken = {image: row for image, row in rows.items() if not ranking.validation[row]}
    images = [image for image in everything if image in taken]
    index = np.array([taken[image] for image in images], np.int64)
    held = {"not in the ranking": len(everything) - len(rows), "for validation": len(rows) - len(taken)}
    return _Stream(images, {name: column[index] for name, column in ranking.values.items()}, held)


def _measured(job: Job, stage: StageConfig, stream: _Stream) -> dict[str, F64]:
    """The numbers that order and filters need, of every image; those of the ranking file are taken from there."""
    assert stage.follow is not None
    if not (missing := _wanted(stage, stream)):
        return dict(stream.listed)
    model = checkpoint.load_model(weights_source(job, stage, began_with(job, stage)))[0].to(job.hardware.device)
    measurer = _Measurer(job, stage, model, missing)
    found = measurer.run(stream.images)
    return {**stream.listed, **{name: np.array([row[name] for row in found]) for name in missing}}


def _wanted(stage: StageConfig, stream: _Stream) -> list[str]:
    """Names of the numbers that have to be measured."""
    assert stage.follow is not None
    given = stage.follow
    wanted = {name for name in PREDICTED if given.filters.model_dump()[_LIMITS[name]] is not None}
    missing = sorted((wanted | {given.rank.by} - {"stream"}) - stream.listed.keys())
    if not set(missing) <= {*PREDICTED, GAP}:
        known = ", ".join(sorted(stream.listed)) or "none"
        raise UserError(f"stage {stage.name!r}: {given.rank.file} has no score {given.rank.by!r} (it has: {known})")
    if GAP in missing and given.source is None:
        raise UserError(f"stage {stage.name!r}: {given.rank.file} has no score 'gap': give follow.source to measure it")
    return missing


def measures_gap(job: Job, stage: StageConfig) -> bool:
    """Whether a stage's images are compared with the source's, rather than ranked by a file."""
    return GAP in _wanted(stage, _images(job, stage))


_LIMITS = {"class_count": "class_count_min", "entropy": "entropy_max", "confidence": "confidence_min"}


class _Measurer:
    """Numbers of images, each stored when it is known."""

    def __init__(self, job: Job, stage: StageConfig, model: SegModel, names: Sequence[str]) -> None:
        assert stage.follow is not None
        self.job, self.stage, self.config, self.model, self.names = job, stage, stage.follow, model, list(names)
        self.folder = group_folder(job.folder, stage)
        self.path = self.folder / MEASURES
        self.reference: tuple[Extractor, Histogram] | None = None
        datasets = {text: job.dataset(text, stage.name) for text in stage.follow.data}
        self.place = {(text, i): n for text, dataset in datasets.items() for n, i in enumerate(dataset.ids)}

    def run(self, images: Sequence[Image]) -> list[dict[str, float]]:
        known = self._stored()
        todo = [image for image in images if image not in known]
        progress = Progress(f"{self.stage.name}: looking at the stream")
        for first in range(0, len(todo), CHUNK):
            known |= self._store(todo[first : first + CHUNK])
            progress(len(images) - len(todo) + min(first + CHUNK, len(todo)), len(images))
        return [known[image] for image in images]

    def _stored(self) -> dict[Image, dict[str, float]]:
        """What an earlier run has measured with the same model; a line that is not whole was cut by a kill."""
        head = json.dumps({"model": fingerprint(self.model), "names": self.names, "rank": str(self.config.rank)})
        lines = self.path.read_text("utf-8", "replace").split("\n")[:-1] if self.path.is_file() else []
        try:
            rows = [json.loads(line) for line in lines[1:] if lines[0] == head]
            known = {(row["data"], row["id"]): {name: float(row[name]) for name in self.names} for row in rows}
        except (ValueError, KeyError, TypeError):  # damaged: all is measured again
            known = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(lines if known else [head]) + "\n", "utf-8")
        return known

    def _store(self, images: Sequence[Image]) -> dict[Image, dict[str, float]]:
        found: dict[Image, dict[str, float]] = {}
        for text in dict.fromkeys(text for text, _ in images):
            ids = [image_id for name, image_id in images if name == text]
            places = [self.place[text, image_id] for image_id in ids]
            rows = self._numbers(View(self.job.dataset(text, self.stage.name), places))
            found |= {(text, image_id): row for image_id, row in zip(ids, rows, strict=True)}
        with self.path.open("a", encoding="utf-8") as file:
            for (text, image_id), row in found.items():
                file.write(json.dumps({"data": text, "id": image_id, **row}) + "\n")
        return found

    def _numbers(self, part: Dataset) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = [{} for _ in part.ids]
        if set(self.names) & set(PREDICTED):
            with torch.inference_mode(), evaluating(self.model):
                rows = [self._predicted(part.read_image(index)) for index in range(len(part))]
        if GAP in self.names:
            for row, distance in zip(rows, self._distances(part), strict=True):
                row[GAP] = distance
        return rows

    def _predicted(self, picture: U8) -> dict[str, float]:
        (answer,) = ask(self.model, [picture], NATIVE, (picture.shape[0], picture.shape[1]))
        found = whole(answer)
        return {
            "class_count": int(torch.bincount(found.winner.flatten()).count_nonzero()),
            "entropy": float(found.entropy.mean()),
            "confidence": float(found.confidence.mean()),
        }

    def _distances(self, part: Dataset) -> list[float]:
        if self.reference is None:
            self.reference = reference_of(self.job, self.stage, self.model)
        extractor, histogram = self.reference
        batches = images_of(part, extractor, self.config.rank.size, self._batch)
        return [float(d) for d in image_distances(extractor.probe, histogram, batches).numbers]

    @property
    def _batch(self) -> int:
        return self.job.recipe.evaluate.batch_size


def reference_of(job: Job, stage: StageConfig, model: SegModel) -> tuple[Extractor, Histogram]:
    """The network that a stream is ranked by, and the source's fingerprint in it, which is counted once."""
    assert stage.follow is not None
    rank, path = stage.follow.rank, group_folder(job.folder, stage) / REFERENCE
    extractor = (
        extractor_of(model, rank.layers)
        if rank.network == START
        else open_network(rank.network, layers=rank.layers, device=job.hardware.device, seed=job.recipe.seed)
    )
    stored = files.load(path) if path.is_file() else None
    if not isinstance(stored, Histogram) or stored.network != extractor.identity:
        found = fingerprint_of(extractor, source_images(job, stage))
        assert isinstance(found, Histogram)  # as asked for
        files.save(stored := found, path)
    return extractor, stored


def source_images(job: Job, stage: StageConfig) -> ImageSet:
    """The images of the source that a stream is compared with."""
    given = stage.follow
    assert given is not None and given.source is not None
    title, batch = f"{stage.name}: looking at {given.source}", job.recipe.evaluate.batch_size
    dataset = job.dataset(given.source, stage.name)
    return ImageSet(dataset, given.rank.size, batch, given.source_images, lambda: Progress(title))


def _drawn(indices: I64, images: int | None, seed: int) -> I64:
    """So many of a bucket's images, in the bucket's order."""
    if images is None or images >= len(indices):
        return indices
    return indices[np.sort(order(np.zeros(len(indices)), "random", seed)[:images])]


def _cut(given: FollowConfig) -> Cut:
    if given.distance is not None:
        return Within(given.distance)
    number = given.buckets or given.total
    return EqualCount(number) if given.cut == "count" else EqualWidth(number)
