"""Documentation, executed: every command and Python block of a page, in order and as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.command import WAIT_S


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
    """Run commands with the ``segue`` of this environment; fail at the first that fails."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    commands = "\n".join(line for line in script.splitlines() if not line.startswith("make "))
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
