"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from segue.errors import UserError

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe's.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:K or mps.")]


def pixels(text: str) -> tuple[int, int] | None:
    """``HEIGHTxWIDTH`` as two numbers, None when empty; ``UserError`` for anything else."""
    if not text:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.lower(), re.ASCII)
    if match is None:
        raise UserError(f"cannot read size {text!r}: write HEIGHTxWIDTH in pixels, for example 512x1024")
    return int(match[1]), int(match[2])
