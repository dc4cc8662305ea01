"""``segue annotate import``: what people have labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.cli.annotate_rounds import GroupName, RoundNumber, RunFolder, find_group
from segue.errors import UserError
from segue.progress import Progress

FILES = "Exports of the tool: files, archives or folders; or marks.json of the review page."
CONFLICT = "Where two answers differ: error, keep the first, replace it, or void (no class)."
SKIP = "Leave faulty labels out and take the others."
UNTOUCHED = "Labels of CVAT and PNG that came back exactly as proposed are answers, too."
CLOSE = "Training goes on without the regions that are still missing."


def import_labels(
    run: RunFolder,
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE_OR_FOLDER...", help=FILES)] = None,
    group: GroupName = "",
    round: RoundNumber = None,
    format: Annotated[str, typer.Option(help="auto, label-studio, cvat or png.")] = "auto",
    on_conflict: Annotated[str, typer.Option(help=CONFLICT)] = "error",
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help=SKIP)] = False,
    accept_untouched: Annotated[bool, typer.Option("--accept-untouched", help=UNTOUCHED)] = False,
    close: Annotated[bool, typer.Option("--close", help=CLOSE)] = False,
) -> None:
    """Take over labels of chosen regions, checked; or withdraw those that were marked as wrong."""
    from segue.labelling import import_answers, lines

    found = find_group(run, group, round)
    if found.round.info.annotator != "people":
        raise UserError(
            f"the data set's labels answer the rounds of {found.name!r}; to ask people, set annotate.annotator: people "
            f"in the recipe"
        )
    if not files and not close:
        raise UserError("give what the labelling tool has exported, or --close")
    report = import_answers(
        found.rounds,
        found.round,
        files or [],
        tool=format,
        policy=on_conflict,
        skip_faulty=skip_faulty,
        accept_untouched=accept_untouched,
        progress=Progress("importing"),
    )
    if close:
        found.round.close()
    for line in lines(report, str(run)):
        print(line)
