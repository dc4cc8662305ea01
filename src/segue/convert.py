"""Checkpoints of other projects to our files: what becomes of every key, then all of it or nothing.

A segmentation model becomes a model folder (``model.safetensors`` and ``model.json``), an encoder or a discriminator
one ``.safetensors`` file. Class outputs are put into the order of the label space where the layout publishes theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.checkpoint import save_model
from segue.data.statistics import cache_folder
from segue.errors import UserError
from segue.files import replacing
from segue.foreign.base import Foreign
from segue.foreign.files import located, read_foreign, read_state
from segue.labels import LabelSpace, load_space
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.models.discriminators import Discriminator
from segue.models.growth import class_dim, convolutions
from segue.models.weights import NOTES, compare

Status = Literal["matched", "renamed", "dropped", "missing", "wrong shape", "not finite", "unexpected"]
FAULTS = ("missing", "wrong shape", "not finite", "unexpected")
BUFFERS = ("mean", "std")
SHOWN = 4


class ConvertError(UserError):
    """A checkpoint that cannot become one of our files; the message names the entries or the way out."""


@dataclass(frozen=True)
class Row:
    """What becomes of one key of the file, or of one of ours that the file lacks (``key`` is empty then)."""

    status: Status
    key: str
    ours: str = ""
    reason: str = ""

    def __str__(self) -> str:
        names = " -> ".join(dict.fromkeys(name for name in (self.key, self.ours) if name))
        return f"{self.status:11}  {names}{f'  ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True)
class Plan:
    """A read checkpoint, the network it fits or not, and what becomes of every key."""

    path: Path
    foreign: Foreign
    network: nn.Module
    rows: tuple[Row, ...]

    @property
    def faults(self) -> tuple[Row, ...]:
        """The rows for which nothing is written."""
        return tuple(row for row in self.rows if row.status in FAULTS)

    def counts(self) -> dict[str, int]:
        """Number of rows of each status."""
        return dict(Counter(row.status for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for a report file."""
        foreign = self.foreign
        head = {"file": str(self.path), "layout": foreign.layout, "part": foreign.part, "model": dict(foreign.model)}
        rows = [asdict(row) for row in self.rows]
        return {**head, "notes": list(foreign.notes), "counts": self.counts(), "keys": rows}


def plan(old: Path, layout: str | None = None, settings: Mapping[str, Any] | None = None) -> Plan:
    """Read a foreign checkpoint and lay its keys beside those of the network they belong to.

    ``settings`` go over the model settings that the file's shapes decide. ``UserError`` when the file cannot be read
    or recognised, or the settings are wrong.
    """
    old = located(old)
    if old.is_file() and old.suffix == ".safetensors" and set(BUFFERS) <= read_state(old).keys():
        raise ConvertError(f"{old} is a model of Segue already: use it as it is")
    foreign = read_foreign(old, layout)
    network = _network(foreign, settings or {})
    own = {name: tensor for name, tensor in network.state_dict().items() if name not in BUFFERS}
    report, fits = compare(own, foreign.state)
    ours = {given: name for name, given in fits.items()}
    wrong = {text.partition(" ")[0]: text.partition(" ")[2] for text in report.wrong_shape}
    rows = []
    for key, given in foreign.renamed.items():
        if given in ours:
            rows.append(Row("matched" if ours[given] == key else "renamed", key, ours[given]))
        elif given in report.unexpected:
            rows.append(Row("unexpected", key, reason=f"the network has no {given}"))
        elif given in wrong:
            rows.append(Row("wrong shape", key, given, wrong[given]))
        else:
            rows.append(Row("not finite", key, given, "NaN or infinite values"))
    rows += [Row("dropped", key, reason=reason) for key, reason in foreign.dropped.items()]
    rows += [Row("unexpected", key, reason="not in this layout") for key in foreign.unexpected]
    rows += [Row("missing", "", name) for name in report.missing]
    return Plan(old, foreign, network, tuple(rows))


def _network(foreign: Foreign, settings: Mapping[str, Any]) -> nn.Module:
    if foreign.part == "discriminator":
        return Discriminator(foreign.num_classes or 1)
    model = build_model({**foreign.model, **settings}, foreign.num_classes or 1)
    return model if foreign.part == "model" else model.get_submodule(model.encoder_prefix.rstrip("."))


def write(plan: Plan, new: Path, labels: str | None = None) -> Path:
    """Write what the plan says whole; ``ConvertError`` and nothing written when an entry does not fit.

    ``labels`` names the label space of a segmentation model; default Cityscapes' when the layout publishes which of
    its classes the outputs are.
    """
    if plan.faults:
        raise ConvertError(_faults(plan))
    if new.exists():
        raise ConvertError(f"{new} exists; choose another name")
    if isinstance(plan.network, SegModel):
        return _write_model(plan, plan.network, new, labels)
    if labels is not None:
        raise ConvertError(f"--labels: {plan.path} holds one {plan.foreign.part}, which has no classes")
    if new.suffix != ".safetensors":
        raise ConvertError(f"{plan.path} holds one {plan.foreign.part}: name the new file NAME.safetensors, not {new}")
    tensors = _loaded(plan.network, plan.foreign)
    for name, values in zip(BUFFERS, (plan.foreign.mean, plan.foreign.std), strict=True):
        tensors |= {name: torch.tensor(values)} if values is not None else {}
    with replacing(new) as temporary:
        notes = json.dumps(plan.foreign.notes)
        save_file(tensors, str(temporary), {"source": plan.path.name, "layout": plan.foreign.layout, NOTES: notes})
    return new


def converted(old: Path, settings: Mapping[str, Any] | None = None) -> Path:
    """The model folder of a foreign checkpoint, written into the cache when it is first asked for.

    As :func:`plan` and :func:`write`; the same content and settings mean the same folder, whatever the file's name.
    """
    old = located(old)
    with old.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = hashlib.sha256(json.dumps([digest, dict(settings or {})], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder(old) / "models" / key
    if not folder.is_dir():
        try:
            write(plan(old, settings=settings), folder)
        except (OSError, ConvertError):
            if not folder.is_dir():  # else another process has just written it
                raise
    return folder


def _write_model(plan: Plan, model: SegModel, new: Path, labels: str | None) -> Path:
    if new.suffix:
        raise ConvertError(f"{plan.path} holds a segmentation model: name a folder to write, not a file like {new}")
    space, order = _space(plan.foreign, labels)
    _loaded(model, plan.foreign)
    final = build_model(model.config, len(space))
    final.load_state_dict(_reordered(model, order))
    final.notes = plan.foreign.notes
    for buffer, values in ((final.mean, plan.foreign.mean), (final.std, plan.foreign.std)):
        if values is not None:
            buffer.copy_(torch.tensor(values).view_as(buffer))
    with plan.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = {"file": plan.path.name, "sha256": digest, "layout": plan.foreign.layout, "outputs": order}
    info = {"stage": "converted", "iteration": 0, "chosen": "as published", "source": source}
    with replacing(new) as temporary:
        temporary.mkdir()
        save_model(temporary, final, space, info)
    return new


def _faults(plan: Plan) -> str:
    total = sum(n for status, n in plan.counts().items() if status != "dropped")
    lines = [f"{plan.path} (layout {plan.foreign.layout}) does not fit, nothing is written:"]
    lines[0] += f" {len(plan.faults)} of {total} entries"
    for status in FAULTS:
        rows = [row for row in plan.faults if row.status == status]
        lines += [f"  {row}" for row in rows[:SHOWN]]
        lines += [f"  … and {len(rows) - SHOWN} more {status}"] if len(rows) > SHOWN else []
    return "\n".join(lines)


def _loaded(network: nn.Module, foreign: Foreign) -> dict[str, Tensor]:
    """The network's state after the checkpoint's values went in."""
    own = network.state_dict()
    _, fits = compare(own, foreign.state)
    for name, given in fits.items():
        own[name].copy_(foreign.state[given])
    return {name: tensor.contiguous() for name, tensor in own.items()}


def _space(foreign: Foreign, labels: str | None) -> tuple[LabelSpace, list[int]]:
    """The label space of the new model, and which output of the file each of its classes is."""
    if foreign.classes is None:
        if labels is None:
            raise ConvertError(
                f"the {foreign.num_classes} classes of layout {foreign.layout} are not published: "
                f"name their label space with --labels, see segue list spaces"
            )
        space = load_space(labels)
        if len(space) != foreign.num_classes:
            raise ConvertError(f"--labels {labels} has {len(space)} classes, the file has {foreign.num_classes}")
        return space, list(range(len(space)))
    space = load_space(labels) if labels is not None else _cityscapes(foreign.classes)
    if absent := [name for name in space.classes if name not in foreign.classes]:
        raise ConvertError(
            f"--labels {space.name} has classes that the file has no output for: {', '.join(absent)} "
            f"(it has {', '.join(foreign.classes)})"
        )
    return space, [foreign.classes.index(name) for name in space.classes]


def _cityscapes(classes: tuple[str, ...]) -> LabelSpace:
    """Cityscapes in its own order, or its first classes in the order of an incremental task."""
    space = load_space("cityscapes19")
    if set(classes) == set(space.classes):
        return space
    ids = [space.index(name) for name in classes]
    colors = tuple(space.colors[i] for i in ids)
    return LabelSpace(f"cityscapes_first{len(ids)}", classes, colors, tuple(space.ids[i] for i in ids))


def _reordered(model: SegModel, order: list[int]) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    names = {id(module): name for name, module in model.named_modules()}
    index = torch.tensor(order)
    for conv in (c for classifier in model.classifiers().values() for c in convolutions(classifier)):
        name = names[id(conv)]
        state[f"{name}.weight"] = state[f"{name}.weight"].index_select(class_dim(conv), index)
        if conv.bias is not None:
            state[f"{name}.bias"] = state[f"{name}.bias"].index_select(0, index)
    return state
