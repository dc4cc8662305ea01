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
from segue.config import Mixture, Recipe, StageConfig, merge_named
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
        if trained or labelled:
            given = stream_data(job, stage, name, bought if trained else 0)
        if not trained and not (labelled and given):
            labelled, given = False, [(m, job.dataset(m.data, stage.name)) for m in row]
        if not given:
            raise ConfigError(f"stage {stage.name!r}: {name} has no label before the first round; buy one at 0")
        streams[name] = Stream(
            [dataset for _, dataset in given],
            [float(len(dataset)) if m.weight == "images" else m.weight for m, dataset in given],
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


def stream_data(job: Job, stage: StageConfig, stream: str, bought: int | None = None) -> list[tuple[Mixture, Dataset]]:
    """The data sets of a stream with the labels that it trains on; a pool without any bought label is left out."""
    if bought is None:
        bought = last_round(stage)
    found = []
    for mixture in stage.data[stream]:
        dataset = job.dataset(mixture.data, stage.name)
        if stream in stage.pseudo_labels:
            dataset = Relabelled(dataset, pseudo_label_folder(job, stage, stream, mixture.data))
        elif is_pool(stage, stream, mixture.data):
            if not bought:
                continue
            dataset = Relabelled(dataset, round_folder(job, stage, bought) / LABELS, partly=True)
        if len(dataset):
            found.append((mixture, dataset))
    return found


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
    names = [job.recipe.split_of(mixture.data, stage.name)[0] for mixture, _ in given]
    return [class_pixels(d, job.recipe.data[n], say) for n, (_, d) in zip(names, given, strict=True)]
