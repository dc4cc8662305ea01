"""Runs recipes one after the other in every process of a group: ``torchrun processes.py jobs.json``.

``jobs.json`` is a list of [recipe, folder, what]: ``run``, ``resume``, or ``stop`` (the second process sends itself
SIGTERM in the second iteration of a stage that has that many, and nobody else hears it). One group for all recipes,
because starting processes costs more than training miniatures.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from segue import api, engine
from segue.errors import Interrupted

Job = tuple[dict[str, Any], str, str]


def main(jobs: Path) -> None:
    """Train every recipe of the file into its folder."""
    torch.set_num_threads(1)
    for recipe, folder, what in json.loads(jobs.read_text()):
        if what == "stop":
            with mock.patch.object(engine._Loop, "_iterate", _signalled(engine._Loop._iterate)):
                _stopped(recipe, folder)
        else:
            api.run(recipe, folder, device="cpu", resume=what == "resume")


def launch(jobs: list[Job], file: Path) -> None:
    """Two processes, with gloo, for all jobs."""
    file.write_text(json.dumps(jobs))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__, str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def _signalled(real: Any) -> Any:
    def iterate(self: engine._Loop, micro: Any) -> None:
        if self.place.rank == 1 and self.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, micro)

    return iterate


def _stopped(recipe: dict[str, Any], folder: str) -> None:
    try:
        api.run(recipe, folder, device="cpu")
    except Interrupted:
        return
    raise AssertionError("a process did not stop")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
