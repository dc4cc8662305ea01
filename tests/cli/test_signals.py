"""Stopped from outside: SIGTERM saves all and exits 75; after it or kill -9 ``--resume`` ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from helpers.command import segue, started, wait_for, write_recipe
from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import checkpoint, runs
from segue.errors import UserError

LONG = 60


def test_sigterm_saves_and_resumes_to_the_same_bytes(scene_data: Path, tmp_path: Path) -> None:
    """With loader processes; the uninterrupted run has none, which changes no byte."""
    train = {"iterations": LONG, "log_every": 1, "evaluate_every": 25, "checkpoint_every": 25}
    given = write_recipe(tmp_path / "r.yaml", recipe(scene_data, "fda", workers=2, **train))
    out, whole = tmp_path / "run", tmp_path / "whole"
    stage = out / "stages/1_second"
    with started("run", given, "--out", out, "--device", "cpu") as running:
        wait_for(lambda: (stage / "metrics.jsonl").exists() and (stage / "metrics.jsonl").stat().st_size, running)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate()
    assert running.returncode == 75, err
    assert "SIGTERM" in err
    assert "all is saved; continue with --resume" in err
    assert "Traceback" not in err
    last = checkpoint.newest(stage / "checkpoints")
    assert last is not None
    done = checkpoint.load_state(last)["iteration"]
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["iteration"] == done < LONG, "the iteration that the signal came in is saved"
    assert segue("run", given, "--out", out, "--device", "cpu", "--resume").code == 0
    assert segue("run", given, "--out", whole, "--device", "cpu", "train.workers=0").code == 0
    assert fingerprint(out) == fingerprint(whole)


@pytest.mark.slow
def test_kill_9_of_the_demo_recipe(scene_data: Path, tmp_path: Path) -> None:
    """Killed in the second stage, with loader processes that outlive their parent, and while a file is written."""
    roots = [f"data.{name}.root={scene_data / name}" for name in ("game", "city")]
    short = ["demo", *roots, "train.iterations=8", "train.checkpoint_every=1", "train.log_every=1", "--device", "cpu"]
    out, whole = tmp_path / "run", tmp_path / "whole"
    adapted, last = (out / "stages" / name / "checkpoints" for name in ("1_adapted", "2_target_supervised"))
    arguments = ["run", *short, "train.workers=2", "--out", out]
    with started(*arguments) as running:
        wait_for(lambda: checkpoint.newest(adapted), running)
        running.kill()
        running.wait()
        before = checkpoint.newest(adapted)
        with started(*arguments, "--resume") as second:
            wait_for(lambda: list(last.glob(".*.tmp")), second)
            second.kill()
            second.wait()
    (last / ".iteration_00000001.1.tmp").mkdir(exist_ok=True)
    assert before is not None
    assert not (out / "result.json").exists()
    done = segue(*arguments, "--resume")
    assert done.code == 0, done
    assert segue("run", *short, "--out", whole).code == 0
    assert fingerprint(out) == fingerprint(whole)
    assert not list(last.glob(".*.tmp")), "what a killed process left half written is cleared away"


FORK = """
import os, sys, time
from pathlib import Path
from segue import runs
with runs.locked(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(300)
"""


def test_the_lock_dies_with_its_process_although_children_live_on(tmp_path: Path) -> None:
    """As loader processes do for some seconds after a kill -9."""
    with started(tmp_path, code=FORK) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            with pytest.raises(UserError, match="in use"), runs.locked(tmp_path):
                pass
            other.kill()
            other.wait()
            with runs.locked(tmp_path):
                os.kill(child, 0)  # still there
        finally:
            os.kill(child, signal.SIGKILL)
