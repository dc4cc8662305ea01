"""``segue convert``: checkpoints of other projects to our files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue import recipes
from segue.errors import UserError
from segue.files import write_json


def convert(
    old: Annotated[Path, typer.Argument(help="Checkpoint of another project.")],
    new: Annotated[Path, typer.Argument(help="Folder of the new model; NAME.safetensors of an encoder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[model.KEY=VALUE]...", help="Settings that no file tells, e.g. model.output_stride=8."),
    ] = None,
    layout: Annotated[str, typer.Option(help="Key layout; default the one that fits. See segue list layouts.")] = "",
    labels: Annotated[str, typer.Option(help="Label space of the model. See segue list spaces.")] = "",
    report: Annotated[Path | None, typer.Option(help="Write what became of every key here, as JSON.")] = None,
) -> None:
    """Write a published checkpoint as a model of ours, with a table of every key; all of it or nothing."""
    given, _ = recipes.collect({}, settings or [], {})
    model = given.pop("model", {})
    if given or not isinstance(model, dict):
        raise UserError(f"cannot set {', '.join(given) or 'model'}: only model.KEY=VALUE is known here")
    if new.exists():
        raise UserError(f"{new} exists; choose another name")
    from segue import convert as conversion

    plan = conversion.plan(old, layout or None, model)
    for row in plan.rows:
        print(row)
    print(f"{plan.foreign.part} of layout {plan.foreign.layout}: {_counted(plan.counts())}")
    for note in plan.foreign.notes:
        print(f"note: {note}")
    if report is not None:
        write_json(report, plan.to_dict())
    print(conversion.write(plan, new, labels or None))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in counts.items())
