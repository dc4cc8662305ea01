"""Every registered model under supervised training and the presets, by the engine, two iterations each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.recipes import recipe
from segue import api
from segue.models.base import MODELS
from segue.presets import fragment, presets

TERMS = {
    "supervised": {"source"},
    "dacs": {"source", "mixed"},
    "daformer": {"source", "feature_distance", "mixed"},
    "mic": {"source", "feature_distance", "mixed", "masked"},
    "dida": {"source", "feature_distance", "mixed", "instance_similarity"},
    "dida_as_published": {"source", "feature_distance", "mixed", "instance_similarity"},
}
"""Losses of each."""
OF_ONE_MODEL = ("dacs", "dida_as_published")
"""What the others contain, or what differs from them in no part of a network: with one model."""
ITERATIONS = 2
OFTEN = ("bisenet", "segformer")
"""Models that are tried at every change: heads and batch norm, a transformer. The others cost a minute."""


def trained(model: str) -> dict[str, set[str]]:
    return {name: terms for name, terms in TERMS.items() if model == "bisenet" or name not in OF_ONE_MODEL}


def given(data: Path, model: str) -> dict[str, Any]:
    """One stage a preset, all from the network as it is first built."""
    found = recipe(data, iterations=ITERATIONS, evaluate_every=None, log_every=1)
    stages = []
    for name in trained(model):
        stage = recipe(data, name)["stages"][1]
        stages.append({**stage, "name": name, "start": None, "role": None})
    cls = MODELS.get(model)
    return {**found, "model": {"name": model, **cls.tiny()}, "evaluate": {"data": []}, "stages": stages}


def test_every_preset_is_here() -> None:
    ours = {name for name in presets() if fragment(name)["method"]["name"] == "self_training"}
    assert set(TERMS) == {"supervised", *ours}


@pytest.mark.parametrize(
    "model", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in MODELS.names()]
)
def test_a_model_trains_under_every_preset(model: str, scene_data: Path, tmp_path: Path) -> None:
    api.run(given(scene_data, model), tmp_path / "run", device="cpu")
    for number, (name, terms) in enumerate(trained(model).items()):
        lines = (tmp_path / f"run/stages/{number}_{name}/metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "lr" in row]
        assert len(rows) == ITERATIONS
        for row in rows:
            found = {key.removeprefix("loss/") for key in row if key.startswith("loss/")}
            assert found == terms, name
            assert all(abs(row[f"loss/{term}"]) < 1e6 for term in terms), name
