"""What a recipe will do and cost, before it does it: everything is built, nothing is trained.

Each kind of stage runs a few iterations, one checkpoint and a few images of scoring in a temporary folder, from
untrained weights; the plan multiplies them up. Time is given twice: CPU-seconds of this process, which is what
stage.json will hold, and wall-clock seconds, which is what one waits.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from segue import runs
from segue.config import DatasetConfig, Recipe, StageConfig
from segue.data.audit import class_shares
from segue.data.dataset import Dataset
from segue.data.loaders import Stream
from segue.data.statistics import known_class_pixels
from segue.data.subset import Subset
from segue.engine import Place, fit
from segue.hardware import launch
from segue.jobs.annotate import schedule
from segue.jobs.build import Job, build_method, build_streams, method_class, model_config
from segue.jobs.checks import prepare
from segue.jobs.cost import Cost, now
from segue.jobs.purchase import order_of
from segue.jobs.stream import in_bucket, looks
from segue.methods.base import Method
from segue.models.base import SegModel
from segue.scoring import score

WARM_UP = 2
"""Iterations of a trial that are not counted: the first ones fill caches and pools."""
TRIAL = 6
NOTHING = Cost()
SCORED = 4
"""Images that a trial scores, after one that is not counted."""


@dataclass(frozen=True)
class Trial:
    """What one kind of stage costs."""

    parameters: int
    trainable: int
    iterations_per_epoch: float
    """0 where nothing is trained."""
    scored: int
    """Networks that are scored together."""
    iteration: Cost = NOTHING
    checkpoint: Cost = NOTHING
    checkpoint_gb: float = 0.0
    scoring: Mapping[str, Cost] = field(default_factory=dict)
    """Of one image, by data set."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: its size and its share of the cost."""

    name: str
    method: str
    iterations: int
    epochs: float
    parameters: int
    trainable: int
    iteration: Cost
    training: Cost
    """With the pseudo-labels that are made before it, and the surveys of what it annotates."""
    scoring: Cost
    disk_gb: float


@dataclass(frozen=True)
class DataPlan:
    """One split that the recipe reads."""

    name: str
    images: int
    without_label: int
    coverage: list[str]
    shares: dict[str, float]
    counted: int
    """Label files that ``shares`` is an estimate from."""


@dataclass(frozen=True)
class Plan:
    """All of it; ``to_dict`` is what ``segue plan --json`` writes."""

    recipe: str
    seeds: int
    device: str
    data: list[DataPlan]
    stages: list[StagePlan]
    memory_gb: float
    device_memory_gb: float | None
    disk_gb: float
    free_gb: float
    depends_on_devices: list[str] = field(default_factory=list)

    @property
    def total(self) -> Cost:
        """All stages of all seeds."""
        parts = [s.training + s.scoring for s in self.stages]
        return sum(parts, NOTHING) * self.seeds

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, with ``total``."""
        return asdict(self) | {"total": asdict(self.total)}


def plan(recipe: Recipe, *, device: str = "auto", seeds: int = 1, out: Path = Path("runs"), trial: bool = True) -> Plan:
    """Check and measure a recipe; raises what ``run`` would raise before training, as one ``UserError``.

    ``seeds``: how many trainings of the whole recipe. ``out``: where the run would be written, for its free space.
    ``trial=False`` leaves the measurements out: sizes and data only, in seconds also for a large network.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    hardware = launch(device)
    with tempfile.TemporaryDirectory(prefix="segue-plan-") as scratch:
        job = prepare(recipe, Path(scratch), hardware)
        trials: dict[str, Trial] = {}
        planned = []
        for stage in recipe.stages:
            kind = _kind(job, stage)
            if kind not in trials:
                trials[kind] = _measure(job, stage, Path(scratch) / f"{len(trials)}", trial)
            planned.append(_stage_plan(job, stage, trials[kind]))
    free = shutil.disk_usage(next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())).free / 1e9
    on_gpu = hardware.device.type == "cuda"
    return Plan(
        recipe=recipe.name,
        seeds=seeds,
        device=str(hardware.device),
        data=[_data_plan(job, name) for name in job.datasets],
        stages=planned,
        memory_gb=runs.peak_memory_gb(),
        device_memory_gb=torch.cuda.max_memory_allocated(hardware.device) / 1e9 if on_gpu else None,
        disk_gb=sum(s.disk_gb for s in planned) * seeds,
        free_gb=free,
        depends_on_devices=_depends_on_devices(job),
    )


def faults(found: Plan) -> list[str]:
    """What will go wrong although the recipe is valid; empty when nothing is foreseen."""
    out = []
    if found.disk_gb > found.free_gb:
        out.append(f"the run will write {found.disk_gb:.1f} GB, {found.free_gb:.1f} GB are free; use another --out")
    for data in found.data:
        if data.counted and not any(data.shares.values()):
            out.append(f"{data.name}: no labelled pixel in the {data.counted} labels that were looked at")
    return out


def _kind(job: Job, stage: StageConfig) -> str:
    """Stages of one kind cost the same: they differ in nothing but name, start, role and length."""
    train = job.recipe.train_of(stage).model_dump(exclude={"iterations", "epochs"})
    sizes = {text: job.recipe.data[text.partition(":")[0]].size for row in stage.data.values() for text in _names(row)}
    networks = (model_config(job.recipe, stage), len(stage.references), stage.step)
    settings = (networks, stage.method, stage.transform, stage.streams, train, sizes)
    return repr((settings, {name: _names(row) for name, row in stage.data.items()}))


def _names(row: Any) -> list[str]:
    return [mixture.data for mixture in row]


def _measure(job: Job, stage: StageConfig, folder: Path, trial: bool) -> Trial:
    """Sizes of a stage's networks and, with ``trial``, what it costs."""
    method = build_method(job, stage, trained=False)
    streams = build_streams(job, stage, trained=False)
    networks = method.networks().values() if method.trains else ()
    sizes = Trial(
        parameters=sum(p.numel() for model in method.scored() for p in model.parameters()),
        trainable=sum(p.numel() for n in networks for p in n.parameters() if p.requires_grad),
        iterations_per_epoch=next((s.iterations_per_epoch for s in streams.values()), 0),
        scored=len(method.scored()),
    )
    return _try(job, stage, method, streams, folder, sizes) if trial else sizes


def _try(
    job: Job, stage: StageConfig, method: Method, streams: Mapping[str, Stream], folder: Path, sizes: Trial
) -> Trial:
    """Train a few iterations, store one checkpoint, score a few images."""
    if method.trains:
        sizes = _try_training(job, stage, method, streams, folder, sizes)
    scoring = {text: _try_scoring(job, stage, method.scored(), text) for text in job.recipe.evaluate.data}
    return replace(sizes, scoring=scoring)


def _try_training(
    job: Job, stage: StageConfig, method: Method, streams: Mapping[str, Stream], folder: Path, sizes: Trial
) -> Trial:
    clock = [now(job.hardware.device)]
    place = Place(
        folder=folder,
        device=job.hardware.device,
        labels=job.labels_of(stage),
        info={},
        progress=lambda done, total, numbers: clock.append(now(job.hardware.device)),
    )
    folder.mkdir()
    train = job.recipe.train_of(stage)
    short = train.model_copy(
        update={"iterations": TRIAL, "epochs": None, "log_every": 1, "evaluate_every": None, "best": None}
        | {"checkpoint_every": TRIAL + 1}
    )
    fit(method, streams, short, job.recipe.optim_of(stage), place, resume=False)
    end = now(job.hardware.device)
    files = [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]
    return replace(
        sizes,
        iteration=(clock[TRIAL] - clock[WARM_UP]) * (1 / (TRIAL - WARM_UP)),
        checkpoint=end - clock[TRIAL],
        checkpoint_gb=sum(p.stat().st_size for p in files) / 1e9,
    )


def _try_scoring(job: Job, stage: StageConfig, models: Sequence[SegModel], text: str) -> Cost:
    few = Subset(job.evaluated(stage, text), count=SCORED + 1)
    clock: list[Cost] = []
    batch = job.recipe.evaluate.batch_size
    score.measure_models(
        models,
        few,
        job.labels_of(stage),
        score.Measure(),
        device=job.hardware.device,
        batch_size=min(batch, SCORED),
        progress=lambda done, total: clock.append(now(job.hardware.device)),
    )
    images = len(few.ids) - min(batch, SCORED)
    return (clock[-1] - clock[0]) * (1 / images) if len(clock) > 1 else NOTHING


def _stage_plan(job: Job, stage: StageConfig, trial: Trial) -> StagePlan:
    train, per_epoch = job.recipe.train_of(stage), trial.iterations_per_epoch
    iterations = (train.iterations or math.ceil((train.epochs or 1) * per_epoch)) if per_epoch else 0
    passes = 1 + (iterations // train.evaluate_every if train.evaluate_every else 0)
    images = {text: len(job.dataset(text, "evaluate.data").ids) for text in trial.scoring}
    once = sum((cost * images[text] for text, cost in trial.scoring.items()), NOTHING)
    saves = iterations // train.checkpoint_every + 1
    kept = train.keep + (train.best is not None) + 1  # the new one is whole before the oldest goes
    return StagePlan(
        name=stage.name,
        method=str(stage.method["name"]),
        iterations=iterations,
        epochs=iterations / per_epoch if per_epoch else 0.0,
        parameters=trial.parameters,
        trainable=trial.trainable,
        iteration=trial.iteration,
        training=trial.iteration * iterations + trial.checkpoint * saves + _before(job, stage, trial),
        scoring=once * passes,
        disk_gb=trial.checkpoint_gb * kept,
    )


def _before(job: Job, stage: StageConfig, trial: Trial) -> Cost:
    """Pseudo-labels, surveys and looks at a stream cost what scoring as many images with as many networks does."""
    passes = looks(job, stage)
    for stream, given in stage.pseudo_labels.items():
        views = 1 if given.trust is None else (1 + len(given.trust.scales)) * (1 + given.trust.flip)
        images = sum(in_bucket(stage, m.data, len(job.dataset(m.data, stage.name))) for m in stage.data[stream])
        passes += len(given.models) * views * images
    for number, _ in schedule(stage):
        order = order_of(stage, number)
        passes += len(job.dataset(order.config.data, stage.name))
        if order.compares and order.source is not None:
            images = len(job.dataset(order.source, stage.name))
            passes += min(images, order.config.source_images or images)
    once = next(iter(trial.scoring.values()), NOTHING)
    return once * (passes / trial.scored)


def _data_plan(job: Job, name: str) -> DataPlan:
    dataset = job.datasets[name]
    shares, counted = _shares(dataset, job.recipe.data[name.partition(":")[0]])
    return DataPlan(
        name=name,
        images=len(dataset),
        without_label=len(dataset.unlabelled_ids) if dataset.labelled else len(dataset),
        coverage=[] if dataset.coverage is None else dataset.coverage.lines(),
        shares=dict(zip(dataset.space.classes, shares, strict=True)) if counted else {},
        counted=counted,
    )


def _shares(dataset: Dataset, config: DatasetConfig) -> tuple[list[float], int]:
    """Class shares and the number of labels behind them: of all where they are counted already, else of some."""
    pixels = known_class_pixels(dataset, config)
    if pixels is None:
        shares, _, counted = class_shares(dataset)
        return shares, counted
    total = pixels.sum(0, dtype="int64")
    return (total / max(1, total.sum())).tolist(), len(dataset) - len(dataset.unlabelled_ids) if dataset.labelled else 0


def _depends_on_devices(job: Job) -> list[str]:
    """Which results change with the number of devices, and what would keep them."""
    out = []
    for stage in (s for s in job.recipe.stages if method_class(s).trains):
        model = model_config(job.recipe, stage)
        if model.get("norm", "train") in ("train", "stats_only"):
            out.append(
                f"stage {stage.name!r}: batch norm sees the images of one device "
                f"({job.recipe.train_of(stage).batch_size} split over all); model.norm sync or affine_only does not"
            )
        parts = (part for part in stage.method.get("parts", {}).values() if part)
        if whole := [k for block in (stage.method, *parts) for k, value in block.items() if value == "batch"]:
            out.append(f"stage {stage.name!r}: {', '.join(whole)} 'batch' means one device's micro-batch")
    return out
