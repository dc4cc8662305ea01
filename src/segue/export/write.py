"""A model as one ONNX file: graph, label space and provenance, kept only if it answers as the network does.

The graph holds normalisation, padding and resizing (``segue.export.graph``); batch, height and width are free. The
file's metadata has one entry ``segue``, JSON, that says all a consumer must know (:func:`describe`). After writing,
ONNX Runtime and torch are compared (``segue.export.parity``); a file that fails is removed.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import segue
from segue.export import parity
from segue.export.graph import Deployed, Gives, Takes
from segue.export.session import ExportError, Size, pictures, require_onnx
from segue.files import replacing
from segue.labels import LabelSpace
from segue.models.base import SegModel
from segue.models.classify import to_input

if TYPE_CHECKING:
    import onnx

FORMAT = "segue-onnx-1"
KEY = "segue"
OPSETS = (18, 23)
"""Lowest and highest operator set; the lowest runs in the most consumers."""
SMALLEST_PX = 32
TOLD = ("recipe", "stage", "iteration", "chosen")  # not the run: a path on the machine that trained


@dataclass(frozen=True)
class Export:
    """How a model is exported. ``size`` (height, width) is what the graph is traced and checked with.

    ``fixed_size`` bakes ``size`` into the graph, for runtimes that want it and for networks that allow no other way.
    """

    takes: Takes = "float"
    gives: Gives = "logits"
    size: Size = (512, 1024)
    opset: int = OPSETS[0]
    fixed_size: bool = False

    def __post_init__(self) -> None:
        if min(self.size) < SMALLEST_PX:
            raise ExportError(f"size {self.size[0]}x{self.size[1]} is too small: at least {SMALLEST_PX} pixels a side")
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise ExportError(f"opset {self.opset} is not offered: choose {OPSETS[0]} to {OPSETS[1]}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return ("logits", "ids") if self.gives == "both" else (self.gives,)


def export(
    model: SegModel, labels: LabelSpace, path: Path, how: Export, info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``model`` (on the CPU) to ``path`` and return the file's metadata, ``parity`` among it.

    ``info``: model.json, for the names of run, stage and checkpoint. ``UserError`` without the extra ``onnx``;
    ``ExportError``, and no file, when the model cannot be written or ONNX Runtime answers otherwise than torch.
    """
    require_onnx()
    sizes = [how.size] if how.fixed_size else [how.size, *parity.other_sizes(how.size)]
    model = model.deployed()
    with replacing(path) as temporary:
        graph = to_graph(model, how)
        save(graph, temporary)
        try:
            checks = parity.compare(temporary, model, how.takes, sizes)
        except ExportError as error:
            raise ExportError(f"model {model.config.name!r}: {error}{_way_out(how)}") from error
        if failed := [check.line() for check in checks if not check.holds]:
            raise ExportError(
                f"the ONNX file of model {model.config.name!r} does not answer as the model does, none was kept: "
                + "; ".join(failed)
                + _way_out(how)
            )
        described = describe(model, labels, how, info or {}, checks)
        entry = graph.metadata_props.add()
        entry.key, entry.value = KEY, json.dumps(described, indent=1)
        save(graph, temporary)
    return described


def to_graph(model: SegModel, how: Export) -> onnx.ModelProto:
    """The graph alone, unchecked and without metadata; ``ExportError`` when torch cannot trace the model."""
    require_onnx()
    if model.not_exported:
        raise ExportError(f"model {model.config.name!r} cannot be exported: {model.not_exported}")
    if model.fixed_size_graph and not how.fixed_size:
        size = f"{how.size[0]}x{how.size[1]}"
        raise ExportError(f"a graph of model {model.config.name!r} has one size: --fixed-size writes {size} alone")
    images = pictures(2, how.size)  # of one, an exporter takes the batch for fixed
    example = torch.from_numpy(np.stack(images)) if how.takes == "uint8" else to_input(images, torch.device("cpu"))
    axes = {0: "batch"}
    if not how.fixed_size:
        axes |= {1: "height", 2: "width"} if how.takes == "uint8" else {2: "height", 3: "width"}
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    try:
        with _quiet():
            program = torch.onnx.export(
                Deployed(model, how.takes, how.gives),
                (example,),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=["image"],
                output_names=list(how.outputs),
                opset_version=how.opset,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(
            f"cannot write model {model.config.name!r} with free {', '.join(axes.values())}: {reason}{_way_out(how)}"
        ) from error
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    _clean(graph, how)
    return graph


def describe(
    model: SegModel, labels: LabelSpace, how: Export, info: Mapping[str, Any], checks: list[parity.Check]
) -> dict[str, Any]:
    """What a consumer must know, as plain containers; the classes stand in the order of the train ids."""
    space = labels.to_dict()
    space["classes"] = [{"train_id": number, **row} for number, row in enumerate(space["classes"])]
    sides = list(how.size) if how.fixed_size else ["height", "width"]
    image = {"layout": "NCHW", "shape": ["batch", 3, *sides], "type": "float32", "range": [0, 1]}
    if how.takes == "uint8":
        image = {"layout": "NHWC", "shape": ["batch", *sides, 3], "type": "uint8", "range": [0, 255]}
    outputs = {
        "logits": {"shape": ["batch", len(labels), *sides], "type": "float32"},
        "ids": {"shape": ["batch", *sides], "type": "uint8", "values": "train ids"},
    }
    return {
        "format": FORMAT,
        "segue": segue.__version__,
        "model": model.config.of_network(),
        "from": {key: info[key] for key in TOLD if key in info},
        "input": {"name": "image", "channels": "RGB", **image, "smallest_side_px": SMALLEST_PX},
        "outputs": {name: outputs[name] for name in how.outputs},
        "normalisation": {
            "inside": True,
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
        },
        "labels": space,
        "notes": list(model.notes),
        "parity": [check.to_dict() for check in checks],
    }


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph as one file."""
    import onnx

    onnx.save_model(graph, str(path))


def _way_out(how: Export) -> str:
    height, width = how.size
    return "" if how.fixed_size else f"; if free sizes are the reason, --fixed-size writes {height}x{width} alone"


def _clean(graph: onnx.ModelProto, how: Export) -> None:
    """Name the free dimensions; drop what the exporter notes of the machine that it ran on, such as stack traces."""
    del graph.graph.value_info[:]
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    planes, ids = ("batch", "", "height", "width"), ("batch", "height", "width")
    names = {"image": (*ids, "") if how.takes == "uint8" else planes, "logits": planes, "ids": ids}
    for value in (*graph.graph.input, *graph.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings are about its own future."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
