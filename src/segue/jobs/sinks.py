"""Trackers beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow (the ``loggers`` of a recipe).

A tracker gets every line of metrics.jsonl whose values are numbers, one tracker run a stage. Nothing leaves the
machine unless its own environment variable asks for it: W&B writes offline unless ``WANDB_MODE`` says otherwise
(``wandb sync`` sends it later), MLflow writes ``mlflow.db`` in the run folder unless ``MLFLOW_TRACKING_URI`` is set.
A tracker that fails is told once and left alone; training goes on. A missing package is told before training starts.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from segue.errors import UserError
from segue.files import write_text

Sink = Callable[[Mapping[str, Any]], None]


class Tracker(Protocol):
    """One tool, opened for one stage."""

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        """Take the numbers of one line of metrics.jsonl."""

    def close(self) -> None:
        """Everything is written; called once."""


class _TensorBoard:
    def __init__(self, run: Path, stage: Path, recipe: str) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        self._logger = TensorBoardLogger(root_dir=stage, name="", version="tensorboard")

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        self._logger.log_metrics(dict(numbers), step=iteration)
        self._logger.experiment.flush()

    def close(self) -> None:
        self._logger.finalize("success")


class _Wandb:
    def __init__(self, run: Path, stage: Path, recipe: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "segue"),
            dir=str(stage),
            id=blake2b(str(stage.resolve()).encode(), digest_size=8).hexdigest(),  # a resumed stage goes on in its run
            resume="allow",
            name=f"{recipe}/{stage.name}",
            group=f"{recipe}/{run.name}",
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
        )

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(numbers), step=iteration)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: Path, stage: Path, recipe: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        # MLflow 3 refuses its old folder store, so the default is a database file.
        local = f"sqlite:///{(run / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        note = stage / "mlflow_run.txt"
        if note.exists():
            self._run = note.read_text("utf-8").strip()
            self._client.get_run(self._run)  # fails here, once, when the server does not know it
            return
        experiment = self._client.get_experiment_by_name(recipe)
        number = experiment.experiment_id if experiment else self._client.create_experiment(recipe)
        self._run = self._client.create_run(number, run_name=f"{run.name}/{stage.name}").info.run_id
        write_text(note, self._run)

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._run, re.sub(r"[^\w\-./ ]", "_", name), value, step=iteration)

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[Path, Path, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


def require(names: Sequence[str]) -> None:
    """``UserError`` when the package of a tracker is not installed, with what to install."""
    missing = [name for name in names if not _installed(name)]
    if missing:
        raise UserError(
            f"loggers: {', '.join(missing)} is not installed; pip install 'segue[{','.join(missing)}]', or take it "
            f"out of 'loggers'"
        )


def _installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # without: a folder of that name that the tool left here


@contextmanager
def opened(names: Sequence[str], run: Path, stage: Path, recipe: str) -> Iterator[tuple[Sink, ...]]:
    """What the engine hands every line of metrics.jsonl to, while the block lasts; never raises."""
    guarded = [_Guarded(name, run, stage, recipe) for name in names]
    try:
        yield tuple(guarded)
    finally:
        for sink in guarded:
            sink.close()


class _Guarded:
    """A tracker that cannot stop the training: its first error is told, then it is left alone."""

    def __init__(self, name: str, run: Path, stage: Path, recipe: str) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", TRACKERS[name](run, stage, recipe)))

    def __call__(self, row: Mapping[str, Any]) -> None:
        tracker = self._tracker
        if tracker is not None:
            numbers = {k: v for k, v in row.items() if isinstance(v, float)}
            self._try(lambda: tracker.log(numbers, row["iteration"]))

    def close(self) -> None:
        if self._tracker is not None:
            self._try(self._tracker.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # each tool has its own errors, and network and disk add theirs
            self._tracker = None
            first = (str(error).splitlines() or [""])[0]
            told = f"{type(error).__name__}: {first}" if first else type(error).__name__
            print(f"segue: {self._name} failed and is left out from here ({told})", file=sys.stderr)
