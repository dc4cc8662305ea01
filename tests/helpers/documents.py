"""Documentation, executed: every command and Python block of a page, in order and as printed."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.command import WAIT_S, segue

NEEDS_A_SHELL = re.compile(r"[|&;<>$`*?\[\]{}~#]|--gpus")
QUOTED = re.compile(r"'[^']*'")
EXPECTED = re.compile(r"(.*) \|\| test \$\? -eq (\d+)")
"""A command with the exit code that it may end with beside 0."""


def execute(text: str, name: str, folder: Path) -> int:
    """Run the bash and Python blocks of a page in ``folder`` (the current one); how many there were."""
    blocks = re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == len(re.findall(r"```(?:bash|python)", text)), f"{name} has a block that does not end"
    for kind, body in blocks:
        if kind == "bash":
            run_bash(body, folder)
        else:
            exec(compile(body, name, "exec"), {})
    return len(blocks)


def run_bash(script: str, folder: Path) -> None:
    """Run commands in order and fail at the first that fails.

    A ``segue`` command that no shell has to read is run in this process: importing torch for each would take longer
    than all that the pages do.
    """
    lines = [line for line in script.replace("\\\n", " ").splitlines() if not line.startswith("make ")]
    for plain, group in itertools.groupby(lines, _is_plain):
        if not plain:
            _shell("\n".join(group), folder)
            continue
        for line in group:
            command, allowed = _expected(line)
            with contextlib.chdir(folder):
                done = segue(*shlex.split(command)[1:])
            assert done.code in allowed, f"{line}\n{done.out}\n{done.err}"


def _is_plain(line: str) -> bool:
    return line.startswith("segue ") and NEEDS_A_SHELL.search(QUOTED.sub("", _expected(line)[0])) is None


def _expected(line: str) -> tuple[str, set[int]]:
    found = EXPECTED.fullmatch(line)
    return (found[1], {0, int(found[2])}) if found else (line, {0})


def _shell(commands: str, folder: Path) -> None:
    """Run commands with the ``segue`` of this environment."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
