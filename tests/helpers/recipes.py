"""Miniature recipes over the ``scene_data`` fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segue.methods.base import METHODS
from segue.methods.incremental import Distillation
from segue.presets import presets

OF_ONE_MODEL = ("prototype_gate",)
"""Methods that train a part which one model has; its own tests try them."""


def trained_methods() -> list[str]:
    """Registered methods that train any network; the others only choose what is scored, or train one kind of model."""
    return [name for name in METHODS.names() if METHODS.get(name).trains and name not in OF_ONE_MODEL]


def seldom(name: str) -> bool:
    """Whether two other methods of class steps stand for this one, since they share most code: slow tests try it."""
    module = "" if name in presets() else METHODS.get(name).__module__
    return "incremental" in module and name not in ("cil", "ewc")


def presets_beside(*published: str) -> list[str]:
    """Presets that no other one contains (``dacs`` is ``self_training``, ``daformer`` a part of ``mic``), and these."""
    return ["mic", "dida", *published]


def recipe(data: Path, method: str = "supervised", **train: Any) -> dict[str, Any]:
    """Two stages: a short one, supervised or such as ``method`` builds on, then that, a registered one or a preset."""
    chosen: dict[str, Any] = {"method": method}
    if method in presets():
        # Bank updates and rare classes that so few small images can show.
        chosen = {"preset": method, "streams": {"source": {"rare_class": {"min_px": 50}}}}
        if method.startswith("dida"):
            chosen["method"] = {"parts": {"instance_similarity": {"size": 20, "every_iterations": 2}}}
    cls = METHODS.get("self_training" if method in presets() else method)
    needs, labelled = cls.needs, cls.uses_labels
    streams = {name: "game:train" if name in labelled else "city:train" for name in needs}
    if issubclass(cls, Distillation):
        chosen["references"] = {"teacher": "first"}
    if method == "weak_labels":
        chosen["references"] = {"source": "first"}
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
                "method": "ewc" if method == "ewc" else "supervised",  # which gathers from the first step on
                "data": {"source": "game:train"},
                "train": {"iterations": 2},
            },
            {"name": "second", "role": "adapted", **chosen, "data": streams, "start": "first"},
        ],
    }
