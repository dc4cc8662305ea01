"""Which trainings the given paths mean: run folders, seeds of a run, stage folders, patterns."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segue.errors import UserError
from segue.report.read import Run, Stage, read_run

SHOWN = 6


@dataclass(frozen=True)
class Entry:
    """One stage of one run; ``members`` holds it once for every seed."""

    run: str
    folder: Path
    stage: str
    role: str
    members: dict[str, Stage]
    target: str | None
    """The validation set that the run itself reports."""


@dataclass(frozen=True)
class Found:
    """What lies at the paths, in their order, and what could not be read."""

    entries: list[Entry]
    problems: list[str] = field(default_factory=list)


def collect(given: Sequence[str | Path]) -> Found:
    """Entries of run folders (with all their seeds), stage folders and patterns; each stage once.

    ``UserError`` for a path that is neither, or when nothing has been trained there.
    """
    paths = list(dict.fromkeys(p for text in given for p in _expand(str(text))))
    homes = {path: _home(path) for path in paths}
    runs = {home: read_run(home) for home in dict.fromkeys(homes.values())}
    names = _names(runs)
    entries: dict[tuple[Path, str], Entry] = {}
    for path, home in homes.items():
        only = None if path == home else path.name.partition("_")[2]
        for entry in _entries(names[home], runs[home], only):
            entries.setdefault((home, entry.stage), entry)
    if not entries:
        raise UserError(f"nothing has been trained in {', '.join(map(str, paths[:SHOWN]))}")
    problems = [f"{names[home]}: {text}" for home, run in runs.items() for text in run.problems]
    return Found(list(entries.values()), problems)


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.exists():
        return [path.resolve()]
    found = sorted(p for p in glob.glob(str(path)) if Path(p).is_dir())  # noqa: PTH207 (absolute and relative alike)
    if not found:
        raise UserError(f"no run at {text}: give run folders, stage folders, or a pattern such as 'runs/demo/*'")
    return [Path(p).resolve() for p in found]


def _home(path: Path) -> Path:
    """The run folder that a path means or lies in."""
    if (path / "run.json").is_file():
        return path
    if path.parent.name == "stages" and (path.parents[1] / "run.json").is_file():
        return path.parents[1]
    below = sorted(p.parent for p in path.glob("*/run.json")) or sorted(p.parent for p in path.glob("*/*/run.json"))
    hint = f"; there are runs below it, for example {below[-1]}" if below else ""
    raise UserError(f"{path} is no run folder and no stage of one: it has no run.json{hint}")


def _names(runs: dict[Path, Run]) -> dict[Path, str]:
    """The name of each run, with as much of its path as tells it from the others."""
    given = {home: str(run.info.get("name") or home.name) for home, run in runs.items()}
    timed = {home: f"{name} {home.name}" for home, name in given.items()}
    counts, timed_counts = Counter(given.values()), Counter(timed.values())
    return {
        home: name if counts[name] == 1 else timed[home] if timed_counts[timed[home]] == 1 else str(home)
        for home, name in given.items()
    }


def _entries(name: str, run: Run, only: str | None) -> list[Entry]:
    seeds = run.seeds or {str(run.info.get("seed", "")): run}
    stages = dict.fromkeys(s.name for one in seeds.values() for s in one.stages)
    roles = {stage.name: role for one in seeds.values() for role, stage in one.roles.items()}
    target = next((one.target for one in seeds.values() if one.target), None)
    out = []
    for stage in stages:
        if only is None or stage == only:
            members = {seed: s for seed, one in seeds.items() for s in one.stages if s.name == stage}
            out.append(Entry(name, run.folder, stage, roles.get(stage, ""), members, target))
    return out
