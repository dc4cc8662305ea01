"""``segue export``: a model as one ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from segue.cli.options import pixels
from segue.errors import UserError

if TYPE_CHECKING:
    from segue.export.graph import Gives, Takes

MODEL = "Run, stage or checkpoint folder, or model.safetensors."
SIZE = "HxW that the file is written and checked with; others work too."
FIXED = "Bake --size in, for runtimes that want that; any number of images at once."


def export(
    model: Annotated[Path, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("model.onnx"),
    output: Annotated[str, typer.Option(help="logits, ids (train ids) or both.")] = "logits",
    input_kind: Annotated[str, typer.Option("--input", help="float (NCHW, 0..1) or uint8 (NHWC, 0..255).")] = "float",
    size: Annotated[str, typer.Option(help=SIZE)] = "512x1024",
    opset: Annotated[int, typer.Option(help="Operator set; the lowest runs in the most consumers.")] = 18,
    fixed_size: Annotated[bool, typer.Option("--fixed-size", help=FIXED)] = False,
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
) -> None:
    """Write a model as ONNX, normalisation and label space inside, and check it against torch."""
    takes = cast("Takes", _one_of("--input", input_kind, ("float", "uint8")))
    gives = cast("Gives", _one_of("--output", output, ("logits", "ids", "both")))
    wanted = pixels(size)
    from segue import api
    from segue.export import Export, parity, write

    how = Export(takes, gives, wanted or Export.size, opset, fixed_size)
    predictor = api.load(model, "cpu", checkpoint)
    found = write.export(predictor.model, predictor.labels, out, how, predictor.info)
    for row in found["parity"]:
        print(parity.Check(**row).line())
    for name, tensor in (("image", found["input"]), *found["outputs"].items()):
        print(f"{name}: {tensor['type']} {', '.join(map(str, tensor['shape']))}")
    for note in found["notes"]:
        print(f"note: {note}")
    print(out)


def _one_of(option: str, given: str, known: Sequence[str]) -> str:
    if given not in known:
        raise UserError(f"unknown {option} {given!r} (known: {', '.join(known)})")
    return given
