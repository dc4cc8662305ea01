"""Everything that can be wrong with a run, found before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segue import checkpoint
from segue.config import Recipe, StageConfig
from segue.data.relabelled import Relabelled
from segue.errors import UserError
from segue.hardware import Hardware
from segue.jobs import sinks
from segue.jobs.build import (
    Job,
    anchored_on,
    begins_anchored,
    build_method,
    build_start,
    is_pool,
    last_round,
    method_class,
    method_config,
    model_config,
    space_of,
    weights_source,
)
from segue.jobs.purchase import check_annotate, order_of
from segue.jobs.stream import check_follow
from segue.models.anchor import looked_at
from segue.models.base import MODELS
from segue.models.build import build_model
from segue.models.weights import require
from segue.optim import build_optimizers
from segue.recipes import ConfigError


def prepare(recipe: Recipe, folder: Path, hardware: Hardware) -> Job:
    """Check everything that can be checked before training: settings, names, data; all faults at once."""
    job = Job(recipe, folder, hardware, space_of(recipe))
    faults = _setting_faults(recipe)
    built: set[str] = set()
    for stage in recipe.stages:
        faults += _fault(_check_streams, job, stage) + _fault(_check_weights, recipe, stage)
        faults += _fault(check_annotate, job, stage) + _fault(check_follow, job, stage)
        faults += _fault(_check_anchor, job, stage)
        for source in stage.sources:
            faults += _fault(weights_source, job, stage, source)
        if faults:  # the networks need settings without a fault
            continue
        faults += _fault(_check_start, job, stage) + _fault(_check_classes, job, stage)
        kind = repr((model_config(recipe, stage), stage.method, stage.references, stage.optim))
        faults += _fault(_check_method, job, stage) if kind not in built else []
        built.add(kind)
    for text in recipe.evaluate.data:
        faults += _fault(_check_evaluation, job, text)
    faults += _fault(sinks.require, recipe.loggers)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return job


def check_settings(recipe: Recipe) -> None:
    """Check names and settings of label space, models and methods, without looking at data; all faults at once."""
    if faults := _setting_faults(recipe):
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _setting_faults(recipe: Recipe) -> list[str]:
    labels = space_of(recipe)
    faults = [line for view in recipe.evaluate.views for line in _fault(labels.view, view)]
    for stage in recipe.stages:
        faults += _fault(model_config, recipe, stage) + _fault(method_config, stage) + _fault(_check_needs, stage)
        faults += _fault(order_of, stage, last_round(stage)) if stage.annotate else []
    return faults


def _fault(check: Callable[..., object], *args: object) -> list[str]:
    try:
        check(*args)
    except UserError as error:
        return [str(error)]
    return []


def _check_needs(stage: StageConfig) -> None:
    cls, name = method_class(stage), stage.method["name"]
    if set(stage.data) != set(cls.needs):
        raise ConfigError(
            f"stage {stage.name!r}: method {name!r} trains on {', '.join(cls.needs) or 'nothing'}; "
            f"its data names {', '.join(stage.data) or 'nothing'}"
        )
    for stream in stage.pseudo_labels:
        if stream not in cls.uses_labels:
            taught = ", ".join(cls.uses_labels) or "none"
            raise ConfigError(
                f"stage {stage.name!r} makes pseudo-labels for {stream!r}, but method {name!r} reads those of: {taught}"
            )


def _check_streams(job: Job, stage: StageConfig) -> None:
    given = [name for name in method_class(stage).uses_labels if name not in stage.pseudo_labels]
    for stream, row in stage.data.items():
        rare = job.recipe.transform_of(stage, stream).rare_class
        for name in (rare and rare.classes) or ():
            job.labels_of(stage).index(name)
        for mixture in row:
            dataset = job.dataset(mixture.data, f"stage {stage.name!r}")
            if is_pool(stage, stream, mixture.data):
                continue  # its labels are bought
            folder = job.recipe.data[mixture.data.partition(":")[0]].labels
            if stream in given and folder is not None and not isinstance(dataset, Relabelled):
                raise ConfigError(
                    f"stage {stage.name!r}: {stream} {mixture.data!r} would be trained on its own labels, those in "
                    f"{folder} are of another split; make some for this one"
                )
            if stream in given and not dataset.labelled:
                raise ConfigError(
                    f"stage {stage.name!r}: {stream} {mixture.data!r} has no labels, the method needs them; label "
                    f"files, or models under 'pseudo_labels: {{{stream}: …}}', would give it some"
                )


def _check_weights(recipe: Recipe, stage: StageConfig) -> None:
    require(model_config(recipe, stage).get("weights"))


def _check_anchor(job: Job, stage: StageConfig) -> None:
    name = model_config(job.recipe, stage)["name"]
    needed = method_class(stage).needs_anchor or (MODELS.get(name).needs_anchor and "target" in stage.data)
    if needed and not begins_anchored(job, stage):
        raise ConfigError(
            f"stage {stage.name!r} needs the anchor of the source: start it from a model that has one ('anchor: {{}}' "
            f"in the stage that trains that, or segue anchor MODEL --data NAME:train)"
        )
    if stage.anchor is not None:
        looked_at(job.dataset(anchored_on(stage), stage.name), stage.anchor.images)


def _check_evaluation(job: Job, text: str) -> None:
    if not job.dataset(text, "evaluate.data").labelled:
        raise ConfigError(f"evaluate.data: {text!r} has no labels to score against; take it out")


def _check_start(job: Job, stage: StageConfig) -> None:
    """Weights of another architecture or class list are told before the first stage, not when this one begins."""
    if stage.start is None:
        return
    wanted = model_config(job.recipe, stage)
    earlier = next((s for s in job.recipe.stages if s.name == stage.start), None)
    given = wanted if earlier is None else model_config(job.recipe, earlier)
    if earlier is None:
        build_start(job, stage)
        return
    if job.task is not None and job.task.seen(earlier.step) > job.task.seen(stage.step):
        raise ConfigError(f"stage {stage.name!r} starts from stage {earlier.name!r}, which knows more classes than it")
    if given == wanted:
        return
    model = build_model({**wanted, "weights": None}, len(job.labels))
    start = build_model({**given, "weights": None}, len(job.labels))
    where = f"stage {stage.name!r} starts from stage {earlier.name!r}, which"
    taker = checkpoint.taker_of(model, given["name"])
    state = start.state_dict()
    checkpoint.check_fit(taker, state if taker is model else checkpoint.without_normalisation(state), where)


def _check_classes(job: Job, stage: StageConfig) -> None:
    """Models from outside that label or are scored must know the classes of the recipe."""
    names = [s.name for s in job.recipe.stages]
    used = [model for given in stage.pseudo_labels.values() for model in given.models]
    used += [] if method_class(stage).trains else stage.references.values()
    for source in (u for u in used if u not in names):
        theirs = checkpoint.load_model(weights_source(job, stage, source))[1]
        if theirs.classes != job.labels_of(stage).classes:
            raise ConfigError(
                f"stage {stage.name!r} uses {source!r}, which was trained for label space {theirs.name!r}, this recipe "
                f"for {job.labels.name!r}; set labels={theirs.name}, or use another model"
            )


def _check_method(job: Job, stage: StageConfig) -> None:
    """What only the networks themselves can tell: heads, parameter groups, other networks of the method."""
    try:
        networks = build_method(job, stage, trained=False).networks()
        if method_class(stage).trains:
            build_optimizers(networks, job.recipe.optim_of(stage))
    except UserError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from error
