"""``segue evaluate``: score models, or predictions that lie in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli.options import Device, numbers, percent, pixels
from segue.files import write_json
from segue.progress import Progress
from segue.scoring.ledger import title

MODEL = "Run, stage or checkpoint folder, or model.safetensors; several answer by their mean probability."
VIEW = "Classes that are averaged; NAME-lenient ignores the pixels of others. May be repeated."
CLASSES = "Names with commas, or a view: the model must choose among them."
TASKS = "Name or file of a task: score each step's classes and their unions by themselves."
TEMPERATURE = "Fit a temperature on this labelled data, best the source: NAME[:SPLIT]."

More = Annotated[list[Path] | None, typer.Argument(metavar="[MODEL]...", help="More models, as after --model.")]


def evaluate(
    more: More = None,
    model: Annotated[list[Path] | None, typer.Option(help=MODEL)] = None,
    predictions: Annotated[Path | None, typer.Option(help="Score the PNGs of this folder, without a model.")] = None,
    data: Annotated[str, typer.Option(help="Data set or folder, with split: NAME[:SPLIT].")] = "",
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
    size: Annotated[str, typer.Option(help="Resize the network's input to HxW; scoring stays at label size.")] = "",
    view: Annotated[list[str] | None, typer.Option(help=VIEW)] = None,
    classes: Annotated[str, typer.Option(help=CLASSES)] = "",
    tasks: Annotated[str | None, typer.Option(help=TASKS)] = None,
    protocol: Annotated[str, typer.Option(help="native, mmseg, d2ada, stdc, stdc75 or cil.")] = "native",
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")] = False,
    scales: Annotated[str, typer.Option(help="Average over sizes of the input, e.g. 0.5,1,1.5.")] = "",
    slide: Annotated[str, typer.Option(help="Sliding windows of HxW.")] = "",
    stride: Annotated[str, typer.Option(help="Step of the windows, HxW; default half of them.")] = "",
    boundary: Annotated[bool, typer.Option("--boundary", help="Boundary IoU too.")] = False,
    calibration: Annotated[bool, typer.Option("--calibration", help="Calibration error too.")] = False,
    temperature_data: Annotated[str | None, typer.Option(help=TEMPERATURE)] = None,
    temperature_root: Annotated[Path | None, typer.Option(help="Where that data lies.")] = None,
    labels: Annotated[str | None, typer.Option(help="Label space of --predictions; default the data's own.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of --predictions: trainid or labelid; default what fits.")
    ] = None,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
) -> None:
    """Score models, or stored predictions, on a labelled data set."""
    sizes = {"size": pixels(size), "slide": pixels(slide), "stride": pixels(stride)}
    factors = numbers(scales)
    from segue import api

    scores = api.evaluate(
        [*(model or []), *(more or [])],
        data,
        predictions=predictions,
        root=root,
        checkpoint=checkpoint,
        views=view or (),
        classes=[name.strip() for name in classes.split(",") if name.strip()],
        protocol=protocol,
        flip=flip,
        scales=factors,
        **sizes,
        boundary=boundary,
        calibration=calibration,
        temperature_data=temperature_data,
        temperature_root=temperature_root,
        tasks=tasks,
        labels=labels,
        encoding=encoding,
        device=device,
        progress=Progress("scoring"),
    )
    if json_file:
        write_json(json_file, scores)
    for line in _lines(scores):
        print(line)


def _lines(scores: dict[str, Any]) -> list[str]:
    out = [*_headline(scores)]
    out += [f"  {name:16} {percent(value)}" for name, value in scores["iou"].items()]
    for view, own in list(scores["views"].items())[1:]:
        out.append(f"view {view}: mIoU {percent(own['miou'])}  accuracy {percent(own['accuracy'])}")
    for member in scores.get("members", []):
        out.append(f"mIoU {percent(member['miou'])}  alone: {_name(member['model'])}")
    if "tasks" in scores:
        out += _tasks(scores)
    if "boundary" in scores:
        own = scores["boundary"]
        out.append(f"boundary IoU {percent(own['mean'])}  smaller of it and IoU {percent(own['mean_smaller'])}")
    if "calibration" in scores:
        out += _calibration(scores["calibration"])
    if scores.get("extra_files", {}).get("number"):
        extra = scores["extra_files"]
        out.append(f"{extra['number']} files belong to no image, for example {extra['first'][0]}")
    return out


def _headline(scores: dict[str, Any]) -> list[str]:
    if "model" in scores:
        first = _name(scores["model"])
    elif "members" in scores:
        first = f"mean probability of {len(scores['members'])} models"
    else:
        first = f"predictions in {scores['predictions']} ({scores['encoding']})"
    if (scores["protocol"], scores["view"]) != ("native", "all"):
        first += f", protocol {scores['protocol']}, view {scores['view']}"
    without = f", {scores['without_label']} more without a label" if scores["without_label"] else ""
    return [
        first,
        f"mIoU {percent(scores['miou'])}  accuracy {percent(scores['accuracy'])}  "
        f"({scores['num_images']} images{without})",
    ]


def _tasks(scores: dict[str, Any]) -> list[str]:
    """mIoU of every task and union, a line a model."""
    rows = [scores, *scores.get("members", [])]
    titles = [title(name) for name in scores["tasks"]]
    out = ["mIoU  " + "  ".join(titles)]
    for row in rows:
        cells = [percent(own["miou"]).rjust(len(name)) for own, name in zip(row["tasks"].values(), titles, strict=True)]
        out.append("      " + "  ".join(cells) + (f"  alone: {_name(row['model'])}" if row is not scores else ""))
    return out


def _name(model: dict[str, Any]) -> str:
    run = f"{model['run']}, " if model.get("run") else ""
    return f"{run}stage {model['stage']}, iteration {model['iteration']}, checkpoint {model['chosen']}"


def _calibration(found: dict[str, Any]) -> list[str]:
    out = [f"calibration error {percent(found['ece'])}  NLL {found['nll']:.3f}"]
    if "after" in found:
        after, fit = found["after"], found["fit"]
        out.append(
            f"  at temperature {fit['temperature']:.3f} (of {fit['pixels']} pixels): "
            f"{percent(after['ece'])}  NLL {after['nll']:.3f}"
        )
    return out
