"""``segue plan``: what a recipe will do and cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue import recipes
from segue.cli.options import Device, Overrides
from segue.files import write_json
from segue.progress import clock

if TYPE_CHECKING:
    from segue.jobs.cost import Cost
    from segue.jobs.plan import DataPlan, Plan, StagePlan

CLASSES_SHOWN = 6


def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help="How many seeds will be trained.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Where the run would be written.")] = Path("runs"),
    trial: Annotated[bool, typer.Option(help="Run a few iterations of each stage to measure its cost.")] = True,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the plan here too.")] = None,
) -> None:
    """Build everything a recipe needs, train nothing, and say what it will cost; exit code 2 if it cannot work."""
    given = recipes.load(recipe, overrides or [])
    from segue.jobs import plan as planning

    found = planning.plan(given, device=device, seeds=seeds, out=out, trial=trial)
    if json_file:
        write_json(json_file, found.to_dict())
    for data in found.data:
        _print_data(data)
    for stage in found.stages:
        _print_stage(stage, trial)
    if trial:
        _print_total(found)
    for line in found.depends_on_devices:
        print(f"depends on the number of devices: {line}")
    faults = planning.faults(found)
    for fault in faults:
        print(f"segue: {fault}", file=sys.stderr)
    if faults:
        sys.exit(2)


def _print_data(data: DataPlan) -> None:
    missing = f", {data.without_label} without a label" if data.without_label else ""
    print(f"data {data.name}: {data.images} images{missing}")
    for line in data.coverage:
        print(f"  {line}")
    if data.shares:
        rare = sorted(data.shares.items(), key=lambda item: item[1])[:CLASSES_SHOWN]
        text = ", ".join(f"{name} {100 * share:.2g} %" for name, share in rare)
        print(f"  rarest classes of {data.counted} labels: {text}")


def _print_stage(stage: StagePlan, measured: bool) -> None:
    print(
        f"stage {stage.name}: {stage.method}, {stage.iterations} iterations ({stage.epochs:.1f} epochs), "
        f"{stage.parameters:,} parameters, {stage.trainable:,} trained"
    )
    if not measured:
        return
    print(
        f"  {stage.iteration.wall_s:.2f} s an iteration; training {_time(stage.training)}, scoring "
        f"{_time(stage.scoring)}, checkpoints {stage.disk_gb:.2f} GB"
    )


def _print_total(found: Plan) -> None:
    on_device = "" if found.device_memory_gb is None else f", {found.device_memory_gb:.1f} GB on {found.device}"
    seeds = f" for {found.seeds} seeds" if found.seeds > 1 else ""
    print(
        f"in all{seeds}: {_time(found.total)}, {found.memory_gb:.1f} GB of memory{on_device}, {found.disk_gb:.2f} GB "
        f"of disk ({found.free_gb:.0f} free)"
    )


def _time(cost: Cost) -> str:
    return f"{clock(cost.wall_s)} ({clock(cost.cpu_s)} CPU)"
