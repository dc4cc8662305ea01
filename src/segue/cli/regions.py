"""``segue data regions``: the superpixels of a data set, computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.config import DatasetConfig
from segue.progress import Progress


def regions(
    name: Annotated[str, typer.Argument(help="NAME[:SPLIT], default train: data set, folder or archive.")],
    out: Annotated[Path, typer.Option(help="Folder to write; one that was interrupted goes on.")],
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    number: Annotated[int | None, typer.Option(help="Regions of an image at most; default 40.")] = None,
    compactness: Annotated[
        float | None, typer.Option(help="Weight of position against colour, larger is squarer; default 10.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="Take over the region PNGs in this folder (D2ADA's `superpixel`), ids included.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Label space whose void pixels are counted; default its own.")] = "",
    jobs: Annotated[int | None, typer.Option(help="Images at a time; default one a core.", min=1)] = None,
) -> None:
    """Cut every image into superpixels, for `annotate` to choose from."""
    from segue.data.dataset import open_dataset
    from segue.data.reference import parse
    from segue.data.regions import Published, SuperpixelConfig, make
    from segue.errors import UserError
    from segue.labels import load_space
    from segue.settings import check

    given = {"number": number, "compactness": compactness}
    given = {name: value for name, value in given.items() if value is not None}
    if published and given:
        raise UserError(f"--published takes regions as they are: leave out {', '.join(f'--{name}' for name in given)}")
    try:
        config = check(SuperpixelConfig, given, "")
    except ValueError as error:
        raise UserError(str(error)) from error
    reference, split = parse(name)
    space = load_space(labels) if labels else None
    dataset = open_dataset(reference, DatasetConfig(root=root), split or "train", space)
    how = Published(published, dataset.split, dataset.ids) if published else config
    found = make(dataset, out, how, jobs=jobs, progress=Progress("regions"))
    reached = [int((found.area_px[found.rows(i)] > 0).sum()) for i in found.ids]
    print(f"{len(reached)} images, {min(reached)} to {max(reached)} regions each, in {out}")
