"""Fill a table of results cell by cell: ``python benchmarks/tables.py NAME [--budget MIN]``.

``benchmarks/tables/NAME.yaml`` names recipes, settings and seeds. A cell is one stage of a recipe with one seed; a
stage that starts from another (or refers to it) needs that cell first and starts from its weights, so a source-only
model is trained once for all methods that begin with it. Each cell is a ``segue run`` in a process of its own, in
``runs/tables/<cell>``; a cell that was killed is resumed there.

A cell's key is a hash of the settings that its numbers depend on (not places of data, workers, threads, logs and
checkpoints), its seed, the keys of the cells it needs, the major and minor version of segue, and the table's
``version``: raise that when old numbers no longer hold. The commit is recorded but not in the key, or every commit
would throw hours away. A finished cell in ``docs/results/NAME.json`` stays (where only its weights are missing they
are trained again), a failed one is tried with ``--retry``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from cell_process import execute, message, wait_until_free
from markdown_table import markdown
from pydantic import Field, ValidationError
from step_times import FILE, StepTimes

import segue
from segue import recipes, runs
from segue.compare.table import compare
from segue.config import Recipe
from segue.errors import Interrupted, UserError
from segue.files import read_json, write_json, write_text
from segue.hardware import launch
from segue.labels import nearest
from segue.progress import clock
from segue.settings import Settings, explain

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/results"
PLACES = ("workers", "log_every", "watch_every", "checkpoint_every", "keep")
"""Keys of ``train`` that change no number."""
KEPT = ("miou", "accuracy", "iou", "num_images", "protocol", "view")
STOPPED = 75


class Block(Settings):
    """Rows of the table that come from one recipe."""

    recipe: str
    """Shipped name, or file beside the working folder."""
    label: str
    """What the rows are called together."""
    overrides: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None
    """Only these, and what they need; default all."""


class Table(Settings):
    """``benchmarks/tables/NAME.yaml``."""

    title: str
    blocks: tuple[Block, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    """Settings of every block."""
    against: str | None = None
    """Stage that the others' gains are over, of the same block and seed."""
    wins_from_points: float = 0.0
    """A gain counts from here on, if its interval leaves out zero."""
    apart: tuple[str, ...] = ()
    """Classes that mean different things in the two data sets: a second mIoU is given without them."""
    version: int = 1


@dataclass(frozen=True)
class Cell:
    """One training; ``recipe`` has this one stage, whose start and references are still names of stages."""

    label: str
    stage: str
    seed: int
    key: str
    needs: dict[str, str]
    """Earlier stage -> key of its cell."""
    recipe: Recipe
    source: str

    @property
    def name(self) -> str:
        """For people and for the run folder."""
        return f"{self.recipe.name}-{self.stage}-seed{self.seed}-{self.key}"


def read_table(name: str) -> Table:
    """A table by name or file; ``UserError`` with every fault."""
    known = {p.stem: p for p in sorted((HERE / "tables").glob("*.yaml"))}
    path = Path(name) if name.endswith(".yaml") else known.get(name)
    if path is None:
        raise UserError(f"unknown table {name!r}{nearest(name, list(known))}")
    try:
        return Table.model_validate(recipes.read_yaml(path))
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in explain(error, Table))) from error


def cells_of(table: Table) -> list[Cell]:
    """All cells in an order in which each comes after what it needs; equal trainings share a key."""
    out: list[Cell] = []
    for block in table.blocks:
        base = recipes.load(block.recipe, [*table.overrides, *block.overrides])
        wanted = _wanted(base, block)
        for seed in table.seeds:
            keys: dict[str, str] = {}
            for stage in (s for s in base.stages if s.name in wanted):
                recipe = base.model_copy(update={"stages": (stage,), "seed": seed})
                needs = {name: keys[name] for name in stage.sources if name in keys}
                keys[stage.name] = _key(recipe, needs, table.version)
                out.append(Cell(block.label, stage.name, seed, keys[stage.name], needs, recipe, block.recipe))
    return out


def _wanted(recipe: Recipe, block: Block) -> set[str]:
    names = [s.name for s in recipe.stages]
    for name in block.stages or ():
        if name not in names:
            raise UserError(f"{block.label}: recipe {block.recipe} has no stage {name!r}{nearest(name, names)}")
    wanted = set(names if block.stages is None else block.stages)
    for stage in reversed(recipe.stages):
        wanted |= set(stage.sources) & set(names) if stage.name in wanted else set()
    return wanted


def _key(recipe: Recipe, needs: dict[str, str], version: int) -> str:
    given = recipe.model_dump(mode="json", exclude_unset=True)
    for name in ("name", "threads", "loggers"):
        given.pop(name, None)
    for block in given["data"].values():
        block.pop("root", None)
    stage = given["stages"][0]
    stage.pop("role", None)
    for train in (given.get("train", {}), stage.get("train", {})):
        for name in PLACES:
            train.pop(name, None)
    for name in ("samples", "batch_size"):
        given.get("evaluate", {}).pop(name, None)
    release = segue.__version__.split(".")[:2]
    text = json.dumps([given, recipe.seed, sorted(needs.values()), release, version], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Runner:
    """Fills the results of one table."""

    def __init__(self, table: Table, results: Path, folder: Path, times: StepTimes, device: str) -> None:
        self.table, self.results, self.folder, self.times, self.device = table, results, folder, times, device
        self.kind = launch(device).device.type
        self.cells = cells_of(table)
        self.first: dict[str, Cell] = {}
        """By key: the cell that is run, also for the rows that share it."""
        for cell in self.cells:
            self.first.setdefault(cell.key, cell)
        stored = read_json(results) if results.exists() else {}
        self.done: dict[str, dict[str, Any]] = stored.get("cells", {})

    def fill(self, budget_s: float | None, retry: bool) -> None:
        """Run what is missing while the budget lasts; ``Interrupted`` after a signal, with all saved."""
        start = time.monotonic()
        for cell in self.first.values():
            status = self._status(cell)
            if status == "finished" or (status == "failed" and not retry):
                continue
            if any(self._status_of(key) != "finished" for key in cell.needs.values()):
                print(f"{cell.name}: waits for {', '.join(cell.needs)}")
                continue
            for step in [*self._absent(cell), cell]:
                if budget_s is not None and not self._fits(step, budget_s - (time.monotonic() - start)):
                    break
                self._run(step)

    def _absent(self, cell: Cell) -> list[Cell]:
        """Finished cells whose weights are needed and were trained elsewhere: run again, their numbers stay."""
        out: list[Cell] = []
        for key in cell.needs.values():
            needed = self.first[key]
            stage = self._place(key) / "stages" / f"0_{needed.stage}" / "stage.json"
            if runs.read(stage).get("status") != "finished":
                out += [*self._absent(needed), needed]
        return list({c.key: c for c in out}.values())

    def _fits(self, cell: Cell, left_s: float) -> bool:
        if left_s <= 0:
            print(f"{cell.name}: the budget is spent")
            return False
        try:
            if self.estimate_s(cell) is None:
                self.times.measure(cell.recipe, cell.key, self.device)
        except UserError as error:
            self._record(cell, {"status": "failed", "message": str(error).splitlines()[0]})
            return False
        need = self.estimate_s(cell)
        if need is not None and need <= left_s:
            return True
        print(f"{cell.name}: {clock(need or 0)} do not fit into the {clock(left_s)} that are left")
        return False

    def estimate_s(self, cell: Cell) -> float | None:
        """Expected wall-clock seconds, None when unknown."""
        return self.times.estimate_s(cell.recipe, cell.key, self.kind)

    def _status(self, cell: Cell) -> str:
        return self._status_of(cell.key)

    def _status_of(self, key: str) -> str:
        return str(self.done.get(key, {}).get("status", "missing"))

    def _run(self, cell: Cell) -> None:
        folder = self._place(cell.key)
        config = self.folder / f"{cell.name}.yaml"
        write_text(config, recipes.to_yaml(self._resolved(cell)))
        wait_until_free(folder)
        fresh = not (folder / "config.yaml").exists()
        print(f"{cell.name}: {'starts' if fresh else 'goes on'}, {self._about(cell)}", flush=True)
        start = time.monotonic()
        code = execute(config, folder, self.device, resume=not fresh, log=config.with_suffix(".log"))
        if code == STOPPED:
            raise Interrupted(f"{cell.name} is stopped, all is saved")
        record = runs.read(folder / "stages" / f"0_{cell.stage}" / "stage.json")
        if code != 0 or record.get("status") != "finished":
            self._record(cell, {"status": "failed", "message": message(config.with_suffix(".log"), code)})
            return
        if record.get("training"):
            self.times.learn(cell.recipe, self.kind, record["training"], time.monotonic() - start if fresh else None)
        if self._status(cell) != "finished":
            self._record(cell, self._content(cell, folder, record))

    def _place(self, key: str) -> Path:
        return self.folder / self.first[key].name

    def _resolved(self, cell: Cell) -> Recipe:
        """The recipe with the run folders of the cells it needs in the place of their names."""
        (stage,) = cell.recipe.stages
        folders = {name: str(self._place(key).resolve()) for name, key in cell.needs.items()}
        data = cell.recipe.model_dump(mode="json", exclude_unset=True)
        block = data["stages"][0]
        if stage.start in folders:
            block["start"] = folders[str(stage.start)]
        for name, source in stage.references.items():
            block["references"][name] = folders.get(source, source)
        for stream, given in stage.pseudo_labels.items():
            block["pseudo_labels"][stream]["models"] = [folders.get(model, model) for model in given.models]
        return recipes.validate(data)

    def _content(self, cell: Cell, folder: Path, stage: dict[str, Any]) -> dict[str, Any]:
        run = runs.read(folder / "run.json")
        scored = stage["evaluations"].items()
        return {
            "status": "finished",
            "method": stage["method"],
            "checkpoint": stage["checkpoint"],
            "iterations": stage["iterations"],
            "parameters": stage["parameters"],
            "cpu_s": round(stage["cpu_s"], 1),
            "training": stage["training"],
            "evaluations": {name: {k: found[k] for k in KEPT} for name, found in scored},
            "machine": run.get("machine"),
            "versions": run.get("versions"),
            "commit": _commit(),
            "date": date.today().isoformat(),
            "run": folder.as_posix(),
        }

    def _add_gains(self) -> None:
        """Paired intervals of all pairs that are there by now."""
        for cell in (c for c in self.cells if self._status(c) == "finished" and not self.done[c.key].get("gain")):
            base = next((c for c in self.cells if self._is_base(c, cell)), None)
            folders = [self._place(c.key) for c in (base, cell) if c is not None]
            if len(folders) < 2 or not all(f.is_dir() for f in folders) or not cell.recipe.evaluate.data:
                continue
            found = compare(folders, cell.recipe.evaluate.data[0]).lines[-1].gain
            if found is not None and found.interval is not None:
                numbers = {k: getattr(found.interval, k) for k in ("value", "low", "high", "level")}
                self.done[cell.key]["gain"] = {"over": base.key if base else None, **numbers}

    def _is_base(self, base: Cell, cell: Cell) -> bool:
        same = (base.label, base.stage, base.seed) == (cell.label, self.table.against, cell.seed)
        return same and base.key != cell.key and self._status(base) == "finished"

    def _record(self, cell: Cell, content: dict[str, Any]) -> None:
        about = {"label": cell.label, "recipe": cell.source, "stage": cell.stage, "seed": cell.seed}
        self.done[cell.key] = about | content
        self._add_gains()
        command = shlex.join(["python", "benchmarks/tables.py", *sys.argv[1:]])
        head = {"title": self.table.title, "command": command, "against": self.table.against, "apart": self.table.apart}
        write_json(self.results, {**head, "cells": self.done})
        why = f": {content['message']}" if "message" in content else ""
        print(f"{cell.name}: {content['status']}{why}", flush=True)

    def summary(self) -> str:
        """The table as Markdown; also written beside the results."""
        rows = [(c.label, c.stage, c.seed, self.done.get(c.key, {})) for c in self.cells]
        text = markdown(self.table, rows)
        if self.done:
            write_text(self.results.with_suffix(".md"), text)
        return text

    def _about(self, cell: Cell) -> str:
        seconds = self.estimate_s(cell)
        return "time unknown" if seconds is None else f"about {clock(seconds)}"

    def missing(self) -> list[str]:
        """One line for each cell that is not finished, with its expected time, and their sum."""
        left = [c for c in self.first.values() if self._status(c) != "finished"]
        lines = [f"{self._status(c):8} {self._about(c):18} {c.name}" for c in left]
        known = [e for c in left if (e := self.estimate_s(c)) is not None]
        unknown = f", {len(left) - len(known)} unknown" if len(known) < len(left) else ""
        return [*lines, f"{len(left)} of {len(self.first)} cells left: {clock(sum(known))}{unknown}"]


def _commit() -> str | None:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when no cell failed, 1 when one did, 2 for a fault of the user's, 75 when stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="a table of benchmarks/tables, or a YAML file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:K or mps")
    parser.add_argument("--budget", type=float, metavar="MIN", help="start no cell that will not end in this time")
    parser.add_argument("--list", action="store_true", help="show what is missing and what it costs; run nothing")
    parser.add_argument("--measure", action="store_true", help="time a few iterations of each cell of unknown cost")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of NAME.json and NAME.md")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="folder of the run folders")
    parser.add_argument("--step-times", type=Path, default=FILE, help="file of the known costs")
    given = parser.parse_args(arguments)
    try:
        results = given.results / f"{Path(given.name).stem}.json"
        runner = Runner(read_table(given.name), results, given.runs, StepTimes(given.step_times), given.device)
        if given.measure:
            for cell in (c for c in runner.cells if runner.estimate_s(c) is None):
                runner.times.measure(cell.recipe, cell.key, given.device)
        print("\n".join(runner.missing()), flush=True)
        if not (given.list or given.measure):
            given.runs.mkdir(parents=True, exist_ok=True)
            with runs.locked(given.runs):
                runner.fill(None if given.budget is None else 60 * given.budget, given.retry)
            print("\n".join(runner.missing()))
        print(runner.summary())
    except Interrupted as stop:
        print(f"tables: {stop}; the same command goes on", file=sys.stderr)
        return STOPPED
    except UserError as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2
    return int(any(runner.done.get(c.key, {}).get("status") == "failed" for c in runner.cells))


if __name__ == "__main__":
    raise SystemExit(main())
