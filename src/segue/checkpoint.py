"""Model files and training checkpoints.

A model is a folder with ``model.safetensors`` and a readable ``model.json`` (architecture and settings, label space,
metrics, producing run): enough to predict. What it keeps of the images it was trained on lies beside them
(``segue.models.anchor``). A checkpoint is such a folder plus ``state.pt`` (plain containers and tensors; loads with
``weights_only=True``), written under a temporary name and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from segue.errors import UserError
from segue.files import read_json, remove, write_json
from segue.labels import LabelSpace, space_from_dict
from segue.models.anchor import KEY, Anchor, read_anchor, write_anchor
from segue.models.base import SegModel
from segue.models.build import build_model

FORMAT = "segue-model-1"
PREFIX = "iteration_"
NORMALISATION = ("mean", "std")
"""Entries that a wrapper holds for its base."""


class CheckpointError(UserError):
    """A model file or checkpoint that cannot be read or does not fit."""


def save_model(folder: Path, model: SegModel, labels: LabelSpace, info: Mapping[str, Any]) -> None:
    """Write model.safetensors and model.json into an existing folder."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"))
    description = {
        "format": FORMAT,
        "model": model.config.model_dump(mode="json"),
        "layout": model.layout(),
        "labels": labels.to_dict(),
        "normalisation": {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()},
        "notes": list(model.notes),
        **info,
    }
    if model.anchor is not None:
        write_anchor(folder, model.anchor)
        description[KEY] = model.anchor.describe()
    write_json(folder / "model.json", description)


def add_anchor(folder: Path, anchor: Anchor) -> None:
    """Put an anchor beside the weights of a stored model, in place of one that is there."""
    info, _ = _described(folder)
    write_anchor(folder, anchor)
    write_json(folder / "model.json", {**info, KEY: anchor.describe()})


def find_model(path: Path) -> Path:
    """The model folder meant by a path: itself, its newest checkpoint, or that of a stage of a run.

    Of several seeds the median one is meant, of a run the stage with role ``adapted``, or without one the last stage.
    """
    if path.is_file() and path.name == "model.safetensors":
        return path.parent
    if (path / "model.safetensors").is_file():
        return path
    if found := newest(path / "checkpoints"):
        return found
    seed = path / f"seed_{_record(path / 'result.json').get('median_seed')}"
    run = seed if seed.is_dir() else path
    stages = sorted((run / "stages").glob("[0-9]*_*"), key=lambda p: int(p.name.partition("_")[0]))
    adapted = _record(run / "run.json").get("roles", {}).get("adapted")
    stages.sort(key=lambda p: p.name.partition("_")[2] == adapted)
    for stage in reversed(stages):
        if found := newest(stage / "checkpoints"):
            return found
    raise CheckpointError(
        f"no model at {path}: give a run folder, a stage folder, a checkpoint folder, or a model.safetensors"
    )


def _record(path: Path) -> dict[str, Any]:
    try:
        return {**read_json(path)}
    except (OSError, ValueError, TypeError):
        return {}


def load_model(path: Path) -> tuple[SegModel, LabelSpace, dict[str, Any]]:
    """Model in eval mode, its label space, and model.json's content."""
    folder = find_model(path)
    try:
        info: dict[str, Any] = read_json(folder / "model.json")
        labels = space_from_dict(info["labels"])
        config = {**info["model"], "weights": None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {folder / 'model.json'}: {error}") from error
    model = build_model(config, len(labels), layout=info.get("layout"))
    load_into(model, folder)
    model.notes = tuple(info.get("notes", ()))
    model.anchor = read_anchor(folder)
    model.eval()
    return model, labels, info


def load_into(model: SegModel, folder: Path, *, wrapper: SegModel | None = None) -> None:
    """Load model.safetensors strictly; ``CheckpointError`` says which entries do not fit.

    ``wrapper``: what normalises for ``model``, which is its base.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; restore it from a copy, or train it again") from error
    inner = without_normalisation(tensors) if wrapper is not None else tensors
    check_fit(model, inner, str(path))
    model.load_state_dict(inner)
    if wrapper is not None:
        wrapper.load_state_dict({n: v for n, v in tensors.items() if n in NORMALISATION}, strict=False)


def without_normalisation(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a model's state the base of a wrapper has."""
    return {name: value for name, value in tensors.items() if name not in NORMALISATION}


def check_fit(model: SegModel, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """``CheckpointError`` unless names and shapes of ``tensors`` are those of the model."""
    own = model.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} != {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and v.shape != own[k].shape
    ]
    absent = [f"missing {k}" for k in own if k not in tensors] + [f"unexpected {k}" for k in tensors if k not in own]
    if wrong or absent:
        faults = [*wrong, *absent]
        raise CheckpointError(
            f"{where} was made by another architecture: {len(faults)} entries do not fit model "
            f"{model.config.name!r}, for example {'; '.join(faults[:3])}"
        )


def describe(path: Path) -> tuple[LabelSpace, dict[str, Any] | None]:
    """Label space of a stored model, and its layout (:meth:`SegModel.layout`), without its weights."""
    info, labels = _described(find_model(path))
    return labels, info.get("layout")


def _described(folder: Path) -> tuple[dict[str, Any], LabelSpace]:
    try:
        info: dict[str, Any] = read_json(folder / "model.json")
        return info, space_from_dict(info["labels"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {folder / 'model.json'}: {error}") from error


def start_from(model: SegModel, labels: LabelSpace, path: Path) -> None:
    """Start ``model`` from the weights of another run and keep its notes and anchor.

    A wrapper starts from a model of its own kind, or from one of its base's kind. ``CheckpointError``: other classes.
    """
    folder = find_model(path)
    info, theirs = _described(folder)
    if theirs.classes != labels.classes:
        other = sorted(set(theirs.classes) ^ set(labels.classes))
        raise CheckpointError(
            f"{folder} was trained for label space {theirs.name!r} ({len(theirs)} classes), this recipe uses "
            f"{labels.name!r} ({len(labels)} classes); they differ in {', '.join(other[:6]) or 'the order of classes'}"
        )
    taker = taker_of(model, info.get("model", {}).get("name"))
    load_into(taker, folder, wrapper=None if taker is model else model)
    model.adopt(read_anchor(folder))
    model.notes = tuple(dict.fromkeys((*model.notes, *info.get("notes", ()))))


def taker_of(model: SegModel, name: str | None) -> SegModel:
    """Which network takes the weights of an architecture: ``model``, or the base that it is a wrapper of."""
    base = getattr(model, "base", None)
    return base if isinstance(base, SegModel) and name == base.config.name != model.config.name else model


def save(
    root: Path, iteration: int, model: SegModel, labels: LabelSpace, info: Mapping[str, Any], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of an iteration whole or not at all; a failed write leaves the earlier ones as they are."""
    final = root / f"{PREFIX}{iteration:08d}"
    if (final / "state.pt").is_file():
        return final  # the same iteration of the same run: the same bytes
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    for left in root.glob(f".{PREFIX}*.tmp"):  # by a process that was killed while it wrote
        remove(left)
    try:
        temporary.mkdir(parents=True)
        save_model(temporary, model, labels, info)
        with (temporary / "state.pt").open("wb") as file:
            torch.save(dict(state), file)
        temporary.replace(final)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error}; earlier checkpoints are untouched, free space and use --resume"
        ) from error
    finally:
        remove(temporary)
    return final


def all_of(root: Path) -> list[Path]:
    """Complete checkpoints of a stage, oldest first."""
    return sorted(p for p in root.glob(f"{PREFIX}*") if (p / "state.pt").is_file())


def newest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = all_of(root)
    return found[-1] if found else None


def load_state(folder: Path) -> dict[str, Any]:
    """Training state of a checkpoint: plain containers and tensors on the CPU."""
    try:
        state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"cannot read {folder / 'state.pt'} ({_first_line(error)}); delete {folder}, then --resume goes on from "
            f"the checkpoint before it, or from the start of the stage when there is none"
        ) from error
    return state


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def prune(root: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    for folder in all_of(root)[:-keep]:
        if best is None or folder.name != f"{PREFIX}{best:08d}":
            remove(folder)
