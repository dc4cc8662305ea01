"""The README, executed: every bash and python block in order, in a folder with tiny data, settings only shortened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.command import WAIT_S
from segue.jobs import demo

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"(?:Save as\s+`(?P<file>[^`]+)`:\n\n)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)
SHORT = {"SEGUE__TRAIN__ITERATIONS": "2", "SEGUE__TRAIN__BATCH_SIZE": "2", "OMP_NUM_THREADS": "1"}


def tiny_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few small scenes where the demo writes its own, and a data set as the README describes one."""
    with monkeypatch.context() as patch:
        patch.setattr(demo, "SIZE", (64, 96))
        patch.setattr(demo, "DOMAINS", tuple((*row[:3], 4, row[4]) for row in demo.DOMAINS))
        demo.write_scenes(folder / "demo/data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for n in range(3):
            image = folder / f"my_city/images/{split}/{n:04d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8)).save(image)
            if split == "val":
                label = folder / f"my_city/labels/{split}/{n:04d}.png"
                label.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 19, (64, 96), np.uint8)).save(label)


def without_make(script: str) -> str:
    """The commands of a block except make's targets, which install and test the project itself."""
    return "\n".join(line for line in script.splitlines() if not line.startswith("make "))


def run_bash(script: str, folder: Path) -> None:
    """Run commands with the ``segue`` of this environment; fail at the first that fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euxo", "pipefail", "-c", script]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_block_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_data(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    kinds = []
    for found in BLOCK.finditer(TEXT):
        kind, body = found["kind"], found["body"]
        kinds.append(kind)
        if kind == "yaml":
            assert found["file"], f"no file name for {body}"
            Path(found["file"]).write_text(body)
        elif kind == "bash":
            run_bash(without_make(body), tmp_path)
        elif kind == "python":
            exec(compile(body, "README.md", "exec"), {})
    assert {"bash", "python", "yaml"} <= set(kinds)
    assert kinds.count("python") == TEXT.count("```python")
    assert (tmp_path / "demo/report.html").is_file()
    assert len(list((tmp_path / "predictions").iterdir())) == 3
    assert (tmp_path / "runs/second/result.json").is_file()


def test_what_the_readme_must_show() -> None:
    bash = "".join(m["body"] for m in BLOCK.finditer(TEXT) if m["kind"] == "bash")
    assert re.search(r"^make demo", bash, re.MULTILINE)
    assert re.search(r"^make test", bash, re.MULTILINE)
    targets = re.findall(r"^make (\w+)", bash, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert len(TEXT.splitlines()) <= 150


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_tables_name_what_exists() -> None:
    from segue.cli import app
    from segue.data.catalog import catalog_names
    from segue.methods.base import METHODS
    from segue.models.base import MODELS

    for name in (*METHODS.names(), *MODELS.names(), *catalog_names()):
        assert f"`{name}`" in TEXT, f"{name} is not in the README's tables"
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"segue {name}" in TEXT, f"segue {name} is not in the README's table"


def test_a_failing_command_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no recipe"):
        run_bash("segue config show dmo\necho fine", tmp_path)
