"""``segue demo``: two domains of generated street scenes on disk, three trainings, one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segue.data import scenes
from segue.jobs.run import RunResult, run
from segue.recipes import load

SIZE = (128, 256)
DOMAINS = (("game", "gta5", "train", 320), ("city", "cityscapes", "train", 320), ("city", "cityscapes", "val", 64))


def write_scenes(root: Path) -> None:
    """The demo's data: ``game`` in GTA5's layout, ``city`` in Cityscapes' layout; what is there is kept."""
    for name, layout, split, num in DOMAINS:
        if not (root / name / f"scenes_{split}.json").exists():
            scenes.write(
                root / name, num=num, seed=0, domain=scenes.domain(name), size=SIZE, layout=layout, split=split
            )


def run_demo(out: Path, seeds: Sequence[int], *, resume: bool = False, device: str = "cpu") -> RunResult:
    """Write the scenes below ``out/data`` and run the shipped recipe ``demo`` into ``out``."""
    write_scenes(out / "data")
    recipe = load("demo", [f"data.{name}.root={out / 'data' / name}" for name in ("game", "city")])
    return run(recipe, out, resume=resume, device=device, seeds=seeds)
