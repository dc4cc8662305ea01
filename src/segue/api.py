"""Segue from Python: run a recipe, load a model, predict, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segue import predict as prediction
from segue import recipes
from segue.checkpoint import load_model
from segue.config import DatasetConfig
from segue.data.dataset import open_dataset
from segue.hardware import launch
from segue.jobs.run import RunResult
from segue.jobs.run import run as run_recipe
from segue.labels import LabelSpace
from segue.models.base import SegModel
from segue.scoring import score


class Predictor:
    """A trained model ready to predict; ``model``, ``labels`` and ``info`` (model.json) are open to use."""

    def __init__(self, model: SegModel, labels: LabelSpace, info: Mapping[str, Any]) -> None:
        self.model, self.labels, self.info = model, labels, info

    def predict(self, image: npt.NDArray[np.uint8] | str | Path) -> npt.NDArray[np.uint8]:
        """Train ids (H, W) uint8 of an RGB image (H, W, 3) uint8, or of an image file."""
        return prediction.predict(self.model, image)

    def predict_folder(self, source: str | Path, out: str | Path, format: str = "color") -> list[Path]:
        """Predict an image or every image of a folder into PNGs; returns the files written."""
        return prediction.predict_folder(self.model, self.labels, Path(source), Path(out), format=format)


def load(path: str | Path, device: str = "auto") -> Predictor:
    """Load a run folder, stage, checkpoint or model.safetensors; nothing else is needed."""
    model, labels, info = load_model(Path(path))
    return Predictor(model.to(launch(device).device), labels, info)


def run(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    seeds: Sequence[int] = (),
) -> RunResult:
    """Run a recipe (file, shipped name, or containers) into ``out`` (default ``runs/<name>/<time>``)."""
    given = recipes.load(recipe, overrides)
    return run_recipe(given, Path(out) if out is not None else None, resume=resume, device=device, seeds=seeds)


def evaluate(
    model: str | Path | Predictor,
    data: str,
    *,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    views: Sequence[str] = ("all",),
    device: str = "auto",
) -> dict[str, Any]:
    """Score a model on ``NAME_OR_FOLDER[:split]`` (split ``val`` by default): plain containers, shares 0..1."""
    predictor = model if isinstance(model, Predictor) else load(model, device)
    name, _, split = data.partition(":")
    dataset = open_dataset(name, DatasetConfig(root=root, size=size), split or "val", predictor.labels)
    result = score.evaluate(
        predictor.model, dataset, predictor.labels, device=next(predictor.model.parameters()).device, views=views
    )
    return result.to_dict()
