"""``segue annotate analyse``: what the rounds of a group chose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.cli.annotate_rounds import Group, GroupName, RunFolder, find_group
from segue.errors import UserError
from segue.files import write_json, write_text
from segue.progress import Progress

TRUTH = "Count the pool's own labels too: shares of them, class weights, whole images in the forecast."


def analyse(
    run: RunFolder,
    group: GroupName = "",
    truth: Annotated[bool, typer.Option("--truth", help=TRUTH)] = False,
    against: Annotated[Path | None, typer.Option(help="Another run, or the same, to hold the choice against.")] = None,
    against_group: Annotated[str, typer.Option(help="Its group, where it has several.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write one self-contained page here too.")] = None,
) -> None:
    """Pixels, clicks, classes, sizes and overlap of the regions that were bought, and what another round would gain."""
    from segue.acquire import analysis
    from segue.review import selection

    found = find_group(run, group)
    compared = None
    if against is not None:
        other = find_group(against, against_group)
        name = f"{against.resolve().name}, {other.name}"
        compared = selection.Other(name, analysis.against(found.rounds, other.rounds))
    result = analysis.analyse(
        found.rounds,
        truth=_truth(found) if truth else None,
        scores=analysis.scores_by_round(run, found.name, [r.info.round for r in found.rounds]),
        progress=Progress("analysis"),
    )
    selection.text(result, compared)
    if json_file:
        write_json(json_file, result.to_dict() | ({"against": compared.to_dict()} if compared else {}))
        print(json_file)
    if out:
        write_text(out, selection.render(result, compared, run.resolve().name))
        print(out)


def _truth(group: Group) -> Any:
    from segue.data.statistics import class_pixels

    dataset = group.dataset()
    if not dataset.labelled:
        raise UserError(f"data set {dataset.name!r} has no labels of its own: leave out --truth")
    return class_pixels(dataset, group.source()[1])
