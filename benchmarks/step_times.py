"""What a cell of a table will cost: seconds per iteration, by method, network, size, batch, precision and device.

Kept in ``benchmarks/step_times.json``. A finished cell replaces what a trial of ``segue plan`` (a few iterations) had
estimated. ``rest_s`` is everything of a cell that is not an iteration: start, scoring, pictures, checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.config import Recipe
from segue.files import read_json, write_json
from segue.jobs import plan

FILE = Path(__file__).with_suffix(".json")
START_S = 10.0  # interpreter, torch and listing of files
NO_MATTER = ("weights", "head_lr_factor")  # settings of a network that cost no time


class StepTimes:
    """The stored times; every change is written at once."""

    def __init__(self, path: Path = FILE) -> None:
        self.path = path
        stored = read_json(path) if path.exists() else {}
        self.steps: dict[str, dict[str, Any]] = stored.get("steps", {})
        self.lengths: dict[str, int] = stored.get("lengths", {})
        """Iterations of cells whose length is given in epochs."""

    def estimate_s(self, recipe: Recipe, cell: str, device: str) -> float | None:
        """Wall-clock seconds of a one-stage recipe; None when nothing like it was measured.

        A stage that trains nothing counts as its start alone.
        """
        if not recipe.stages[0].data:
            return START_S
        step = self.steps.get(step_key(recipe, device))
        iterations = recipe.train_of(recipe.stages[0]).iterations or self.lengths.get(cell)
        return None if step is None or iterations is None else step["wall_s"] * iterations + step["rest_s"]

    def measure(self, recipe: Recipe, cell: str, device: str) -> None:
        """Run a few iterations as ``segue plan`` does, from untrained weights; ``UserError`` when that cannot be."""
        stage = recipe.stages[0].model_copy(update={"start": None, "pseudo_labels": {}})
        lone = recipe.model_copy(update={"stages": (stage,), "loggers": ()})
        with tempfile.TemporaryDirectory() as scratch:
            (found,) = plan.plan(lone, device=device, out=Path(scratch)).stages
        rest = found.scoring.wall_s + found.training.wall_s - found.iterations * found.iteration.wall_s + START_S
        row = {"wall_s": found.iteration.wall_s, "cpu_s": found.iteration.cpu_s, "rest_s": rest}
        self._store(step_key(recipe, device), row, iterations=plan.TRIAL - plan.WARM_UP, source="trial")
        if lone.train_of(stage).iterations is None:
            self.lengths[cell] = found.iterations
        self._write()

    def learn(self, recipe: Recipe, device: str, training: Mapping[str, Any], whole_s: float | None) -> None:
        """What a finished cell took; ``whole_s`` is its wall-clock time when it ran in one go."""
        key, count = step_key(recipe, device), training["iterations"]
        row = {name: training[name] / count for name in ("wall_s", "cpu_s")}
        known = self.steps.get(key, {})
        row["rest_s"] = known.get("rest_s", START_S) if whole_s is None else max(0.0, whole_s - training["wall_s"])
        where = {name: training[name] for name in ("device", "threads")}
        self._store(key, row, iterations=count, source="cell", **where)
        self._write()

    def _store(self, key: str, times: Mapping[str, float], **more: Any) -> None:
        self.steps[key] = {name: round(value, 4) for name, value in times.items()} | more

    def _write(self) -> None:
        write_json(self.path, {"steps": dict(sorted(self.steps.items())), "lengths": self.lengths})


def step_key(recipe: Recipe, device: str) -> str:
    """What decides the time of an iteration, as one readable line."""
    stage = recipe.stages[0]
    train = recipe.train_of(stage)
    model = {**recipe.model, **stage.model}
    options = ",".join(f"{k}={v}" for k, v in sorted(model.items()) if k != "name" and k not in NO_MATTER)
    crops = {str(recipe.transform_of(stage, stream).crop or "whole") for stream in stage.data}
    size = "+".join(sorted(crop.strip("()").replace(", ", "x") for crop in crops))
    batch = f"batch {train.batch_size}" + (f"/{train.accumulate}" if train.accumulate > 1 else "")
    parts = (stage.method["name"], f"{model['name']}({options})", size, batch, f"precision {train.precision}", device)
    return " | ".join(parts)
