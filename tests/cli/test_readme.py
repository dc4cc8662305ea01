"""The README, executed: every command and Python block in order and as printed, on tiny data, stages shortened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from helpers.documents import execute, run_bash
from segue import recipes
from segue.jobs import demo

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
STAGES = ("SOURCE_ONLY", "ADAPTED", "TARGET_SUPERVISED")
SHORT = {
    **{f"SEGUE__STAGES__{stage}__TRAIN__ITERATIONS": "2" for stage in STAGES},
    "SEGUE__TRAIN__BATCH_SIZE": "2",
    "OMP_NUM_THREADS": "1",
}


def tiny_scenes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few small scenes where the demo would write its own; it keeps what is there."""
    with monkeypatch.context() as patch:
        patch.setattr(demo, "SIZE", (64, 96))
        patch.setattr(demo, "DOMAINS", tuple((*row[:3], 4, row[4]) for row in demo.DOMAINS))
        demo.write_scenes(root)


def test_every_block_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_scenes(tmp_path / "demo/data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    assert execute(TEXT, "README.md", tmp_path) >= 4
    assert (tmp_path / "demo/report.html").stat().st_size < 5_000_000
    assert len(list((tmp_path / "predictions").rglob("*.png"))) == 4
    assert (tmp_path / "scores.json").is_file()
    (run,) = (tmp_path / "runs/mine").iterdir()
    assert (run / "result.json").is_file(), "the run that was continued ended well"


def test_the_example_recipe_is_valid() -> None:
    found = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) == 1
    given = recipes.load(yaml.safe_load(found[0]), environment={})
    assert [s.name for s in given.stages] == ["source", "adapted"]


@pytest.mark.parametrize("word", ["make install", "make demo", "make test", "CONTRIBUTING.md", "NOTICE", "Apache-2.0"])
def test_it_tells_the_essentials_shortly(word: str) -> None:
    assert word in TEXT
    assert len(TEXT.splitlines()) <= 150


def test_links_and_targets_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_tables_name_what_exists() -> None:
    from segue.cli import app
    from segue.data.catalog import catalog_names
    from segue.methods.base import METHODS
    from segue.models.base import MODELS

    for name in (*METHODS.names(), *MODELS.names(), *catalog_names()):
        assert f"`{name}`" in TEXT, f"{name} is not in the README's tables"
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"`segue {name}" in TEXT, f"segue {name} is not in the README's table"


def test_a_failing_command_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no recipe"):
        run_bash("segue config show dmo\necho fine", tmp_path)
