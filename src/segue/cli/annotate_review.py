"""``segue annotate review``: a page to look at every region of a round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.cli.annotate_rounds import GroupName, RoundNumber, RunFolder, find_group
from segue.files import write_text
from segue.progress import Progress

MOST = "Regions on the page, the first that were bought; default 2000."


def review(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    group: GroupName = "",
    number: RoundNumber = None,
    most: Annotated[int | None, typer.Option(help=MOST, min=1)] = None,
) -> None:
    """Write one self-contained page: every chosen region on its image, to sort, filter and mark as wrong."""
    from segue.review.gather import gather
    from segue.review.page import render

    found = find_group(run, group, number)
    album = gather(found.round, found.dataset(), most=most, progress=Progress("review"))
    html = render(found.round, album, run.resolve().name)
    write_text(out, html)
    size, shown = len(html.encode()), len(album.regions)
    left_out = f" ({album.left_out} more are left out: --most)" if album.left_out else ""
    print(
        f"{out}: {shown} regions{left_out} of {len(album.images)} images, {size / 1e6:.1f} MB, "
        f"{size / max(shown, 1) / 1000:.0f} kB a region"
    )
