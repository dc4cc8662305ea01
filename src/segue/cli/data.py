"""``segue data``: look at data sets, and generate scenes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.options import pixels
from segue.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Look at data: show, check; and generate scenes.")


@app.command("scenes")
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    num: Annotated[int, typer.Option(help="Images.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.", min=0)] = 0,
    domain: Annotated[str, typer.Option(help="game, city, or random-SEED.")] = "city",
    drift: Annotated[
        float | None, typer.Option(help="0 = game, 1 = --domain, between them a mixture.", min=0, max=1)
    ] = None,
    layout: Annotated[str, typer.Option(help="cityscapes or gta5.")] = "cityscapes",
    split: Annotated[str, typer.Option(help="Split to write.")] = "train",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "128x256",
) -> None:
    """Generate street scenes with exact labels in a real data set's layout."""
    from segue.data import scenes

    shape = pixels(size) or (128, 256)
    try:
        chosen = scenes.domain(domain)
        if drift is not None:
            chosen = scenes.drift(scenes.PRESETS["game"], chosen, drift)
        scenes.write(out, num=num, seed=seed, domain=chosen, size=shape, layout=layout, split=split)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"{num} scenes in {out}")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="Data set name or folder.")],
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
) -> None:
    """Find unreadable, truncated, mismatched, out-of-range and duplicate files; exit code 2 if there are any."""
    from segue.data import audit

    problems = audit.check(name, root=root)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems", file=sys.stderr)
    if problems:
        sys.exit(2)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Data set name or folder, with split: NAME[:SPLIT].")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("data.html"),
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    labels: Annotated[str, typer.Option(help="Label space to map to; default the data's own.")] = "",
) -> None:
    """Write one page of images, labels and class shares."""
    from segue.data import audit

    print(audit.show(name, out, root=root, labels=labels or None))
