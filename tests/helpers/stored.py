"""A small network on disk without training it: a stage folder with checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from segue import checkpoint
from segue.files import write_json
from segue.labels import load_space
from segue.models.build import build_model


def stage(folder: Path, *iterations: int, seed: int = 0, best: int | None = None, space: str = "cityscapes19") -> Path:
    """A stage folder with one checkpoint for each iteration, each with its own random weights."""
    labels = load_space(space)
    root = folder / "checkpoints"
    for iteration in iterations:
        torch.manual_seed(1000 * seed + iteration)
        model = build_model({"name": "bisenet", "width": 0.125}, len(labels))
        for parameter in model.parameters():  # fresh weights answer with one class everywhere
            parameter.data.mul_(1.5 if parameter.ndim > 1 else 1)
        info = {"run": "none", "stage": folder.name, "iteration": iteration, "chosen": "last"}
        checkpoint.save(root, iteration, model.eval(), labels, info, {})
    if best is not None:
        write_json(root / "best.json", {"iteration": best, "data": "city:val", "miou": 0.5})
    return folder
