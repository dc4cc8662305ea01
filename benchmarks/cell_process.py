"""One cell of a table as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from segue import runs
from segue.errors import UserError


def execute(config: Path, folder: Path, device: str, *, resume: bool, log: Path) -> int:
    """Run one cell as a process of its own and return its exit code; a signal to us is passed on to it."""
    command = [sys.executable, "-m", "segue", "run", str(config), "--out", str(folder), "--device", device]
    command += ["--resume"] if resume else []
    told: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        for child in children:
            child.terminate()

    # Before the child starts: it may answer, or the user stop us, at once.
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with log.open("w") as out:
            child = subprocess.Popen(command, stdout=out, stderr=out)
        children.append(child)
        if told:
            child.terminate()
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until_free(folder: Path) -> None:
    """A cell may outlive the runner that was killed: it is doing our work."""
    while folder.exists():
        try:
            with runs.locked(folder):
                return
        except UserError:
            time.sleep(1)


def message(log: Path, code: int) -> str:
    """Why a cell ended with this exit code, from the last of its log."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("segue: ") for line in lines if line.startswith("segue: ")]
    if told:
        return told[-1]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}; {lines[-1] if lines else 'it said nothing'}"
