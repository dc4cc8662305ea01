"""A run is a list of stages; each trains one method and is scored. Finished stages are not run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import nn

from segue import checkpoint, runs
from segue.config import Recipe, StageConfig, merge
from segue.data.audit import class_shares
from segue.data.dataset import Dataset, open_dataset
from segue.data.loaders import Stream
from segue.data.statistics import class_pixels, tell
from segue.engine import Place, fit
from segue.errors import UserError
from segue.hardware import Hardware
from segue.jobs import sinks, validation
from segue.jobs.cost import Cost, now, record
from segue.labels import LabelSpace, load_space
from segue.methods.base import METHODS, Method, MethodConfig
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model
from segue.ops.keys import seed_of
from segue.progress import Progress
from segue.recipes import ConfigError
from segue.scoring import score
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


def prepare(recipe: Recipe, folder: Path, hardware: Hardware) -> Job:
    """Check everything that can be checked before training: settings, names, data; all faults at once."""
    job = Job(recipe, folder, hardware, load_space(recipe.labels))
    faults = _setting_faults(recipe)
    for stage in recipe.stages:
        faults += _fault(_check_streams, job, stage)
        for source in (*([stage.start] if stage.start else []), *stage.references.values()):
            faults += _fault(_weights_source, job, stage, source)
        faults += [] if faults else _fault(_check_start, job, stage)
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
    labels = load_space(recipe.labels)
    faults = [line for view in recipe.evaluate.views for line in _fault(labels.view, view)]
    for stage in recipe.stages:
        faults += _fault(model_config, recipe, stage) + _fault(method_config, stage) + _fault(_check_needs, stage)
    return faults


def _fault(check: Callable[..., object], *args: object) -> list[str]:
    try:
        check(*args)
    except UserError as error:
        return [str(error)]
    return []


def model_config(recipe: Recipe, stage: StageConfig) -> dict[str, Any]:
    """Settings of a stage's model, checked against its class."""
    data = merge(recipe.model, stage.model)
    if "name" not in data:
        raise ConfigError(f"model needs a name (known: {', '.join(MODELS.names())})")
    cls = MODELS.get(data["name"])
    try:
        cls.Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, cls.Config, "model"))) from error
    return data


def method_config(stage: StageConfig) -> MethodConfig:
    """Settings of a stage's method, checked against its class."""
    cls = METHODS.get(str(stage.method.get("name")))
    try:
        return cls.Config.model_validate(stage.method)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, cls.Config, f"stages.{stage.name}.method"))) from error


def _check_needs(stage: StageConfig) -> None:
    cls = METHODS.get(str(stage.method.get("name")))
    if set(stage.data) != set(cls.needs):
        raise ConfigError(
            f"stage {stage.name!r}: method {stage.method['name']!r} trains on {', '.join(cls.needs)}; "
            f"its data names {', '.join(stage.data)}"
        )


def _check_streams(job: Job, stage: StageConfig) -> None:
    cls = METHODS.get(str(stage.method.get("name")))
    for stream, row in stage.data.items():
        rare = job.recipe.transform_of(stage, stream).rare_class
        for name in (rare and rare.classes) or ():
            job.labels.index(name)
        for mixture in row:
            dataset = job.dataset(mixture.data, f"stage {stage.name!r}")
            if stream in cls.uses_labels and not dataset.labelled:
                raise ConfigError(
                    f"stage {stage.name!r}: {stream} {mixture.data!r} has no labels, the method needs them"
                )


def _check_evaluation(job: Job, text: str) -> None:
    if not job.dataset(text, "evaluate.data").labelled:
        raise ConfigError(f"evaluate.data: {text!r} has no labels to score against; take it out")


def _weights_source(job: Job, stage: StageConfig, source: str) -> Path:
    """The folder that ``start`` or a reference means: an earlier stage, or a path."""
    names = [s.name for s in job.recipe.stages]
    if source in names:
        if names.index(source) >= names.index(stage.name):
            raise ConfigError(f"stage {stage.name!r} starts from {source!r}, which comes later")
        return job.stage_folder(job.recipe.stages[names.index(source)])
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(
            f"stage {stage.name!r} starts from {source!r}: no earlier stage (known: {names}) and no such path"
        )
    return checkpoint.find_model(path)


def _check_start(job: Job, stage: StageConfig) -> None:
    """Weights of another architecture or class list are told before the first stage, not when this one begins."""
    if stage.start is None:
        return
    wanted = model_config(job.recipe, stage)
    earlier = next((s for s in job.recipe.stages if s.name == stage.start), None)
    given = wanted if earlier is None else model_config(job.recipe, earlier)
    if earlier is not None and given == wanted:
        return
    model = build_model({**wanted, "weights": None}, len(job.labels))
    if earlier is None:
        checkpoint.start_from(model, job.labels, _weights_source(job, stage, stage.start))
        return
    start = build_model({**given, "weights": None}, len(job.labels))
    where = f"stage {stage.name!r} starts from stage {earlier.name!r}, which"
    checkpoint.check_fit(model, start.state_dict(), where)


def run(job: Job, resume: bool) -> dict[str, Any]:
    """Run all stages that are not finished; returns stage name -> stage.json content."""
    results = {}
    for stage in job.recipe.stages:
        record = runs.read(job.stage_folder(stage) / "stage.json") if resume else {}
        done = record.get("status") == "finished"
        results[stage.name] = record if done else _run_stage(job, stage, resume)
    return results


def build_method(job: Job, stage: StageConfig, *, trained: bool = True) -> Method:
    """Model with its start weights, inside its method; the same seed gives the same initial weights.

    ``trained=False``: all networks as they are first built, for a plan, when the stages before have not run.
    """
    torch.manual_seed(seed_of(job.recipe.seed, "model"))
    config = model_config(job.recipe, stage)
    model = build_model(config if trained else config | {"weights": None}, len(job.labels))
    if stage.start and trained:
        checkpoint.start_from(model, job.labels, _weights_source(job, stage, stage.start))
    references = {}
    for name, source in stage.references.items():
        reference = _reference(job, stage, source) if trained else _untrained(job, source)
        references[name] = reference.requires_grad_(False).to(job.hardware.device)
    cls = METHODS.get(str(stage.method["name"]))
    method = cls(method_config(stage), model, job.labels, references)
    method.key = (job.recipe.seed, stage.name)
    return method


def _reference(job: Job, stage: StageConfig, source: str) -> SegModel:
    return checkpoint.load_model(_weights_source(job, stage, source))[0]


def _untrained(job: Job, source: str) -> SegModel:
    earlier = next((s for s in job.recipe.stages if s.name == source), None)
    if earlier is None:
        return checkpoint.load_model(checkpoint.find_model(Path(source).expanduser()))[0]
    return build_model(model_config(job.recipe, earlier) | {"weights": None}, len(job.labels))


def build_streams(job: Job, stage: StageConfig) -> dict[str, Stream]:
    """The loaders of a stage."""
    train = job.recipe.train_of(stage)
    labelled = METHODS.get(str(stage.method["name"])).uses_labels
    return {
        name: Stream(
            [job.dataset(m.data, stage.name) for m in row],
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


def _class_pixels(job: Job, stage: StageConfig, stream: str) -> list[npt.NDArray[np.uint32]] | None:
    """What rare class sampling draws by; counted by one process on first use, the others wait for it."""
    if job.recipe.transform_of(stage, stream).rare_class is None:
        return None
    texts = [mixture.data for mixture in stage.data[stream]]
    configs = [job.recipe.data[job.recipe.split_of(text, stage.name)[0]] for text in texts]
    say: Callable[[str], object] = tell if job.hardware.rank == 0 else len
    return [class_pixels(job.dataset(t, stage.name), c, say) for t, c in zip(texts, configs, strict=True)]


def _run_stage(job: Job, stage: StageConfig, resume: bool) -> dict[str, Any]:
    folder = job.stage_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    cpu = runs.cpu_seconds()
    stored = _describe(stage)
    if job.hardware.rank == 0:
        stored = runs.update(folder / "stage.json", **stored, status="running")
    method = build_method(job, stage)
    streams = build_streams(job, stage)
    place = Place(
        folder=folder,
        device=job.hardware.device,
        labels=job.labels,
        info={"run": str(job.folder), "stage": stage.name, "recipe": job.recipe.name, "chosen": "last"},
        progress=Progress(stage.name) if job.hardware.rank == 0 else None,
        rank=job.hardware.rank,
        world=job.hardware.world,
    )
    iterations, training = _train(job, stage, method, streams, place, resume)
    if job.hardware.rank == 0:
        runs.update(
            folder / "stage.json",
            status="finished",
            iterations=iterations,
            training=training or stored.get("training"),
            parameters=sum(p.numel() for p in method.predictor().parameters()),
            evaluations=_score(job, method.predictor(), folder),
            prior=_prior(job, stage),
            cpu_s=stored.get("cpu_s", 0.0) + runs.cpu_seconds() - cpu,
        )
    job.hardware.barrier()  # the next stage of every rank starts from what rank 0 has written
    return runs.read(folder / "stage.json")


def _train(
    job: Job, stage: StageConfig, method: Method, streams: dict[str, Stream], place: Place, resume: bool
) -> tuple[int, dict[str, Any] | None]:
    """Train; the number of iterations, and what those of this process cost (None when all were done before)."""
    device = job.hardware.device
    start, scoring = now(device), Cost()

    def validate(model: nn.Module, iteration: int) -> dict[str, float]:
        nonlocal scoring
        before = now(device)
        assert isinstance(model, SegModel)
        evaluate = job.recipe.evaluate
        datasets = {text: job.dataset(text, "evaluate.data") for text in evaluate.data}
        scores = validation.validate(model, datasets, job.labels, evaluate, job.hardware)
        scoring += now(device) - before
        return scores

    found = checkpoint.newest(place.folder / "checkpoints") if resume else None
    done = int(found.name.removeprefix(checkpoint.PREFIX)) if found else 0
    names = job.recipe.loggers if job.hardware.rank == 0 else ()
    with sinks.opened(names, job.folder, place.folder, job.recipe.name) as trackers:
        place = replace(place, validate=validate, sinks=trackers)
        total = fit(method, streams, job.recipe.train_of(stage), job.recipe.optim_of(stage), place, resume=resume)
    per_epoch = streams[next(iter(streams))].iterations_per_epoch
    return total, record(now(device) - start - scoring, total - done, per_epoch, device) if total > done else None


def _score(job: Job, model: SegModel, folder: Path) -> dict[str, Any]:
    """Score every validation set; store per-image counts and sample pictures for the report."""
    given = job.recipe.evaluate
    found = {}
    for text in given.data:
        dataset = job.dataset(text, "evaluate.data")
        result = score.evaluate(
            model,
            dataset,
            job.labels,
            device=job.hardware.device,
            batch_size=given.batch_size,
            views=given.views,
            progress=Progress(f"scoring {text}"),
        )
        found[text] = score.save(result, folder, text)
        worst = [row["id"] for row in found[text]["worst"][: given.samples]]
        score.save_samples(model, dataset, job.labels, job.folder, folder, text, count=given.samples, ids=worst)
    return found


def _prior(job: Job, stage: StageConfig) -> dict[str, float] | None:
    """Class shares of the first labelled stream, from evenly spaced labels; what pseudo-labels are compared with."""
    labelled = [name for name in METHODS.get(str(stage.method["name"])).uses_labels if name in stage.data]
    if not labelled:
        return None
    shares, _, _ = class_shares(job.dataset(stage.data[labelled[0]][0].data, stage.name))
    return dict(zip(job.labels.classes, shares, strict=True))


def _describe(stage: StageConfig) -> dict[str, Any]:
    data = {name: [m.data for m in row] for name, row in stage.data.items()}
    return {"name": stage.name, "method": stage.method, "data": data, "start": stage.start, "checkpoint": "last"}
