"""Presets: a published method as settings of a stage, its host, parts and sampling, one YAML file each.

``preset: NAME`` in a stage puts them below the stage's own settings. Plain containers in and out: this happens before a
recipe is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from segue.errors import UserError
from segue.labels import nearest

Merge = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def presets() -> dict[str, Path]:
    """All presets: name -> file."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def applied(stages: list[Any], merge: Merge) -> list[Any]:
    """Stages with their presets written out; ``UserError`` when there is none of that name."""
    return [
        merge(fragment(str(stage["preset"])), {key: value for key, value in stage.items() if key != "preset"})
        if isinstance(stage, dict) and stage.get("preset") is not None
        else stage
        for stage in stages
    ]


def fragment(name: str) -> dict[str, Any]:
    """The settings of a stage that a preset stands for; ``UserError`` when there is none of that name."""
    known = presets()
    if name not in known:
        raise UserError(f"unknown preset {name!r}{nearest(name, list(known))}")
    data: dict[str, Any] = yaml.safe_load(known[name].read_text("utf-8"))
    return data
