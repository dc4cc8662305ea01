"""``segue anchor``: what a model keeps of its source images in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import Device, pixels
from segue.config import DatasetConfig

MODEL = "Run, stage or checkpoint folder, or model.safetensors; the anchor is written beside its weights."
DATA = "Labelled data set or folder that the model was trained on, with split: NAME[:SPLIT], default train."
LIMIT = "Images to use, evenly spaced; default all."
RESIZE = "Resize images to HxW, as data.NAME.size of the recipe that trained the model."
RANK = "Directions of each class's covariance to keep; default all up to 256 channels, 64 beyond."
PROTOTYPES = "Most prototypes of each class."
BATCH = "Images in one forward pass."


def anchor(
    model: Annotated[Path, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Option(help=DATA)],
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    limit: Annotated[int | None, typer.Option(help=LIMIT, min=4)] = None,
    resize: Annotated[str, typer.Option(help=RESIZE)] = "",
    rank: Annotated[int | None, typer.Option(help=RANK, min=1)] = None,
    prototypes: Annotated[int, typer.Option(help=PROTOTYPES, min=1)] = 8,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help=BATCH, min=1)] = 1,
) -> None:
    """Store class statistics, prototypes and style of the source images in a model's folder."""
    shape = pixels(resize)
    from segue import checkpoint
    from segue.data.dataset import open_dataset
    from segue.data.reference import parse
    from segue.hardware import launch
    from segue.models.anchor import FILE, make_anchor
    from segue.progress import Progress

    folder = checkpoint.find_model(model)
    network, labels, _ = checkpoint.load_model(folder)
    name, split = parse(data)
    found = make_anchor(
        network,
        open_dataset(name, DatasetConfig(root=root, size=shape), split or "train", labels),
        labels,
        device=launch(device).device,
        batch_size=batch_size,
        limit=limit,
        rank=rank,
        prototypes=prototypes,
        progress=Progress("collecting"),
    )
    checkpoint.add_anchor(folder, found)
    for label, count in zip(labels.classes, found.count.tolist(), strict=True):
        print(f"{label:16} {count:>12}")
    described = found.describe()
    print(
        f"anchor of {found.images} images, {described['embedding']} channels, {described['bytes'] / 1e6:.2f} MB: "
        f"{folder / FILE}"
    )
