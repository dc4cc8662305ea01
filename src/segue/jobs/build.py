"""Networks, streams and weights of a stage, made from its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from segue import checkpoint
from segue.config import Recipe, StageConfig, merge_named
from segue.data.dataset import Dataset, open_dataset
from segue.data.loaders import Stream
from segue.data.relabelled import Relabelled
from segue.data.statistics import class_pixels, tell
from segue.hardware import Hardware
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Method, MethodConfig
from segue.methods.parts.base import part_configs
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model
from segue.ops.keys import seed_of
from segue.recipes import ConfigError
from segue.scoring.names import folder_of
from segue.settings import explain


@dataclass
class Job:
    """A recipe with everything opened that its stages share."""

    recipe: Recipe
    folder: Path
    hardware: Hardware
    labels: LabelSpace
    datasets: dict[str, Dataset] = field(default_factory=dict)

    def dataset(self, text: str, where: str) -> Dataset:
        """The data set of ``NAME:split``, opened once."""
        if text not in self.datasets:
            name, split = self.recipe.split_of(text, where)
            self.datasets[text] = open_dataset(name, self.recipe.data[name], split, self.labels)
        return self.datasets[text]

    def stage_folder(self, stage: StageConfig) -> Path:
        """``stages/<k>_<name>``."""
        return self.folder / "stages" / f"{self.recipe.stages.index(stage)}_{stage.name}"


def model_config(recipe: Recipe, stage: StageConfig) -> dict[str, Any]:
    """Settings of a stage's model, checked against its class."""
    data = merge_named(recipe.model, stage.model)
    if "name" not in data:
        raise ConfigError(f"model needs a name (known: {', '.join(MODELS.names())})")
    cls = MODELS.get(data["name"])
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


def build_method(job: Job, stage: StageConfig, *, trained: bool = True) -> Method:
    """Model with its start weights, inside its method; the same seed gives the same initial weights.

    ``trained=False``: all networks as they are first built, for a plan, when the stages before have not run.
    """
    torch.manual_seed(seed_of(job.recipe.seed, "model"))
    config = model_config(job.recipe, stage)
    model = build_model(config if trained else config | {"weights": None}, len(job.labels))
    if stage.start and trained:
        checkpoint.start_from(model, job.labels, weights_source(job, stage, stage.start))
    references = {}
    for name, source in stage.references.items():
        reference = _reference(job, stage, source) if trained else _untrained(job, source)
        references[name] = reference.requires_grad_(False).to(job.hardware.device)
    method = method_class(stage)(method_config(stage), model, job.labels, references)
    method.key = (job.recipe.seed, stage.name)
    return method


def _reference(job: Job, stage: StageConfig, source: str) -> SegModel:
    return checkpoint.load_model(weights_source(job, stage, source))[0]


def _untrained(job: Job, source: str) -> SegModel:
    earlier = next((s for s in job.recipe.stages if s.name == source), None)
    if earlier is None:
        return checkpoint.load_model(checkpoint.find_model(Path(source).expanduser()))[0]
    return build_model(model_config(job.recipe, earlier) | {"weights": None}, len(job.labels))


def pseudo_label_folder(job: Job, stage: StageConfig, stream: str, text: str) -> Path:
    """Where the pseudo-labels of ``NAME:split`` for one stream lie."""
    return job.stage_folder(stage) / "pseudo_labels" / stream / folder_of(text)


def build_streams(job: Job, stage: StageConfig, *, trained: bool = True) -> dict[str, Stream]:
    """The loaders of a stage; its pseudo-labels must have been made.

    ``trained=False``, for a plan: streams of pseudo-labels are without any label.
    """
    train = job.recipe.train_of(stage)
    labelled = [n for n in method_class(stage).uses_labels if trained or n not in stage.pseudo_labels]
    return {
        name: Stream(
            [_dataset(job, stage, name, m.data) for m in row] if trained else [job.dataset(m.data, "") for m in row],
            [m.weight for m in row],
            job.recipe.transform_of(stage, name),
            (job.recipe.seed, stage.name, name),
            batch_size=train.batch_size,
            labelled=name in labelled,
            workers=train.workers,
            accumulate=train.accumulate,
            rank=job.hardware.rank,
            world=job.hardware.world,
            pixels=_class_pixels(job, stage, name) if name in labelled else None,
        )
        for name, row in stage.data.items()
    }


def _dataset(job: Job, stage: StageConfig, stream: str, text: str) -> Dataset:
    dataset = job.dataset(text, stage.name)
    if stream not in stage.pseudo_labels:
        return dataset
    return Relabelled(dataset, pseudo_label_folder(job, stage, stream, text))


def _class_pixels(job: Job, stage: StageConfig, stream: str) -> list[npt.NDArray[np.uint32]] | None:
    """What rare class sampling draws by; counted by one process on first use, the others wait for it."""
    if job.recipe.transform_of(stage, stream).rare_class is None:
        return None
    texts = [mixture.data for mixture in stage.data[stream]]
    configs = [job.recipe.data[job.recipe.split_of(text, stage.name)[0]] for text in texts]
    say: Callable[[str], object] = tell if job.hardware.rank == 0 else len
    return [class_pixels(_dataset(job, stage, stream, t), c, say) for t, c in zip(texts, configs, strict=True)]
