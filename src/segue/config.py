"""Every setting of a recipe as a typed model.

This module imports no torch: ``segue --help`` and ``segue config`` stay fast. Settings of models and methods live with
their classes and are checked when the recipe is resolved (``segue.jobs.checks``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from segue.annotation import AnnotateConfig
from segue.following import AnchorConfig, FollowConfig
from segue.labels import nearest
from segue.policies import AugmentConfig, CorruptConfig
from segue.presets import applied
from segue.pseudo_labelling import PseudoLabelConfig
from segue.rounds import written_out
from segue.settings import Settings, check
from segue.tasks import load_task

Size = tuple[PositiveInt, PositiveInt]
NAMED = ("model", "method", "acquisition")
"""Blocks with the name of a class and its settings; a bare name will do."""


class DatasetConfig(Settings):
    """One named data set of a recipe (``data.NAME``)."""

    dataset: str | None = None
    """Catalog name (``segue list datasets``), folder with a ``dataset.yaml``, or ``python:module:Class``.
    Default: the entry's own name."""
    root: Path | None = None
    """Folder of the data. Default: ``SEGUE_DATA/NAME``, ``./data/NAME``, ``./datasets/data/NAME``."""
    size: Size | None = None
    """Resize images to (height, width) when they are read; labels follow for training, never for scoring."""
    include: tuple[str, ...] = ()
    """Glob patterns on image ids; an image is used when it matches one (default: all)."""
    exclude: tuple[str, ...] = ()
    """Glob patterns on image ids that are left out."""
    limit: PositiveInt | None = None
    """Use this many images, evenly spaced over the sorted list."""
    listed: Path | None = None
    """Use the images alone that this JSON list names (``image``), in the form of the vDNA project's lists."""
    corrupt: CorruptConfig | None = None
    """See the images under fog, night, rain, blur or camera processing, for training and for scoring."""
    statistics: Path | None = None
    """Published class statistics for ``rare_class``: ``sample_class_stats.json`` and its kin, or their folder.
    Default: those in ``root``, else the labels are counted once."""
    labels: Path | None = None
    """Folder of train-id PNGs with an ``index.json``, as ``segue pseudo-label`` writes them. They replace the data
    set's own labels in the split that they were made for; other splits keep theirs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a ``python:`` data set."""


class RareClassConfig(Settings):
    """Rare class sampling: a class by its rarity, an image that shows it, a crop that shows it."""

    temperature: PositiveFloat = 0.01
    """The lower, the more the rarest classes are preferred; ``.inf``: all alike (0.01 in DAFormer, HRDA and MIC; 0.05
    in VFM-UDA++)."""
    min_px: NonNegativeInt = 3000
    """An image shows a class with more pixels than this in its file (3000 in all of them)."""
    crop_px: NonNegativeInt | None = None
    """A crop shows it with more pixels than this. Default: min_px / 2 at a crop of 512x512, in proportion to its area
    (DAFormer: 0.5 min_px at 512x512; HRDA: 2 min_px at 1024x1024)."""
    tries: int = Field(10, ge=0, le=100)
    """Redraws of a crop that shows too little; then the one that shows most is taken (10; VFM-UDA++ 20)."""
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    """Draw these classes only. Default: every class that occurs."""


class TransformConfig(Settings):
    """What happens to a training sample on the CPU, from its own keyed generator."""

    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Random scale factor, uniform in this range."""
    crop: Size | None = None
    """Random crop to (height, width); smaller images are padded, and padding enters no loss. Default: whole image."""
    max_class_share: float = Field(1.0, gt=0, le=1)
    """Redraw a labelled crop, up to 10 times, while one class fills more than this share (mmseg uses 0.75)."""
    rare_class: RareClassConfig | None = None
    """Choose images and crops of labelled streams by rare classes (``{}``: with the defaults). Default: off."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    brightness: float = Field(0.0, ge=0)
    """Brightness factor drawn from [1 - b, 1 + b]; likewise below."""
    contrast: float = Field(0.0, ge=0)
    saturation: float = Field(0.0, ge=0)
    hue: float = Field(0.0, ge=0, le=0.5)
    """Hue shift drawn from [-h, h], in turns."""
    augment: AugmentConfig | None = None
    """Strong steps on the window, after the small jitter above (whose draws stay the same) and before padding: the name
    of a policy (C-S-HF, H-RP-HF, B-GS-R, S-BL-R), or a block with ``steps``. Default: off."""

    @field_validator("augment", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        return {"steps": value} if isinstance(value, str) else value


class ScheduleConfig(Settings):
    """Learning rate over time, a pure function of the iteration."""

    name: Literal["poly", "step", "constant"] = "poly"
    power: float = 0.9
    """Exponent of ``poly``: (1 - t/T)^power (0.9 in DeepLab, Chen et al. 2017; 1.0 in DAFormer)."""
    warmup_iterations: int = Field(0, ge=0)
    """Linear warm-up that multiplies the schedule (DAFormer: 1500)."""
    warmup_factor: float = Field(1e-6, ge=0, le=1)
    """Factor at the first warm-up iteration."""
    step_at: tuple[float, ...] = (0.5, 0.75)
    """Shares of the training at which ``step`` multiplies by ``step_factor``."""
    step_factor: float = 0.1
    unit: Literal["iteration", "epoch"] = "iteration"
    """Whether the factor changes every iteration or once an epoch."""
    count_from: Literal[0, 1] = 0
    """Which epoch (or iteration) has the base rate; 1, the second, in CIL's code, whose first is a little above it."""


class OptimConfig(Settings):
    """Optimiser of the model; ``networks`` overrides it for a method's other networks."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: float = Field(0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: ScheduleConfig = ScheduleConfig()
    lr_factors: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Regular expression on parameter-group names -> factor of ``lr`` (on top of the model's own)."""
    networks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of this block for other networks of the method, e.g. ``discriminator: {name: adam, lr: 1e-4}``."""


class TrainConfig(Settings):
    """How long and how a stage trains."""

    iterations: PositiveInt | None = None
    epochs: PositiveInt | None = None
    """Instead of ``iterations``: passes over the first stream."""
    batch_size: PositiveInt = 8
    """Images of each stream in one optimiser step, over all devices and micro-batches."""
    accumulate: PositiveInt = 1
    """Micro-batches a step; the loss does not change with it."""
    precision: Literal["64", "32", "bf16", "fp16"] = "32"
    """Of the network: 64 is for comparisons, bf16 and fp16 are torch's autocast. Losses are never below 32 bits."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm of each network; larger gradients are scaled down to it."""
    workers: int = Field(0, ge=0)
    """Loader processes a stream."""
    compile: bool = False
    channels_last: bool = False
    log_every: PositiveInt = 10
    watch_every: PositiveInt | None = 20
    """Iterations between two looks at the predictions on unlabelled images, from which the alarms come; null: none."""
    evaluate_every: PositiveInt | None = None
    """Iterations between evaluations while training; the end of a stage is always evaluated."""
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 1
    """How many of the newest checkpoints stay (the best one always does)."""
    best: str | None = None
    """Validation set whose mIoU names the ``best`` checkpoint. With target labels that is an oracle choice and every
    number that comes from it says so. Default: none, ``last`` is used."""

    @field_validator("precision", mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _length(self) -> TrainConfig:
        if self.iterations is not None and self.epochs is not None:
            raise ValueError("give either 'iterations' or 'epochs', not both")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}")
        return self


class Mixture(Settings):
    """One data set of a stream and how often it is drawn."""

    data: str
    weight: PositiveFloat | Literal["images"] = 1.0
    """Its share against the others'; ``images``: the number of its images."""


class StageConfig(Settings):
    """One training: a method on named streams, from given weights."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    method: dict[str, Any]
    """Method name, or a block with ``name`` and its settings."""
    preset: str | None = None
    """Published method (``segue list presets``) whose settings stand below the stage's own. Written out when read."""
    data: dict[str, tuple[Mixture, ...]] = Field(default_factory=dict)
    """Stream name -> ``NAME:split``, or a list of ``{data, weight}``."""
    start: str | None = None
    """Name of an earlier stage, or a model file or run folder; default: the model's own start (``model.weights``)."""
    references: dict[str, str] = Field(default_factory=dict)
    """Frozen models of the method: name -> earlier stage or file."""
    pseudo_labels: dict[str, PseudoLabelConfig] = Field(default_factory=dict)
    """Stream -> the models that label its images before the stage begins, in the place of labels of its own."""
    rounds: PositiveInt | None = None
    """Repeat the stage so often, as NAME_1, NAME_2, …: each round after the first starts from the one before it, which
    also makes its pseudo-labels and chooses what to annotate; it follows the next bucket. Elsewhere in the recipe NAME
    then means the last."""
    annotate: AnnotateConfig | None = None
    """Buy labels of regions of a data set, once a round."""
    follow: FollowConfig | None = None
    """Train on a bucket of an unlabelled stream, one a round."""
    anchor: AnchorConfig | None = None
    """Keep statistics of the training images beside the weights (``{}``: with the defaults). Default: none."""
    step: PositiveInt | Literal["all"] | None = None
    """Step of the recipe's ``task``: which classes the model has, and which images and classes its labelled streams.
    Default: all."""
    head: Literal["random", "background", "unknown"] | None = None
    """How outputs of new classes begin when ``start`` has fewer. Default: as the method asks."""
    memory: PositiveInt = 100
    """Images of earlier steps that a stream ``replay`` holds (100 of VOC in SSUL-M)."""
    role: Literal["source_only", "adapted", "target_supervised"] | None = None
    """Which of the report's three numbers this stage gives."""
    model: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)
    transform: dict[str, Any] = Field(default_factory=dict)
    streams: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Transform settings of single streams, e.g. ``target: {flip: 0}``."""

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            stream: [_mixture(v) for v in (row if isinstance(row, list) else [row])] for stream, row in value.items()
        }

    @property
    def sources(self) -> tuple[str, ...]:
        """Stages and files whose weights this stage needs, each once."""
        labelling = (model for given in self.pseudo_labels.values() for model in given.models)
        domains = self.annotate.discriminator if self.annotate else None
        given = [self.start, *self.references.values(), *labelling, domains]
        return tuple(dict.fromkeys(source for source in given if source))


def _mixture(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


class EvaluateConfig(Settings):
    """What is scored at the end of every stage."""

    data: tuple[str, ...] = ()
    """``NAME:split`` of every validation set; the first is the target of the report."""
    views: tuple[str, ...] = ("all",)
    """Scoring views of the label space."""
    batch_size: PositiveInt = 1
    samples: int = Field(4, ge=0)
    """Images whose predictions are stored for the report."""


class Recipe(Settings):
    """A whole run: data, model, and stages that build on one another."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    labels: str
    """Label space of the model, see ``segue list spaces``."""
    task: str | dict[str, Any] | None = None
    """Steps in which classes come (``segue list tasks``): a name, a YAML file, or a block."""
    seed: int = Field(0, ge=0)
    model: dict[str, Any]
    """``name`` of the model and its settings."""
    data: dict[str, DatasetConfig]
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    transform: TransformConfig = TransformConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    threads: PositiveInt | None = None
    """CPU threads of torch; results are the same bytes only at one number of threads. Default: torch's own."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers beside metrics.jsonl; wandb and mlflow are extras, and both write files here unless told otherwise."""

    @field_validator("data", mode="before")
    @classmethod
    def _bare_data(cls, value: Any) -> Any:
        return {k: v or {} for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("stages", mode="before")
    @classmethod
    def _rounds(cls, value: Any) -> Any:
        return written_out(applied(list(value), merge)) if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            for mixture in (m for row in stage.data.values() for m in row):
                self.split_of(mixture.data, f"stage {stage.name!r}")
            for text in filter(None, (stage.annotate.data, stage.annotate.source) if stage.annotate else ()):
                self.split_of(text, f"stages.{stage.name}.annotate")
            for rules in (given.trust for given in stage.pseudo_labels.values() if given.trust):
                if rules.source is not None:
                    self.split_of(rules.source, f"stages.{stage.name}.pseudo_labels")
            if stage.anchor is not None and stage.anchor.data is not None:
                self.split_of(stage.anchor.data, f"stages.{stage.name}.anchor")
            self._check_follow(stage)
            self.train_of(stage), self.optim_of(stage)
            for stream in (*stage.data, *stage.streams):
                self.transform_of(stage, stream)
            if stage.data and (train := self.train_of(stage)).iterations is None and train.epochs is None:
                raise ValueError(f"stage {stage.name!r} has no length: set train.iterations or train.epochs")
            if (best := self.train_of(stage).best) is not None and best not in self.evaluate.data:
                raise ValueError(f"train.best is {best!r}, which is not under evaluate.data")
            seen.append(stage.name)
        for name in self.evaluate.data:
            self.split_of(name, "evaluate.data")
        self._check_task()
        return self

    def _check_follow(self, stage: StageConfig) -> None:
        if (given := stage.follow) is None:
            return
        where = f"stages.{stage.name}.follow"
        for text in filter(None, (*given.data, given.source)):
            self.split_of(text, where)
        if stage.start is None:
            raise ValueError(f"{where}: a stream is followed from a trained model; give the stage 'start'")
        if unused := set(given.data) - {m.data for row in stage.data.values() for m in row}:
            raise ValueError(f"{where}.data names {min(unused)!r}, which no stream of the stage has")
        if given.scored_source is not None and given.scored_source not in self.evaluate.data:
            raise ValueError(f"{where}.scored_source is {given.scored_source!r}, which is not under evaluate.data")

    def _check_task(self) -> None:
        if self.task is None:
            if stepped := [s.name for s in self.stages if s.step is not None]:
                raise ValueError(f"stage {stepped[0]!r} names a step, so the recipe needs a task (segue list tasks)")
            return
        task = load_task(self.task)
        if task.labels != self.labels:
            raise ValueError(f"task {task.name!r} shares out label space {task.labels!r}: set labels to that")
        for stage in self.stages:
            task.seen(stage.step)

    def split_of(self, text: str, where: str) -> tuple[str, str]:
        """``NAME:split`` to its two parts; an unknown name is an error that lists the known ones."""
        name, _, split = text.partition(":")
        if name not in self.data:
            raise ValueError(f"{where} uses data set {name!r}{nearest(name, list(self.data))}")
        return name, split or "train"

    def train_of(self, stage: StageConfig) -> TrainConfig:
        """``train`` with the stage's own values on top (its iterations replace epochs, and the other way round)."""
        base = self.train.model_dump(exclude_unset=True)
        if {"iterations", "epochs"} & stage.train.keys():
            base = {k: v for k, v in base.items() if k not in ("iterations", "epochs")}
        return check(TrainConfig, merge(base, stage.train), f"stages.{stage.name}.train")

    def optim_of(self, stage: StageConfig) -> OptimConfig:
        """``optim`` with the stage's own values on top."""
        return check(
            OptimConfig, merge(self.optim.model_dump(exclude_unset=True), stage.optim), f"stages.{stage.name}.optim"
        )

    def transform_of(self, stage: StageConfig, stream: str) -> TransformConfig:
        """``transform`` with the stage's and the stream's own values on top."""
        base = merge(self.transform.model_dump(exclude_unset=True), stage.transform)
        top = stage.streams.get(stream, {})
        return check(TransformConfig, merge(base, top), f"stages.{stage.name}.transform")


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``: blocks merge key by key; all else is replaced, also a model or method by another."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if not (isinstance(value, dict) and isinstance(old, dict)):
            out[key] = value
        elif key in NAMED:
            out[key] = merge_named(old, value)
        else:
            out[key] = merge(old, value)
    return out


def merge_named(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Settings of a named class over others: merged for the same class, replaced by those of another."""
    return top if "name" in top and top["name"] != base.get("name", top["name"]) else merge(base, top)
