"""Shared fixtures: one thread (results are bit-stable only at one thread count), a miniature data set on disk."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

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
