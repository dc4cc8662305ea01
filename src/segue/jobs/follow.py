"""What a stage that follows a stream does before it trains, and what it records: its bucket, and the layers it trains.

One process measures, the others wait; what has been stored is kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import reduce
from typing import Any

from segue import checkpoint
from segue.config import StageConfig
from segue.files import write_json
from segue.gap.between import between, fingerprint_of, merged
from segue.gap.distances import outlying
from segue.gap.fingerprint import Histogram
from segue.gap.networks import extractor_of
from segue.jobs.bucket import group_folder, group_of, is_cut, layers_file, read_bucket, read_info, read_layers
from segue.jobs.build import Job, began_with, images_of, method_class, model_config, weights_source
from segue.jobs.stream import cut_stream, measures_gap, source_images
from segue.methods.base import Method
from segue.models.base import SegModel
from segue.models.build import validate
from segue.models.wrapped import WrappedConfig
from segue.progress import Progress


def arrange(job: Job, stage: StageConfig) -> None:
    """Cut the stream before its first bucket, and choose the layers to train before each."""
    if stage.follow is None:
        return
    folder = group_folder(job.folder, stage)
    if job.hardware.rank == 0:
        if not is_cut(folder):
            cut_stream(job, stage)
        if stage.follow.layers is not None and not layers_file(folder, stage.follow.bucket).is_file():
            _choose_layers(job, stage)
    job.hardware.barrier()


def record(job: Job, stage: StageConfig, method: Method) -> dict[str, Any] | None:
    """What the stage followed, trained and used of the source, for stage.json."""
    if (given := stage.follow) is None:
        return None
    folder, model = group_folder(job.folder, stage), method.model
    bucket = read_bucket(folder, given.bucket)
    scored = job.recipe.evaluate.data
    return {
        "group": group_of(stage),
        "bucket": given.bucket,
        "buckets": given.total,
        "images": len(bucket.images),
        "low": None if math.isnan(bucket.low) else bucket.low,
        "high": None if math.isnan(bucket.high) else bucket.high,
        "by": given.rank.by,
        "order": given.order,
        "left_out": read_info(folder).get("left_out", {}),
        "source": given.scored_source or (scored[1] if len(scored) > 1 else None),
        "before": stage.start,
        "from": _scored_as(job, began_with(job, stage)),
        "source_data": _source_data(job, stage, method),
        "layers": None if given.layers is None else read_layers(folder, given.bucket)["layers"],
        "trained": [sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True)],
    }


def _scored_as(job: Job, start: str) -> str:
    """The stage that tells the scores of what the stream began with: of a file one that only scores it."""
    alone = [s.name for s in job.recipe.stages if not method_class(s).trains and [*s.references.values()] == [start]]
    return next(iter(alone), start)


def _choose_layers(job: Job, stage: StageConfig) -> None:
    """Layers whose activations on the bucket lie farthest from those on the source, for the model it began with."""
    assert stage.follow is not None and stage.follow.layers is not None
    given = stage.follow.layers
    model = checkpoint.load_model(weights_source(job, stage, began_with(job, stage)))[0].to(job.hardware.device)
    extractor, source = extractor_of(model, given.layers), source_images(job, stage)
    reference = fingerprint_of(extractor, source)
    assert isinstance(reference, Histogram)
    title = f"{stage.name}: looking at its bucket"
    parts = [
        fingerprint_of(
            extractor,
            replace(source, dataset=images, limit=None, progress=lambda: Progress(title)),
            ranges=reference.ranges,
        )
        for images in (images_of(job, stage, text) for text in stage.follow.data)
        if len(images)
    ]
    distances = between(reference, reduce(merged, parts), "emd").layers
    chosen = outlying(distances, given.deviations)
    inside = r"base\." if _is_wrapped(job, stage, model) else ""
    always = given.always or (f"^(?!{inside}{re.escape(model.encoder_prefix)})",)
    patterns = [*always, *(f"^{inside}{re.escape(name)}\\." for name in chosen)]
    found = {"layers": list(chosen), "distances": distances, "train_only": patterns}
    write_json(layers_file(group_folder(job.folder, stage), stage.follow.bucket), found)


def _is_wrapped(job: Job, stage: StageConfig, model: SegModel) -> bool:
    """Whether the stage's model is a wrapper around such a network."""
    config = validate(model_config(job.recipe, stage))
    return isinstance(config, WrappedConfig) and config.base["name"] == model.config.name != config.name


def _source_data(job: Job, stage: StageConfig, method: Method) -> str:
    """What of the source the stage knew beside the weights, in words."""
    assert stage.follow is not None
    used = []
    anchors = [m.anchor for m in (method.model, *method.references.values()) if m.anchor is not None]
    if anchors:
        used.append(f"the model's anchor, statistics of {anchors[0].images} labelled images")
    if measures_gap(job, stage) or stage.follow.layers is not None:
        assert stage.follow.source is not None
        most = len(job.dataset(stage.follow.source, stage.name))
        number = min(stage.follow.source_images or most, most)
        used.append(f"{number} images of {stage.follow.source} without labels, to measure distances")
    for given in stage.pseudo_labels.values():
        if given.trust is not None and given.trust.source is not None:
            most = len(job.dataset(given.trust.source, stage.name))
            used.append(f"labels of {min(given.trust.images or most, most)} images of {given.trust.source}, for trust")
    return "; ".join(used) or "none"
