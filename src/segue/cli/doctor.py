"""``segue doctor``: is this machine ready?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check libraries, GPU, disk, memory, threads, data and weights; exit code 2 when something fails."""
    from segue import doctor as checks

    found = checks.examine()
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for f in found:
            console.print(Text.assemble((f"{f.status:5}", STYLES[f.status]), f"{f.check:14} {f.text}"))
            if f.fix and f.status != "ok":
                console.print(Text(f"{'':20}→ {f.fix}"))
    if any(f.status == "fail" for f in found):
        sys.exit(2)
