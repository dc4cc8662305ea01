"""One trained miniature run and one interrupted run, shared by the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.command import segue, write_recipe
from helpers.recipes import recipe


@pytest.fixture(scope="session")
def mini(scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe file: two stages, ``first`` supervised on game, ``second`` fda to city."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "mini.yaml", recipe(scene_data, "fda"))


@pytest.fixture(scope="session")
def trained(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of that recipe, made by ``segue run``; tests leave it as it is."""
    out = tmp_path_factory.mktemp("trained") / "run"
    done = segue("run", mini, "--out", out, "--device", "cpu")
    assert done.code == 0, done
    return out
