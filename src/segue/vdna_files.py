"""The three JSON files of "Unsupervised Incremental Learning using vDNA" (DLL project, 2024) as they are published.

They are told apart by their keys. What a file leaves out is the committed file's value, but for ``total_itrs``, whose
20 was a trial's (1800 in the real runs); what had no effect there is told and not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from segue.errors import UserError
from segue.labels import nearest
from segue.settings import Settings, explain

RESNET101: dict[str, Any] = {"encoder": "resnet101"}
RESNET50: dict[str, Any] = {"encoder": "resnet50"}
MOBILENET: dict[str, Any] = {"encoder": "mobilenetv2_100", "encoder_style": "fixed_padding"}
V3: dict[str, Any] = {"name": "deeplabv3"}
PLUS: dict[str, Any] = {"name": "deeplabv3plus", "decoder_convs": 1}
MODELS: Mapping[str, dict[str, Any]] = {
    "deeplabv3_resnet50": V3 | RESNET50,
    "deeplabv3plus_resnet50": PLUS | RESNET50,
    "deeplabv3_resnet101": V3 | RESNET101,
    "deeplabv3plus_resnet101": PLUS | RESNET101,
    "deeplabv3_mobilenet": V3 | MOBILENET,
    "deeplabv3plus_mobilenet": PLUS | MOBILENET,
    "DeepLabV3": V3 | RESNET101,
    "DeepLabV3Plus": PLUS | RESNET101,  # of the README's example, in no registry there
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INERT = {
    "data_processor.train_ratio": "never read there: every image that is not for validation is followed",
    "gpu_id": "of no effect there; choose with --device or --gpus",
    "dataset": "a text that nothing read",
    "continue_training": "goes on with --resume here, with every state of the run",
    "confidence_threshold": "never read there; pseudo_labels.NAME.confidence_min is such a rule",
    "base_source_dir": "never read there",
    "normalization": "a model file holds its own",
}


class VdnaConfigError(UserError):
    """A JSON file that is none of the three, or asks for what is not there; all its faults at once."""


def _model(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"model: no counterpart of {name!r} here{nearest(name, list(MODELS))}")
    return name


class _Processor(Settings):
    json_file: str | None = None
    num_buckets: PositiveInt = 1
    train_ratio: float = 0.8


class _Generator(Settings):
    num_samples: PositiveInt = 2000


class _Normalization(Settings):
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


Model = Annotated[str, AfterValidator(_model)]
Classes = Literal[19]
Stride = Literal[8, 16]


class Training(Settings):
    """``training_pipeline.json``."""

    random_seed: NonNegativeInt = 1
    data_processor: _Processor = _Processor()
    gpu_id: str | int = "0"
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 1e-4
    lr_policy: Literal["poly", "step"] = "poly"
    total_itrs: PositiveInt = 1800
    step_size: PositiveInt = 600
    loss_type: Literal["cross_entropy", "focal_loss"] = "cross_entropy"
    dataset: str = ""
    batch_size: PositiveInt = 16
    continue_training: bool = False
    crop_size: PositiveInt = 370
    buckets_order: Literal["asc", "desc", "rand"] = "rand"
    buckets_num: PositiveInt | None = None
    model: Model = "deeplabv3plus_resnet101"
    num_classes: Classes = 19
    output_stride: Stride = 16
    ckpt: str | None = None
    teacher_ckpt: str | None = None
    labelgenerator: _Generator = _Generator()


class Testing(Settings):
    """``testing_pipeline.json``."""

    gpu_id: str | int = "0"
    random_seed: NonNegativeInt = 1
    val_batch_size: PositiveInt = 4
    model: Model = "deeplabv3plus_resnet101"
    num_classes: Classes = 19
    output_stride: Stride = 16
    checkpoint_dir: str = "./checkpoints"
    json_file1: str | None = None
    json_file2: str | None = None
    num_test: PositiveInt = 2200


class WeakLabels(Settings):
    """``weak_label_kitti_360.json``; the last four were arguments of its functions, not keys of the file."""

    confidence_threshold: float = 0.7
    entropy_threshold: PositiveFloat = 0.3
    base_source_dir: str = ""
    output_dir: str = "./outputs/weaklabels/KITTI-360"
    normalization: _Normalization = _Normalization()
    ckpt: str | None = None
    json_file: str | None = None
    num_samples: PositiveInt | None = None
    output_stride: Stride = 16


KINDS: Mapping[type[Settings], frozenset[str]] = {
    Training: frozenset({"data_processor", "buckets_order", "labelgenerator", "teacher_ckpt"}),
    Testing: frozenset({"checkpoint_dir", "json_file1", "json_file2", "num_test"}),
    WeakLabels: frozenset({"entropy_threshold", "confidence_threshold", "normalization"}),
}
"""Each kind of file, and keys that no other has."""


def read_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[Settings, list[str], list[str]]:
    """The settings of a file (one of ``KINDS``), what is to be told of it, and the overrides of other keys than those.

    ``VdnaConfigError`` for a file that is none of the three, with every fault.
    """
    data = read_object(path)
    cls = _kind(data, path)
    own = set(_leaves(cls))
    given = [text for text in overrides if text.partition("=")[0] in own]
    for text in given:
        _set(data, text)
    try:
        settings = cls.model_validate(data)
    except ValidationError as error:
        raise VdnaConfigError("\n".join(f"{path}: {line}" for line in explain(error, cls))) from error
    rest = [text for text in overrides if text not in given]
    return settings, [*_not_read(data), *_filled_in(settings)], rest


def _set(data: dict[str, Any], text: str) -> None:
    key, _, value = text.partition("=")
    *parents, last = key.split(".")
    for parent in parents:
        data[parent] = dict(data[parent]) if isinstance(data.get(parent), dict) else {}
        data = data[parent]
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise VdnaConfigError(f"cannot read the value of {text!r}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; ``VdnaConfigError`` names the file and what is wrong."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else f"not JSON: {error}"
        raise VdnaConfigError(f"cannot read {path}: {reason}") from error
    if not isinstance(data, dict):
        raise VdnaConfigError(f"{path} holds no settings: it must be one JSON object")
    return data


def _kind(data: Mapping[str, Any], path: Path) -> type[Settings]:
    found = {cls: len(marks & data.keys()) for cls, marks in KINDS.items()}
    best = max(found, key=lambda cls: found[cls])
    if not found[best]:
        marks = "; ".join(f"{cls.__name__}: {', '.join(sorted(marks))}" for cls, marks in KINDS.items())
        raise VdnaConfigError(f"{path} is none of the vDNA project's settings, which are told by their keys ({marks})")
    return best


def _leaves(cls: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, info in cls.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _not_read(data: Mapping[str, Any]) -> Iterator[str]:
    for key, reason in INERT.items():
        parent, _, child = key.rpartition(".")
        block = data.get(parent, {}) if parent else data
        if isinstance(block, Mapping) and child in block:
            yield f"not read: {key} ({reason})"


def _filled_in(settings: Settings, prefix: str = "") -> Iterator[str]:
    """Settings of numbers and choices that the file leaves out."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _filled_in(value, f"{prefix}{name}.")
        elif name not in settings.model_fields_set and prefix + name not in INERT and value not in (None, ""):
            yield f"not in the file: {prefix}{name}, taken as {value}"
