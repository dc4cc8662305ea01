"""``segue compare``: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.files import write_text


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, stage folders, or patterns.")],
    data: Annotated[str, typer.Option(help="Validation set NAME:SPLIT; default the first run's own target.")] = "",
    baseline: Annotated[str, typer.Option(help="Run or stage to hold the others against; default the first.")] = "",
    csv: Annotated[Path | None, typer.Option(help="Write the rows here too, as CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page here too.")] = None,
) -> None:
    """Scores, spread over seeds, paired intervals and times of several runs."""
    from segue.compare import page, show, table

    found = table.compare(runs, data or None, baseline or None)
    show.text(found)
    if csv:
        write_text(csv, show.to_csv(found))
        print(csv)
    if html:
        write_text(html, page.render(found))
        print(html)
