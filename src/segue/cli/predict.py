"""``segue predict``: write predictions of images and videos, or check a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli.options import Device, numbers, percent, pixels
from segue.errors import UserError
from segue.progress import Progress

MODEL = "Run, stage or checkpoint folder, or model.safetensors; several answer by their mean probability."
INPUT = "Image, folder (with all below it), glob in quotes, or video."
FORMAT = "trainid, labelid, cityscapes (label ids under official names), color (default) or overlay."
TRUTH = "Labels, matched by name, or the label of one image: drawn beside predictions, scored, scores.json written."
ENCODING = "Of labels named as their images: trainid or labelid; default what fits."
BESIDE = "Models next to each other, a single one beside its input, instead of their mean."
FILM = "mp4 or gif: one film instead of PNGs. A video becomes mp4 anyway."
CHECK = "Check the predictions in this folder for --input or --data instead: names, sizes, kind, ids."
LABELS = "With --check: label space of the ids; default the data's own, of --input cityscapes19."

More = Annotated[list[Path] | None, typer.Argument(metavar="[MODEL]...", help="More models, as after --model.")]


def predict(
    more: More = None,
    model: Annotated[list[Path] | None, typer.Option(help=MODEL)] = None,
    input: Annotated[str, typer.Option(help=INPUT)] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the predictions.")] = None,
    format: Annotated[str, typer.Option(help=FORMAT)] = "",
    classes: Annotated[str, typer.Option(help="Names with commas, or a view: the model must choose among them.")] = "",
    ground_truth: Annotated[Path | None, typer.Option(help=TRUTH)] = None,
    encoding: Annotated[str, typer.Option(help=ENCODING)] = "",
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help=BESIDE)] = False,
    film: Annotated[str, typer.Option(help=FILM)] = "",
    fps: Annotated[float, typer.Option(help="Frames a second of the film; default the video's own, or 2.")] = 0.0,
    alpha: Annotated[float, typer.Option(help="Weight of the colours in an overlay, 0 to 1.")] = 0.5,
    legend: Annotated[bool, typer.Option("--legend", help="Class names below each picture.")] = False,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")] = False,
    scales: Annotated[str, typer.Option(help="Average over sizes of the input, e.g. 0.5,1,1.5.")] = "",
    slide: Annotated[str, typer.Option(help="Sliding windows of HxW.")] = "",
    stride: Annotated[str, typer.Option(help="Step of the windows, HxW; default half of them.")] = "",
    size: Annotated[str, typer.Option(help="Resize the network's input to HxW; the output keeps the image's.")] = "",
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave files that are there.")] = False,
    check: Annotated[Path | None, typer.Option(help=CHECK)] = None,
    data: Annotated[str, typer.Option(help="With --check: data set or folder, with split: NAME[:SPLIT].")] = "",
    root: Annotated[Path | None, typer.Option(help="With --check: where the data set lies.")] = None,
    labels: Annotated[str, typer.Option(help=LABELS)] = "",
    device: Device = "auto",
) -> None:
    """Write the predictions of images or a video; or check a folder of them."""
    models = [*(model or []), *(more or [])]
    if check is not None:
        if models or out is not None:
            raise UserError("--check reads what is there: no --model and no --out goes with it")
        _check(check, input, data, root, labels, format)
        return
    if data or root is not None or labels:
        raise UserError("--data, --root and --labels go with --check; predictions are made of --input")
    folder = _required(models, input, out)
    asked: dict[str, Any] = {"size": pixels(size), "slide": pixels(slide), "stride": pixels(stride)}
    asked |= {"flip": flip, "scales": numbers(scales), "checkpoint": checkpoint, "device": device}
    from segue import api
    from segue.predict import Incomplete, Look

    try:
        outcome = api.predict_files(
            models,
            input,
            folder,
            format=format or "color",
            classes=[name.strip() for name in classes.split(",") if name.strip()],
            ground_truth=ground_truth,
            encoding=encoding,
            look=Look(side_by_side, alpha, legend, film, fps),
            skip_existing=skip_existing,
            progress=Progress("predicting"),
            **asked,
        )
    except Incomplete as stop:
        _print(stop.outcome, folder)
        raise
    _print(outcome, folder)


def _required(models: list[Path], input: str, out: Path | None) -> Path:
    missing = [name for name, given in (("model", models), ("input", input), ("out", out)) if not given]
    if missing or out is None:
        raise UserError(f"say --{' and --'.join(missing)}")
    return out


def _print(outcome: Any, out: Path) -> None:
    for scores in outcome.scores:
        print(f"{scores['title']}: mIoU {percent(scores['miou'])}  ({scores['num_images']} images)")
        for image in scores["per_image"]:
            print(f"  {image['id']:40} {percent(image['miou'])}")
    skipped = f", {outcome.skipped} were there already" if outcome.skipped else ""
    what = f"film {outcome.written[0]}" if _films(outcome) else f"{len(outcome.written)} predictions in {out}"
    print(what + skipped)


def _films(outcome: Any) -> bool:
    return len(outcome.written) == 1 and outcome.written[0].suffix != ".png"


def _check(folder: Path, input: str, data: str, root: Path | None, labels: str, format: str) -> None:
    if format not in ("", "trainid", "labelid", "cityscapes"):
        raise UserError(f"a server takes ids: check --format trainid, labelid or cityscapes, not {format!r}")
    from segue import api

    number = api.check_predictions(
        folder,
        input or None,
        data=data,
        root=root,
        labels=labels,
        encoding="trainid" if format == "trainid" else "labelid",
        progress=Progress("checking"),
    )
    print(f"{folder} holds the {number} predictions that are expected, their sizes and ids are right")
