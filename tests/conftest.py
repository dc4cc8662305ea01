"""Shared fixtures: one thread (results are bit-stable only at one thread count), a miniature data set on disk."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from segue.data import dataset as datasets

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scene_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``game`` (GTA5 layout) and ``city`` (Cityscapes layout, train and val) scenes of 64x96 pixels."""
    from segue.data import scenes

    root = tmp_path_factory.mktemp("scenes")
    size = (64, 96)
    scenes.write(root / "game", num=6, seed=0, domain=scenes.domain("game"), size=size, layout="gta5")
    for split in ("train", "val"):
        scenes.write(root / "city", num=6, seed=0, domain=scenes.domain("city"), size=size, split=split)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes to the user's own cache."""
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the label files that are read from now on."""
    files: list[str] = []
    real = datasets.read_ids

    def noted(file: object, channel: int | None = None) -> np.ndarray:
        files.append(Path(str(file)).name)
        return real(file, channel)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets, "read_ids", noted)
    return files
