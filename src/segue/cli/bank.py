"""``segue bank``: a bank of class instances, which the part ``instance_similarity`` starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import Device, pixels
from segue.config import DatasetConfig
from segue.labels import U8

MODEL = "Run, stage or checkpoint folder, or model.safetensors: the network that training with the bank starts from."
IMAGES = "Images to take instances from, evenly spaced."
RESIZE = "Resize images to HxW, as data.NAME.size of the recipe that trains with the bank."


def bank(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Argument(help="Labelled data set or folder, with split: NAME[:SPLIT], default train.")],
    out: Annotated[Path, typer.Option(help="Folder for the bank.")],
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    size: Annotated[int, typer.Option(help="Instances in the bank.", min=1)] = 300,
    images: Annotated[int, typer.Option(help=IMAGES, min=1)] = 500,
    resize: Annotated[str, typer.Option(help=RESIZE)] = "",
    checkpoint: Annotated[str, typer.Option(help="last, best or an iteration.")] = "last",
    device: Device = "auto",
) -> None:
    """Collect class instances of a labelled data set in a model's embeddings."""
    shape = pixels(resize)
    from segue import api
    from segue.data.copies import spread
    from segue.data.dataset import open_dataset
    from segue.data.reference import parse
    from segue.methods.parts.banks import absent, make_bank, require_free, write_bank
    from segue.progress import Progress

    require_free(out)
    predictor = api.load(model, device, checkpoint)
    name, split = parse(data)
    dataset = open_dataset(name, DatasetConfig(root=root, size=shape), split or "train", predictor.labels)
    dataset.require_labels()
    chosen = spread(range(len(dataset)), images)
    progress = Progress("collecting")

    def samples() -> Iterator[tuple[U8, U8]]:
        for number, index in enumerate(chosen, 1):
            yield dataset.read_scored(index)
            progress(number, len(chosen))

    found = make_bank(predictor.model, samples(), len(predictor.labels), size)
    write_bank(out, found)
    counts = found.labels.bincount(minlength=len(predictor.labels)).tolist()
    for label, count in zip(predictor.labels.classes, counts, strict=True):
        print(f"{label:16} {count:5}")
    without = absent(found, predictor.labels)
    lacking = f", none of {', '.join(without)}" if without else ""
    print(f"{size} instances from {len(chosen)} images in {out}{lacking}")
    print(f"train with them: method.parts.instance_similarity.start={out}")
