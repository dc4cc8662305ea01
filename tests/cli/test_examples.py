"""The examples, executed as they stand: scripts as programs, the notebook cell by cell, in an empty folder."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segue.methods.base import METHODS

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOK = FOLDER / "walkthrough.ipynb"
TOLD = {
    "ops_alone.py": r"\d+ % of the pixels are pasted\n.*labelled pixels: \d\.\d+\n",
    "own_loop.py": r"iteration 20: loss \d\.\d+\npixel accuracy (?P<percent>\d+\.\d) % on 8 images",
    "own_method.py": r"iteration 5: .*entropy \d\.\d+\n(.*\n)+iteration 20: source \d\.\d+, entropy 0\.0*[1-9]",
    "use_a_model.py": r"\(64, 96\): .*road.*\nmIoU \d+\.\d %, road (?P<percent>\d+\.\d) %",
}
"""What each script says at the end; ``percent`` is above chance when something was learnt."""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to find, and no method of an example known afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    METHODS.names()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


def test_every_script_has_its_line_here() -> None:
    assert sorted(TOLD) == sorted(p.name for p in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", TOLD)
def test_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    found = re.search(TOLD[name], capsys.readouterr().out)
    assert found
    if "percent" in found.groupdict():
        assert float(found["percent"]) > 30
    assert {p.name for p in tmp_path.iterdir()} <= {"example"}, "it writes only where it says"
    for picture in tmp_path.glob("example/*.png"):
        assert len(Image.open(picture).convert("RGB").getcolors(1 << 20) or ()) > 3


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return found


def test_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, cell in enumerate(c for c in cells() if c["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(re.findall(r"mIoU +\d+\.\d %", capsys.readouterr().out)) == 3
    assert names["scores"]["source-only"]["miou"] != names["scores"]["self-training"]["miou"]
    with Image.open(tmp_path / "walkthrough/predictions.png") as picture:
        assert picture.size == (5 * 96 * 2, 64 * 2)


def test_notebook_is_clean_and_of_the_format() -> None:
    whole = json.loads(NOTEBOOK.read_text("utf-8"))
    assert whole["nbformat"] == 4 and whole["nbformat_minor"] >= 5, "cells have ids from 4.5 on"
    assert len({c["id"] for c in cells()}) == len(cells())
    for cell in cells():
        assert cell["cell_type"] in ("markdown", "code") and "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
