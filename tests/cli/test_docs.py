"""The pages below docs/, executed; their links and the names that they promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.documents import execute, run_bash

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(p.name for p in DOCS.glob("*.md"))


LONG = ("cil.md", "deploy.md", "devices.md", "realtime.md", "selftraining.zh.md")
"""Pages that cost 7 to 25 CPU-seconds each, whose commands other tests run, too."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in LONG else page for page in PAGES]
)
def test_every_block_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    execute((DOCS / page).read_text("utf-8"), page, tmp_path)


@pytest.mark.parametrize("script", ["segue list nothing\ntrue", "false\nsegue list spaces", "segue list nothing | cat"])
def test_a_failing_command_is_seen(script: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_bash(script, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_links_exist_and_the_readme_leads_here(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text("utf-8")):
        assert target.startswith("http") or (DOCS / target).exists(), target
    assert f"docs/{page}" in (DOCS.parent / "README.md").read_text("utf-8")
