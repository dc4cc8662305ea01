"""``segue annotate export``: a labelling job for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.cli.annotate_rounds import GroupName, RoundNumber, RunFolder, find_group
from segue.progress import Progress

URL = "Where Label Studio finds the images; default its local files below the folder that --out lies in."


def export_labels(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="New folder for the job.")],
    format: Annotated[str, typer.Option(help="label-studio, cvat or png.")],
    group: GroupName = "",
    round: RoundNumber = None,
    everything: Annotated[bool, typer.Option("--all", help="Also regions that have an answer.")] = False,
    image_url: Annotated[str, typer.Option(help=URL)] = "",
) -> None:
    """Write a labelling job of the regions that have no answer yet, with the model's guess to begin with."""
    from segue.labelling import export

    found = find_group(run, group, round)
    job = export(
        found.round,
        found.dataset(),
        out,
        format,
        everything=everything,
        image_url=image_url,
        progress=Progress("exporting"),
    )
    regions = sum(len(image.parts) for image in job.images)
    print(f"{regions} regions of {len(job.images)} images of round {job.round} of {job.group} in {out}")
    print(f"when they are labelled: segue annotate import {run} EXPORTED_FILE --group {job.group} --round {job.round}")
