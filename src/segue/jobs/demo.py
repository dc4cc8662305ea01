"""``segue demo``: two domains of generated street scenes on disk, three trainings, one report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from segue.data import scenes
from segue.files import read_json
from segue.jobs.run import RunResult, run
from segue.recipes import load

SIZE = (128, 256)
DOMAINS = (
    ("game", "gta5", "train", 320, 1),
    ("city", "cityscapes", "train", 320, 2),
    ("city", "cityscapes", "val", 64, 2),
)
"""Name, layout, split, number and seed: the domains share no scene."""


def write_scenes(root: Path) -> None:
    """The demo's data: ``game`` in GTA5's layout, ``city`` in Cityscapes' layout; what is there is kept."""
    for name, layout, split, num, seed in DOMAINS:
        note = root / name / "scenes.json"  # written last, when the split is whole
        if not (note.exists() and split in read_json(note)):
            scenes.write(
                root / name, num=num, seed=seed, domain=scenes.domain(name), size=SIZE, layout=layout, split=split
            )


def run_demo(out: Path, seeds: Sequence[int], *, resume: bool = False, device: str = "cpu") -> RunResult:
    """Write the scenes below ``out/data`` and run the shipped recipe ``demo`` into ``out``."""
    write_scenes(out / "data")
    recipe = load("demo", [f"data.{name}.root={json.dumps(str(out / 'data' / name))}" for name in ("game", "city")])
    return run(recipe, out, resume=resume, device=device, seeds=seeds)
