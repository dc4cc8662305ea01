"""Damaged data through the commands themselves: named at once, nothing lost, and on it goes once it is mended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.command import refused, segue, write_recipe
from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import checkpoint, recipes
from segue.data.dataset import open_dataset
from segue.data.memory_map import LABELS, MemoryMapDataset


@pytest.fixture
def prepared(scene_data: Path, tmp_path: Path) -> Path:
    """``game`` and ``city`` as memory-mapped copies."""
    for name, dataset in (("game", "gta5"), ("city", "cityscapes")):
        done = segue(
            *("data", "prepare", dataset, "--root", scene_data / name, "--size", "64x96"),
            *("--format", "raw", "--out", tmp_path / "data" / name),
        )
        assert done.code == 0, done
    return tmp_path / "data"


def test_a_run_on_copies_is_the_run_on_the_files(prepared: Path, trained: Path, tmp_path: Path) -> None:
    """The files have the size of the copies, so every pixel is the same."""
    given = write_recipe(tmp_path / "r.yaml", recipe(prepared, "fda", workers=2))
    done = segue("run", given, "--out", tmp_path / "run", "--device", "cpu")
    assert done.code == 0, done
    assert fingerprint(tmp_path / "run") == fingerprint(trained)


def test_a_damaged_copy_in_mid_training(prepared: Path, trained: Path, tmp_path: Path) -> None:
    given = recipe(prepared, "fda")
    path, out = write_recipe(tmp_path / "r.yaml", given), tmp_path / "run"
    dataset = open_dataset("game", recipes.load(given).data["game"], "train")
    assert isinstance(dataset, MemoryMapDataset)
    labels = prepared / "game" / LABELS
    whole = labels.read_bytes()
    damaged = bytearray(whole)
    damaged[6 * 64 * 96 - 1] = 200  # the last of the six training images
    labels.write_bytes(bytes(damaged))
    refused(segue("run", path, "--out", out, "--device", "cpu"), "label values 200", str(prepared / "game"))
    assert segue("data", "check", prepared / "game", "--workers", 0).code == 2
    labels.write_bytes(whole)
    before = checkpoint.newest(out / "stages/0_first/checkpoints")
    done = segue("run", path, "--out", out, "--device", "cpu", "--resume")
    assert done.code == 0, done
    assert fingerprint(out) == fingerprint(trained)
    assert before is None or before.is_dir()


def test_prediction_names_all_damaged_images_and_keeps_the_others(
    trained: Path, scene_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(scene_data / "game/images", tmp_path / "in")
    files = sorted((tmp_path / "in").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:300])
    files[2].write_bytes(b"")
    files[3].write_bytes(b"GIF89a")
    out = tmp_path / "out"
    done = segue("predict", "--model", trained, "--input", tmp_path / "in", "--out", out, "--device", "cpu")
    refused(done, "3 of 6 images", *(str(files[n]) for n in (0, 2, 3)))
    assert {p.name for p in out.iterdir()} == {files[n].name for n in (1, 4, 5)}


def test_evaluation_on_an_archive_with_a_damaged_member(trained: Path, scene_data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    root = f"cityscapes={scene_data / 'city'}"
    packed = segue("data", "pack", "cityscapes", "--size", "64x96", "--out", archive, "--root", root)
    assert packed.code == 0, packed
    command = ["evaluate", "--model", trained, "--data", f"{archive}/cityscapes:val", "--device", "cpu"]
    whole = segue(*command)
    assert whole.code == 0, whole
    data = bytearray(archive.read_bytes())
    at = data.index(b"IDAT", data.index(b"labels/val/valtown"))
    data[at + 40] ^= 1
    archive.write_bytes(bytes(data))
    refused(segue(*command), str(archive), "labels/val/")
    checked = segue("data", "check", f"{archive}/cityscapes", "--workers", 0)
    assert checked.code == 2
    assert "unreadable [val]" in checked.out and "labels/val/" in checked.out
    assert "Traceback" not in checked.err and "1 problem (1 unreadable)" in checked.err


MODULE = """
import numpy as np
class Frames:
    def __init__(self, split="train"):
        assert split == "val", split
    def __len__(self):
        return 2
    def __getitem__(self, i):
        return np.full((64, 96, 3), 100 * i, np.uint8), np.full((64, 96), i)
"""


def test_evaluation_on_a_python_class_with_a_split(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scored_frames.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for data in ("python:scored_frames:Frames", "python:scored_frames:Frames:val"):
        done = segue("evaluate", "--model", trained, "--data", data, "--device", "cpu")
        assert done.code == 0, done
        assert "(2 images)" in done.out
    refused(segue("evaluate", "--model", trained, "--data", "python:scored_frames:Frames:test"), "test")
