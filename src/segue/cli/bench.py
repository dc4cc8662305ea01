"""``segue bench``: what a trained model costs to run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from segue.cli.options import Device, pixels
from segue.errors import UserError
from segue.files import write_json
from segue.progress import Progress

if TYPE_CHECKING:
    from segue.data.dataset import Dataset
    from segue.export.forms import Form
    from segue.labels import LabelSpace

app = typer.Typer(no_args_is_help=True, help=__doc__)

LOG_COLUMNS = 160
MODEL = "Run, stage or checkpoint folder, or model.safetensors."
FORMS = "With commas: eager, channels_last, compiled, fp16, bf16, onnx, int8; default all."
DATA = "Labelled data NAME[:SPLIT]: mIoU of the ONNX forms; its split train sets the ranges of int8."
IMAGES = "Image, folder or glob that sets the ranges of int8, instead of the split train of --data."


@app.callback()
def bench() -> None:
    """Measure what a model costs to run."""


@app.command()
def latency(
    model: Annotated[Path, typer.Option(help=MODEL)],
    size: Annotated[list[str] | None, typer.Option(help="HxW of the image; repeatable. Default 512x1024.")] = None,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of each form.", min=1)] = 30,
    warmup: Annotated[int, typer.Option(help="Runs before them.", min=1)] = 5,
    forms: Annotated[str, typer.Option(help=FORMS)] = "",
    data: Annotated[str, typer.Option(help=DATA)] = "",
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    images: Annotated[str, typer.Option(help=IMAGES)] = "",
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
) -> None:
    """Time a model as it is, compiled, channels-last, in half precision, as ONNX in float and in int8."""
    sizes = [pair for text in size or ["512x1024"] if (pair := pixels(text))]
    from segue import api
    from segue.export import latency as measuring

    wanted = _forms(forms)
    predictor = api.load(model, device, checkpoint)
    scored, calibration = open_data(data, root, images, sizes[0], predictor.labels)
    plan = measuring.Plan(sizes, batch, runs, warmup, wanted)
    found = measuring.measure(
        predictor.model,
        predictor.labels,
        plan,
        predictor.model.mean.device,
        calibration=calibration,
        scored=scored,
        progress=Progress("timing"),
    )
    if found["quality"] is not None:
        found["quality"]["data"] = data
    if json_file:
        write_json(json_file, found)
    _show(found)


def _forms(text: str) -> tuple[Form, ...]:
    from segue.export.forms import FORMS as known

    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in known]
    if unknown:
        raise UserError(f"unknown form {unknown[0]!r} (known: {', '.join(known)})")
    return tuple(form for form in known if form in words) or known


def open_data(
    data: str, root: Path | None, images: str, size: tuple[int, int], labels: LabelSpace
) -> tuple[Dataset | None, Dataset | None]:
    """Labelled data to score on, and pictures to calibrate with, both at ``size``; None for what was not given."""
    from segue.config import DatasetConfig
    from segue.data import reference
    from segue.data.dataset import open_dataset
    from segue.predict.check import Pictures
    from segue.predict.inputs import find_images

    scored: Dataset | None = None
    calibration: Dataset | None = Pictures(find_images(images), labels) if images else None
    if data:
        name, split = reference.parse(data)
        scored = open_dataset(name, DatasetConfig(root=root, size=size), split or "val", labels)
        if calibration is None:
            calibration = open_dataset(name, DatasetConfig(root=root, size=size), "train", labels)
        if not scored.labelled:
            raise UserError(f"data set {scored.name!r} has no labels to score against; calibrate with --images alone")
    return scored, calibration


def _show(found: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else LOG_COLUMNS, highlight=False)
    machine = found["machine"]
    console.print(
        f"{found['what']}, batch {found['batch']}, {found['runs']} runs in turns after {found['warmup']} warm-up runs, "
        f"on {machine.get('gpu', machine['processor'])}, {machine['threads']} thread(s)",
        markup=False,
    )
    for table in found["sizes"]:
        console.print(_table(table))
        for row in table["rows"]:
            if "skipped" in row:
                console.print(f"{row['form']}: {row['skipped']}", markup=False)
    if found["calibration_pictures"]:
        console.print(f"int8 calibrated with {found['calibration_pictures']} pictures")
    quality = found["quality"]
    if quality is not None:
        scores = [f"{form} {100 * quality[form]:.2f}" for form in ("onnx", "int8") if form in quality]
        cost = f"; int8 costs {quality['cost_points']:.2f} points" if "cost_points" in quality else ""
        console.print(f"mIoU on {quality['data']}: {', '.join(scores) or 'no ONNX form was run'}{cost}", markup=False)


def _table(found: dict[str, Any]) -> Table:
    height, width = found["size"]
    table = Table(title=f"{height}x{width}", title_justify="left")
    table.add_column("form")
    for name in ("p50 ms", "p90 ms", "p99 ms", "mean ms", "images/s", "speed, eager = 1", "ids as eager", "peak MB"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        if "skipped" not in row:
            times = (f"{row[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "fps"))
            table.add_row(row["form"], *times, _speed(row), _share(row), _memory(row))
    return table


def _speed(row: dict[str, Any]) -> str:
    if "speed" not in row:
        return ""
    return f"{row['speed']:.2f} [{row['speed_p05']:.2f}, {row['speed_p95']:.2f}]"


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['ids_as_eager']:.2f} %" if "ids_as_eager" in row else ""


def _memory(row: dict[str, Any]) -> str:
    return f"{row['peak_memory_mb']:.0f}" if "peak_memory_mb" in row else ""
