"""Networks, streams and weights of a stage, made from its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from segue import checkpoint
from segue.config import Mixture, Recipe, StageConfig, merge_named
from segue.data.dataset import Dataset, open_dataset
from segue.data.loaders import Stream
from segue.data.relabelled import Relabelled
from segue.data.statistics import class_pixels, tell
from segue.data.steps import Memory, SeenImages, StepImages
from segue.hardware import Hardware
from segue.jobs.bucket import followed, group_folder, group_of, is_cut, read_bucket, read_layers
from segue.labels import LabelSpace, load_space
from segue.methods.base import METHODS, Method, MethodConfig
from segue.methods.parts.base import part_configs
from segue.models.anchor import FILE, blank_anchor
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model
from segue.models.wrapped import OUTER
from segue.ops.keys import generator, seed_of
from segue.recipes import ConfigError
from segue.scoring.names import folder_of
from segue.settings import explain
from segue.tasks import Task, load_task

MEMORY = "replay"
"""The stream of images of earlier steps."""
LABELS = "labels"
"""In the folder of a round of annotation: all labels bought so far."""


@dataclass
class Job:
    """A recipe with everything opened that its stages share."""

    recipe: Recipe
    folder: Path
    hardware: Hardware
    labels: LabelSpace
    datasets: dict[str, Dataset] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task | None:
        """The task whose steps the stages are."""
        return None if self.recipe.task is None else load_task(self.recipe.task)

    def labels_of(self, stage: StageConfig) -> LabelSpace:
        """The classes of a stage's model: all, or those of the steps so far."""
        return self.labels if self.task is None else self.task.space(stage.step)

    def evaluated(self, stage: StageConfig, text: str) -> Dataset:
        """A validation set with the classes of a stage's model."""
        dataset = self.dataset(text, "evaluate.data")
        return dataset if self.task is None else SeenImages(dataset, self.task, stage.step)

    def dataset(self, text: str, where: str) -> Dataset:
        """The data set of ``NAME:split`` with all classes, opened once."""
        if text not in self.datasets:
            name, split = self.recipe.split_of(text, where)
            self.datasets[text] = open_dataset(name, self.recipe.data[name], split, self.labels)
        return self.datasets[text]

    def stage_folder(self, stage: StageConfig) -> Path:
        """``stages/<k>_<name>``."""
        return self.folder / "stages" / f"{self.recipe.stages.index(stage)}_{stage.name}"


def space_of(recipe: Recipe) -> LabelSpace:
    """All classes of a recipe, in the order of its task where it has one."""
    return load_space(recipe.labels) if recipe.task is None else load_task(recipe.task).space(None)


def model_config(recipe: Recipe, stage: StageConfig) -> dict[str, Any]:
    """Settings of a stage's model, checked against its class; a wrapper without a ``base`` is one of the recipe's."""
    data = merge_named(recipe.model, stage.model)
    if "name" not in data:
        raise ConfigError(f"model needs a name (known: {', '.join(MODELS.names())})")
    cls = MODELS.get(data["name"])
    if "base" in cls.Config.model_fields and data["name"] != recipe.model.get("name"):
        shared = {key: value for key, value in recipe.model.items() if key in OUTER}
        data = {**shared, "base": {k: v for k, v in recipe.model.items() if k not in OUTER}, **data}
    try:
        cls.Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, cls.Config, "model"))) from error
    return data


def method_class(stage: StageConfig) -> type[Method]:
    """The class of a stage's method; ``UnknownName`` when there is none."""
    return METHODS.get(str(stage.method.get("name")))


def method_config(stage: StageConfig) -> MethodConfig:
    """Settings of a stage's method, checked against its class."""
    cls, where = method_class(stage), f"stages.{stage.name}.method"
    try:
        config = cls.Config.model_validate(stage.method)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, cls.Config, where))) from error
    part_configs(config.parts, where)
    return config


def weights_source(job: Job, stage: StageConfig, source: str) -> Path:
    """The folder of weights that ``start``, a reference or pseudo-labels mean: an earlier stage, or a path."""
    names = [s.name for s in job.recipe.stages]
    if source in names:
        if names.index(source) >= names.index(stage.name):
            raise ConfigError(f"stage {stage.name!r} uses {source!r}, which comes later")
        earlier = job.recipe.stages[names.index(source)]
        if not method_class(earlier).trains:
            raise ConfigError(f"stage {stage.name!r} uses {source!r}, which trains nothing; name the stages it scores")
        return job.stage_folder(earlier)
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"stage {stage.name!r} uses {source!r}: no earlier stage (known: {names}) and no such path")
    return checkpoint.find_model(path)


def began_with(job: Job, stage: StageConfig) -> str:
    """The stage or file that a followed stream began with: what its first bucket starts from."""
    first = next(s for s in job.recipe.stages if group_of(s) == group_of(stage))
    assert first.start is not None  # as the recipe was checked
    return first.start


def build_method(job: Job, stage: StageConfig, *, trained: bool = True) -> Method:
    """Model with its start weights, inside its method; the same seed gives the same initial weights.

    ``trained=False``: all networks as they are first built, for a plan, when the stages before have not run.
    """
    torch.manual_seed(seed_of(job.recipe.seed, "model"))
    model = build_start(job, stage) if trained else _untrained(job, stage, begins_anchored(job, stage))
    references = {}
    for name, source in stage.references.items():
        reference = reference_model(job, stage, source, trained)
        references[name] = reference.requires_grad_(False).to(job.hardware.device)
    method = method_class(stage)(method_config(stage), model, job.labels_of(stage), references)
    method.key = (job.recipe.seed, stage.name)
    earlier = next((s for s in job.recipe.stages if s.name == stage.start), None)
    if trained and earlier is not None and type(method).take_over is not Method.take_over:
        newest = checkpoint.newest(job.stage_folder(earlier) / "checkpoints")
        assert newest is not None  # the model was started from it
        method.take_over(checkpoint.load_state(newest)["method"])
    return method


def build_start(job: Job, stage: StageConfig) -> SegModel:
    """A stage's model with its start weights; where these are of fewer classes, outputs for the new ones are added."""
    config, labels = model_config(job.recipe, stage) | trained_part(job, stage), job.labels_of(stage)
    if stage.start is None:
        return build_model(config, len(labels))
    source = weights_source(job, stage, stage.start)
    old, layout = checkpoint.describe(source)
    if job.task is None or old.classes != labels.classes[: len(old)]:
        model = build_model(config, len(labels))
        checkpoint.start_from(model, labels, source)
        return model
    model = build_model(config, len(old), layout=layout)
    checkpoint.start_from(model, old, source)
    if added := len(labels) - len(old):
        init = stage.head or method_class(stage).head
        if init == "background" and labels.background is None and stage.head is None:
            init = "random"  # there is no background whose mass they could share
        model.grow_head(added, init, generator(job.recipe.seed, stage.name, "head"))
    return model


def reference_model(job: Job, stage: StageConfig, source: str, trained: bool) -> SegModel:
    """The model of an earlier stage or a file; ``trained=False``: that of a stage as it is first built."""
    earlier = next((s for s in job.recipe.stages if s.name == source), None)
    if earlier is not None and not trained:
        return _untrained(job, earlier, earlier.anchor is not None or begins_anchored(job, earlier))
    return checkpoint.load_model(weights_source(job, stage, source))[0]


def _untrained(job: Job, stage: StageConfig, anchored: bool) -> SegModel:
    model = build_model(model_config(job.recipe, stage) | {"weights": None}, len(job.labels_of(stage)))
    if anchored:
        base = getattr(model, "base", model)  # a wrapper has the anchor of the network that it was put around
        model.adopt(blank_anchor(base, job.labels_of(stage)))
    return model


def begins_anchored(job: Job, stage: StageConfig) -> bool:
    """Whether what a stage starts from has an anchor, or will have one."""
    if stage.start is None:
        return False
    earlier = takewhile(lambda s: s.name != stage.name, job.recipe.stages)
    before = next((s for s in earlier if s.name == stage.start), None)
    if before is None:
        return (weights_source(job, stage, stage.start) / FILE).is_file()
    return before.anchor is not None or begins_anchored(job, before)


def anchored_on(stage: StageConfig) -> str:
    """``NAME:split`` of the images that a stage's anchor is made of; ``ConfigError`` when none has labels."""
    assert stage.anchor is not None
    if not method_class(stage).trains:
        raise ConfigError(f"stage {stage.name!r} trains no model whose anchor could be kept: take out 'anchor'")
    given = [name for name in method_class(stage).uses_labels if name not in stage.pseudo_labels]
    labelled = [m.data for name in given for m in stage.data.get(name, ()) if not is_pool(stage, name, m.data)]
    if not stage.anchor.data and not labelled:
        raise ConfigError(f"stage {stage.name!r} trains on no labels of its own: set anchor.data")
    return stage.anchor.data or labelled[0]


def trained_part(job: Job, stage: StageConfig) -> dict[str, Any]:
    """Model settings that follow from a stage's bucket: what is trained, where layers are chosen by their gap."""
    if stage.follow is None or stage.follow.layers is None:
        return {}
    return {"train_only": read_layers(group_folder(job.folder, stage), stage.follow.bucket)["train_only"]}


def pseudo_label_folder(job: Job, stage: StageConfig, stream: str, text: str) -> Path:
    """Where the pseudo-labels of ``NAME:split`` for one stream lie."""
    return job.stage_folder(stage) / "pseudo_labels" / stream / folder_of(text)


def round_folder(job: Job, stage: StageConfig, number: int) -> Path:
    """Where a round of annotation lies: ``annotate/<group>/round_<n>``."""
    assert stage.annotate is not None
    return job.folder / "annotate" / (stage.annotate.group or stage.name) / f"round_{number}"


def last_round(stage: StageConfig) -> int:
    """Number of the stage's last round of annotation; 0 without any."""
    given = stage.annotate
    return 0 if given is None else len(given.at) or given.round


def build_streams(
    job: Job, stage: StageConfig, *, trained: bool = True, bought: int | None = None
) -> dict[str, Stream]:
    """The loaders of a stage; its pseudo-labels must have been made, and what it annotates must have been bought.

    ``bought``: the round of annotation whose labels are read, 0 for none yet; default the stage's last.
    ``trained=False``, for a plan: streams that have no labels before the run are without any.
    """
    train = job.recipe.train_of(stage)
    streams = {}
    for name, row in stage.data.items():
        labelled = name in method_class(stage).uses_labels and (trained or name not in stage.pseudo_labels)
        given = stream_data(job, stage, name, bought if trained else 0) if trained or labelled else []
        if not trained and not given:
            labelled, given = False, [(m, job.dataset(m.data, stage.name)) for m in row]
        if not given:
            raise ConfigError(f"stage {stage.name!r}: {name} has no label before the first round; buy one at 0")
        streams[name] = Stream(
            [dataset for _, dataset in given],
            [_share(stage, m, dataset) for m, dataset in given],
            job.recipe.transform_of(stage, name),
            (job.recipe.seed, stage.name, name),
            batch_size=train.batch_size,
            labelled=labelled,
            workers=train.workers,
            accumulate=train.accumulate,
            rank=job.hardware.rank,
            world=job.hardware.world,
            pixels=_class_pixels(job, stage, name, given) if labelled else None,
        )
    return streams


def _share(stage: StageConfig, mixture: Mixture, dataset: Dataset) -> float:
    """How often a data set is drawn; in a bucket all images are drawn alike."""
    in_bucket = stage.follow is not None and mixture.data in stage.follow.data
    return float(len(dataset)) if mixture.weight == "images" or in_bucket else float(mixture.weight)


def stream_data(job: Job, stage: StageConfig, stream: str, bought: int | None = None) -> list[tuple[Mixture, Dataset]]:
    """The data sets of a stream with the labels that it trains on; a pool without any bought label is left out."""
    if bought is None:
        bought = last_round(stage)
    found = []
    for mixture in stage.data[stream]:
        dataset = images_of(job, stage, mixture.data)
        if stream in stage.pseudo_labels and len(dataset):
            dataset = Relabelled(dataset, pseudo_label_folder(job, stage, stream, mixture.data))
        elif is_pool(stage, stream, mixture.data):
            if not bought:
                continue
            dataset = Relabelled(dataset, round_folder(job, stage, bought) / LABELS, partly=True)
        elif job.task is not None and stream in method_class(stage).uses_labels:
            dataset = _of_step(job, stage, stream, mixture.data, job.task)
        if len(dataset):
            found.append((mixture, dataset))
    return found


def images_of(job: Job, stage: StageConfig, text: str) -> Dataset:
    """The images of ``NAME:split`` that a stage trains on: of a stream those of its bucket, all before it is cut."""
    dataset = job.dataset(text, stage.name)
    if stage.follow is None or text not in stage.follow.data:
        return dataset
    folder = group_folder(job.folder, stage)
    return followed(dataset, read_bucket(folder, stage.follow.bucket), text) if is_cut(folder) else dataset


def _of_step(job: Job, stage: StageConfig, stream: str, text: str, task: Task) -> Dataset:
    config = job.recipe.data[job.recipe.split_of(text, stage.name)[0]]
    dataset = job.dataset(text, stage.name)
    if stream == MEMORY:
        return Memory(dataset, task, stage.step, stage.memory, config, seed=job.recipe.seed)
    return StepImages(dataset, task, stage.step, config)


def is_pool(stage: StageConfig, stream: str, text: str) -> bool:
    """Whether a data set in a stream means its bought labels."""
    return stage.annotate is not None and text == stage.annotate.data and stream in method_class(stage).uses_labels


def _class_pixels(
    job: Job, stage: StageConfig, stream: str, given: list[tuple[Mixture, Dataset]]
) -> list[npt.NDArray[np.uint32]] | None:
    """What rare class sampling draws by; counted by one process on first use, the others wait for it."""
    if job.recipe.transform_of(stage, stream).rare_class is None:
        return None
    say: Callable[[str], object] = tell if job.hardware.rank == 0 else len
    found = []
    for mixture, dataset in given:
        config = job.recipe.data[job.recipe.split_of(mixture.data, stage.name)[0]]
        if dataset is not job.dataset(mixture.data, stage.name):
            config = config.model_copy(update={"statistics": None})  # published ones are of all its labels
        found.append(class_pixels(dataset, config, say))
    return found
