"""Miniature recipes over the ``scene_data`` fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segue.methods.base import METHODS


def trained_methods() -> list[str]:
    """Registered methods that train; the others only choose what is scored."""
    return [name for name in METHODS.names() if METHODS.get(name).trains]


def recipe(data: Path, method: str = "supervised", **train: Any) -> dict[str, Any]:
    """Two stages: a short supervised one, then ``method`` from its weights."""
    needs = METHODS.get(method).needs
    labelled = METHODS.get(method).uses_labels
    streams = {name: "game:train" if name in labelled else "city:train" for name in needs}
    return {
        "name": "mini",
        "labels": "cityscapes19",
        "model": {"name": "bisenet", "width": 0.125},
        "data": {
            "game": {"dataset": "gta5", "root": str(data / "game")},
            "city": {"dataset": "cityscapes", "root": str(data / "city")},
        },
        "train": {
            "iterations": 6,
            "batch_size": 2,
            "checkpoint_every": 2,
            "evaluate_every": 3,
            "log_every": 4,
            **train,
        },
        "optim": {"name": "adamw", "lr": 0.001},
        "transform": {"crop": [64, 64]},
        "evaluate": {"data": ["city:val"], "samples": 1},
        "stages": [
            {
                "name": "first",
                "role": "source_only",
                "method": "supervised",
                "data": {"source": "game:train"},
                "train": {"iterations": 2},
            },
            {"name": "second", "role": "adapted", "method": method, "data": streams, "start": "first"},
        ],
    }
