"""One command: folder, lock, stages for every seed, summary, report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from segue import report, runs
from segue.config import Recipe
from segue.errors import Interrupted, UserError
from segue.files import write_json, write_text
from segue.hardware import launch
from segue.jobs import stages
from segue.jobs.build import space_of
from segue.jobs.checks import prepare
from segue.recipes import collect, read_yaml, to_yaml, validate

ROLES = ("source_only", "adapted", "target_supervised")


@dataclass(frozen=True)
class RunResult:
    """Where a run is and what it found: ``stages[seed][stage]`` is the content of stage.json."""

    folder: Path
    stages: dict[int, dict[str, Any]]
    summary: dict[str, Any]
    rank: int = 0


def run(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    resume: bool = False,
    device: str = "auto",
    gpus: int | None = None,
    seeds: Sequence[int] = (),
) -> RunResult:
    """Run a recipe into ``folder``, once for every seed; finished stages are kept when resuming.

    Without a folder it is ``runs/<name>/<time>``, or the newest of that name when resuming.

    ``UserError`` when the folder holds another run, is in use, or anything in the recipe or the data is wrong.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    hardware = launch(device, gpus)
    given = folder
    if folder is None:
        folder = hardware.agree(_default(recipe.name, resume) if hardware.rank == 0 else Path())
    wanted = list(seeds) or [recipe.seed]
    folders = {seed: folder if len(wanted) == 1 else folder / f"seed_{seed}" for seed in wanted}
    recipes = {seed: recipe.model_copy(update={"seed": seed}) for seed in wanted}
    with _unused_is_removed(folder) if given is None and hardware.rank == 0 else nullcontext():
        jobs = {seed: prepare(recipes[seed], folders[seed], hardware) for seed in wanted}
    if hardware.rank == 0:
        _open(folder, recipe, wanted, resume)
    with _kept_whole(folder) if hardware.rank == 0 else nullcontext():
        if hardware.rank == 0:
            for seed in wanted:
                _manifest(folders[seed], recipes[seed], [seed])
            _manifest(folder, recipe, wanted)
        hardware.barrier()
        earlier = sum(runs.read(p).get("cpu_s", 0.0) for p in folder.glob("**/stage.json"))
        found = {seed: stages.run(jobs[seed], resume) for seed in wanted}
        summary = summarise(recipe, found) | {
            "cpu_s": earlier + runs.cpu_seconds(),
            "peak_memory_gb": runs.peak_memory_gb(),
        }
        if hardware.rank == 0:
            _finish(folder, folders, summary)
    return RunResult(folder, found, summary, hardware.rank)


def _default(name: str, resume: bool) -> Path:
    root = Path("runs")
    return runs.latest(root, name) if resume else runs.create(root, name)


@contextmanager
def _unused_is_removed(folder: Path) -> Iterator[None]:
    """A run that is refused before it begins leaves no empty folder behind."""
    try:
        yield
    except UserError:
        for empty in (folder, folder.parent):
            with suppress(OSError):  # it holds something, or is gone
                empty.rmdir()
        raise


@contextmanager
def _kept_whole(folder: Path) -> Iterator[None]:
    """Nobody else writes here meanwhile, and run.json says when the run failed, and why."""
    with runs.locked(folder):
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            with suppress(OSError, UserError):  # the disk may be what failed
                runs.update(folder / "run.json", status="failed", error=first)
            raise


def _open(folder: Path, recipe: Recipe, seeds: list[int], resume: bool) -> None:
    """Make the folder, or check that it holds the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    if not config.exists():
        return
    if not resume:
        raise UserError(f"{folder} already holds a run; use --resume to continue it, or another --out")
    then = to_yaml(validate(collect(read_yaml(config), environment={})[0])).splitlines()
    changed = sorted(set(then) ^ set(to_yaml(recipe).splitlines()))
    if changed:
        lines = "; ".join(line.strip() for line in changed[:6])
        raise UserError(
            f"{folder} was started with another recipe (differs in: {lines}); resume it with that, or start anew"
        )
    found = runs.read(folder / "run.json").get("seeds", seeds)  # absent when the run was killed before it was written
    if found != seeds:
        raise UserError(f"{folder} was started with seeds {found}, not {seeds}; resume it with those, or start anew")


def _manifest(folder: Path, recipe: Recipe, seeds: list[int]) -> None:
    write_text(folder / "config.yaml", to_yaml(recipe))
    created = runs.read(folder / "run.json").get("created", time.strftime("%Y-%m-%d %H:%M:%S"))
    runs.update(
        folder / "run.json",
        name=recipe.name,
        recipe=recipe.name,
        created=created,
        finished=None,
        status="running",
        error=None,
        seed=recipe.seed,
        seeds=seeds,
        command=shlex.join(["segue", *sys.argv[1:]]),
        versions=runs.versions(),
        machine=runs.machine(),
        labels=space_of(recipe).to_dict(),
        roles={s.role: s.name for s in recipe.stages if s.role},
    )


def _finish(folder: Path, folders: dict[int, Path], summary: dict[str, Any]) -> None:
    finished = time.strftime("%Y-%m-%d %H:%M:%S")
    used = {"cpu_s": summary["cpu_s"], "peak_memory_gb": summary["peak_memory_gb"]}
    for where in {folder, *folders.values()}:
        runs.update(where / "run.json", finished=finished, status="finished", **used)
    write_json(folder / "result.json", summary)
    report.write(folder)


def summarise(recipe: Recipe, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The three numbers of the median seed (by the adapted score), every seed's, and the share of the gap closed.

    Scores are mIoU in percent on the first validation set, from the last checkpoint of each stage.
    """
    seeds = sorted(found)
    summary: dict[str, Any] = {"seeds": seeds}
    target = recipe.evaluate.data[0] if recipe.evaluate.data else None
    roles = {s.role: s.name for s in recipe.stages if s.role}
    if target is None or not roles:
        return summary
    scores = {seed: {role: _score(found[seed][name], target) for role, name in roles.items()} for seed in seeds}
    key = "adapted" if "adapted" in roles else next(iter(roles))
    median = median_low([scores[s][key] for s in seeds])
    chosen = next(s for s in seeds if scores[s][key] == median)
    summary |= {
        "data": target,
        "checkpoint": "last",
        "median_seed": chosen,
        "miou": scores[chosen],
        "per_seed": {str(s): scores[s] for s in seeds},
        "mean": {role: sum(scores[s][role] for s in seeds) / len(seeds) for role in roles},
    }
    if set(ROLES) <= set(roles):
        summary["gap_closed"] = gap_closed(**scores[chosen])
        summary["gap_closed_per_seed"] = {str(s): gap_closed(**scores[s]) for s in seeds}
    return summary


def _score(stage: dict[str, Any], data: str) -> float:
    value = stage["evaluations"][data]["miou"]
    return float("nan") if value is None else 100 * float(value)


def gap_closed(source_only: float, adapted: float, target_supervised: float) -> float:
    """Share of the distance from source-only to target-supervised that adaptation covers; NaN without a gap."""
    gap = target_supervised - source_only
    return (adapted - source_only) / gap if gap > 0 else float("nan")
