"""The ``segue`` command in tests: in this process where that is the same, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from segue import cli

WAIT_S = 300
"""Nothing here takes this long; a test that waits longer has failed."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def segue(*arguments: object) -> Outcome:
    """Run ``segue ARGUMENTS`` in this process, an uncaught exception told as the interpreter would."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    argv = ["segue", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    return Outcome(code, out.getvalue(), err.getvalue())


def start(*arguments: object, code: str = "", cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start ``segue ARGUMENTS`` in a process of its own; ``code`` is Python that runs before the command."""
    # Ctrl-C is heard even where a shell started the tests in the background, which makes their children ignore it.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = f"{heard}import sys\nfrom segue.cli import main\n{code}\nmain()\n"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def process(*arguments: object, code: str = "", cwd: Path | None = None, **environment: str) -> Outcome:
    """Run ``segue ARGUMENTS`` in a process of its own."""
    with started(*arguments, code=code, cwd=cwd, **environment) as running:
        out, err = running.communicate(timeout=WAIT_S)
    return Outcome(running.returncode, out, err)


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """:func:`start`, with nothing left behind when the test fails meanwhile."""
    running = start(*arguments, **options)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def wait_for(condition: Callable[[], object], running: subprocess.Popen[str]) -> None:
    """Wait until a condition holds; the process must live until then."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def refused(outcome: Outcome, *words: str) -> None:
    """Assert one clear message that holds all words, exit code 2, no traceback."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err, outcome.err
    assert "Traceback" not in outcome.out
    assert outcome.err.count("segue: ") == 1, outcome.err
    for word in words:
        assert word in outcome.err, f"{word!r} is not in: {outcome.err}"


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> Path:
    """A recipe as a file."""
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, to see that nothing was lost."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
