"""The README's commands, executed as printed in one folder; only the environment makes them short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segue import recipes

TEXT = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
SHORT = {
    "SEGUE__TRAIN__CHECKPOINT_EVERY": "100",
    "SEGUE__STAGES__SOURCE_ONLY__TRAIN__ITERATIONS": "2",
    "SEGUE__STAGES__ADAPTED__TRAIN__ITERATIONS": "2",
    "SEGUE__STAGES__TARGET_SUPERVISED__TRAIN__ITERATIONS": "2",
    "OMP_NUM_THREADS": "1",
}


def test_commands_run_as_printed(tmp_path: Path) -> None:
    environment = os.environ | SHORT
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    assert [kind for kind, _ in BLOCKS] == ["bash", "bash", "bash", "python"]
    for kind, text in BLOCKS:
        lines = text.strip().splitlines() if kind == "bash" else [text]
        for line in lines:
            command = ["bash", "-c", line] if kind == "bash" else [sys.executable, "-c", line]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "demo/report.html").stat().st_size < 5_000_000
    assert len(list((tmp_path / "predictions").rglob("*.png"))) == 64
    assert (tmp_path / "scores.json").exists()


def test_the_example_recipe_is_valid() -> None:
    found = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert found
    assert [s.name for s in recipes.load(yaml.safe_load(found[1]), environment={}).stages] == ["source", "adapted"]


@pytest.mark.parametrize("word", ["make demo", "make test", "make install", "CONTRIBUTING.md", "NOTICE"])
def test_it_tells_the_essentials_shortly(word: str) -> None:
    assert word in TEXT
    assert len(TEXT.splitlines()) <= 150
