"""``segue pseudo-label``: models label the images of a data set for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli.options import Device, percent, pixels
from segue.config import DatasetConfig
from segue.errors import UserError
from segue.progress import Progress
from segue.pseudo_labelling import PseudoLabelConfig
from segue.settings import check

MODEL = "Run, stage or checkpoint folder, or model.safetensors; several answer by their mean probability."
QUANTILE = "Share of each class's pixels, the least sure ones, that stays without a label."
CAP = "No class asks for more confidence than this."
SIZE = "Resize images to HxW, as data.NAME.size of the recipe that trains on the labels; they get this size."
BATCH = "Images in one forward pass."


def pseudo_label(
    model: Annotated[list[str], typer.Option(help=MODEL)],
    data: Annotated[str, typer.Option(help="Data set or folder, with split: NAME[:SPLIT], default train.")],
    out: Annotated[Path, typer.Option(help="Folder for the labels; one that was interrupted goes on.")],
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    quantile: Annotated[float, typer.Option(help=QUANTILE)] = PseudoLabelConfig.model_fields["quantile"].default,
    cap: Annotated[float, typer.Option(help=CAP)] = PseudoLabelConfig.model_fields["cap"].default,
    size: Annotated[str, typer.Option(help=SIZE)] = "",
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help=BATCH, min=1)] = 1,
) -> None:
    """Label images with models, where they are sure enough, to train on."""
    try:
        config = check(PseudoLabelConfig, {"models": tuple(model), "quantile": quantile, "cap": cap}, "")
    except ValueError as error:
        raise UserError(str(error)) from error
    shape = pixels(size)
    from segue import api
    from segue.data.dataset import open_dataset
    from segue.data.reference import parse
    from segue.pseudo_labels import generate

    predictors = [api.load(path, device, checkpoint) for path in model]
    space = predictors[0].labels
    for path, other in zip(model, predictors, strict=True):
        if other.labels.classes != space.classes:
            raise UserError(f"{model[0]} and {path} know different classes: give models of the same ones")
    name, split = parse(data)
    index = generate(
        [p.model for p in predictors],
        open_dataset(name, DatasetConfig(root=root, size=shape), split or "train", space),
        space,
        out,
        config,
        device=predictors[0].model.mean.device,
        batch_size=batch_size,
        progress=Progress("labelling"),
    )
    for line in _lines(index):
        print(line)
    print(f"{len(index['images'])} labels in {out}; train on them with data.NAME.labels={out}")


def _lines(index: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, index["pixels"]))
    yield f"{'class':{width}} {'threshold':>10} {'pixels':>14} {'kept %':>7}"
    for name, number in index["pixels"].items():
        kept = percent(index["pixels_kept"][name] / number if number else None)
        threshold = f"{index['thresholds'][name]:.4f}" if number else ""
        yield f"{name:{width}} {threshold:>10} {number:>14} {kept:>7}"
    total = percent(index["share_kept"])
    yield f"{'all':{width}} {'':>10} {sum(index['pixels'].values()):>14} {total:>7}"
