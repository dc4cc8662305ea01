"""``segue tune``: search settings of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue import recipes
from segue.cli.options import Device, Overrides


def tune(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(help="Runs in all, those of earlier sittings counted.", min=1)] = 20,
    space: Annotated[
        list[str] | None, typer.Option(help="KEY=LOW:HIGH[:log], KEY=A|B, or a YAML file of such lines; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search; the recipe keeps its own.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; default runs/NAME/tune.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --out.")] = False,
    device: Device = "auto",
) -> None:
    """Try settings, keep the study in a folder, write the best as a recipe."""
    data, _ = recipes.collect(recipe, overrides or [])
    given = recipes.validate(data)
    from segue.jobs import tune as search

    folder = out or Path("runs") / given.name / "tune"
    best = search.tune(data, search.read_space(space or []), trials, folder, seed=seed, resume=resume, device=device)
    print(f"best of {trials}: trial {best.trial}, {100 * best.miou:.1f} mIoU on {best.data}; chosen by: {best.chosen}")
    for key, value in best.settings.items():
        print(f"  {key}={value}")
    for text in best.crashed:
        print(f"  {text}")
    print(best.recipe)
