"""The ``segue`` command. No torch is imported here: each command imports what it needs when it runs."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segue import recipes
from segue.cli import (
    anchor,
    annotate,
    bank,
    bench,
    compare,
    config,
    convert,
    data,
    doctor,
    evaluate,
    export,
    gap,
    gap_watch,
    plan,
    predict,
    pseudo_label,
    tune,
    vdna,
)
from segue.cli.options import Device, Overrides
from segue.errors import DISK_FULL, Interrupted, UserError
from segue.presets import presets

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(annotate.app, name="annotate")
app.add_typer(bench.app, name="bench")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
gap.app.command()(gap_watch.watch)
app.add_typer(gap.app, name="gap")
app.command()(anchor.anchor)
app.command()(bank.bank)
app.command()(convert.convert)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(predict.predict)
app.command("pseudo-label")(pseudo_label.pseudo_label)
app.command()(plan.plan)
app.command()(compare.compare)
app.command()(doctor.doctor)
app.command()(tune.tune)

Debug = "--debug"


def main() -> None:
    """Run the command; exit 0 when all is well, 2 for a fault of the user's, 75 when stopped with all saved."""
    debug = Debug in sys.argv
    sys.argv = [a for a in sys.argv if a != Debug]
    try:
        app()
    except Interrupted as stop:
        print(f"segue: {stop}; continue with --resume", file=sys.stderr)
        sys.exit(75)
    except (UserError, OSError, KeyboardInterrupt) as error:
        if debug or (isinstance(error, OSError) and error.errno is None):
            raise
        _fail(error)


def _fail(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        print("segue: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    text = str(error)
    if isinstance(error, OSError):
        hint = "; the disk is full: free space, then use --resume" if error.errno in DISK_FULL else ""
        text = f"{error.filename or 'file system'}: {error.strerror}{hint}"
    print(f"segue: {text}\n(--debug shows where)", file=sys.stderr)
    sys.exit(2)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME/TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest run of this name, or --out.")] = False,
    device: Device = "auto",
    gpus: Annotated[int | None, typer.Option(help="Number of processes, one a device.", min=1)] = None,
    seeds: Annotated[str, typer.Option(help="Run once for each, e.g. 0,1,2.")] = "",
) -> None:
    """Run a recipe: train its stages, score them, write the report. A JSON file of the vDNA project is one, too."""
    numbers = _seeds(seeds)
    if recipe.endswith(".json"):
        published, own = vdna.opened(Path(recipe), overrides or [])
        if own is None:
            vdna.label(published, out, device)
            return
        given = own
    else:
        given = recipes.load(recipe, overrides or [])
    from segue.jobs.run import run as run_recipe

    result = run_recipe(given, out, resume=resume, device=device, gpus=gpus, seeds=numbers)
    if result.rank != 0:
        return
    _print_summary(result.folder, result.summary)
    for line in vdna.results(published, result.folder) if recipe.endswith(".json") else ():
        print(line)


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UserError(f"cannot read --seeds {text!r}: write different numbers with commas, for example 0,1,2")
    return [int(word) for word in words]


def _print_summary(folder: Path, summary: dict[str, Any]) -> None:
    if "miou" in summary:
        several = (
            f", median seed {summary['median_seed']} of {len(summary['seeds'])}" if len(summary["seeds"]) > 1 else ""
        )
        print(f"mIoU on {summary['data']} (last checkpoint{several}):")
        for role, value in summary["miou"].items():
            print(f"  {role:18} {value:5.1f}")
        closed = summary.get("gap_closed", math.nan)
        if not math.isnan(closed):  # else there was no gap
            print(f"  {'gap closed':18} {100 * closed:5.0f} %")
    for line in _steps(folder):
        print(line)
    print(f"{summary['cpu_s']:.0f} CPU-seconds, {summary['peak_memory_gb']:.1f} GB; report: {folder / 'report.html'}")


def _steps(folder: Path) -> list[str]:
    from segue.report.extension import ledger_of
    from segue.report.following import stream_ledger_of
    from segue.report.read import read_run
    from segue.scoring import ledger, stream_ledger

    run = read_run(folder)
    out = []
    for seed in (run, *run.seeds.values()):
        steps, streams = ledger_of(seed), stream_ledger_of(seed)
        out += ledger.lines(steps) if steps.stages else []
        out += stream_ledger.lines(streams) if streams.streams else []
    return out


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run and report.")] = Path("demo"),
    seeds: Annotated[str, typer.Option(help="Train once for each.")] = "0,1,2",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a demo that was stopped.")] = False,
    device: Device = "cpu",
) -> None:
    """Generate two domains of street scenes, train on one, adapt to the other, write DIR/report.html."""
    from segue.jobs.demo import run_demo

    result = run_demo(out, _seeds(seeds), resume=resume, device=device)
    _print_summary(result.folder, result.summary)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write report.html of a run again."""
    from segue import report as pages

    print(pages.write(folder))


@app.command("list")
def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, parts, presets, models, acquisitions, tasks, layouts, datasets, recipes, spaces, domains."
        ),
    ],
) -> None:
    """Names that recipes can use."""
    for line in _names(kind):
        print(line)


def _names(kind: str) -> list[str]:
    if kind == "recipes":
        return [f"{name:32} {_first_comment(path)}" for name, path in recipes.shipped().items()]
    if kind == "presets":
        return [f"{name:24} {_first_comment(path)}" for name, path in presets().items()]
    if kind == "spaces":
        from segue.labels import space_names

        return space_names()
    if kind == "tasks":
        from segue.tasks import task_names

        return task_names()
    if kind == "datasets":
        from segue.data.catalog import catalog_names

        return catalog_names()
    if kind == "domains":
        from segue.data.scenes import NAMES

        return list(NAMES)
    if kind == "acquisitions":
        from segue.acquire import ACQUISITIONS

        return [f"{name:24} {_first_line(ACQUISITIONS.get(name).__doc__)}" for name in ACQUISITIONS.names()]
    if kind in ("methods", "parts", "models", "layouts"):
        from segue.foreign.base import LAYOUTS
        from segue.methods.base import METHODS
        from segue.methods.parts.base import PARTS
        from segue.models.base import MODELS

        registry: Any = {"methods": METHODS, "parts": PARTS, "models": MODELS, "layouts": LAYOUTS}[kind]
        return [f"{name:24} {_first_line(registry.get(name).__doc__)}" for name in registry.names()]
    known = "methods, parts, presets, models, acquisitions, tasks, layouts, datasets, recipes, spaces, domains"
    raise UserError(f"cannot list {kind!r} (known: {known})")


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def _first_comment(path: Path) -> str:
    return path.read_text("utf-8").split("\n")[0].removeprefix("#").strip()


os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # a damaged file is told once, by us
