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


def numbers(text: str) -> list[float]:
    """Numbers with commas, [] when empty; ``UserError`` for anything else."""
    try:
        return [float(word) for word in text.split(",")] if text else []
    except ValueError as error:
        raise UserError(f"cannot read --scales {text!r}: write numbers with commas, for example 0.5,1,1.5") from error


def percent(value: float | None) -> str:
    """A share 0..1 as a percentage with one digit; ``absent`` for None and NaN."""
    return "absent" if value is None or value != value else f"{100 * value:5.1f}"
