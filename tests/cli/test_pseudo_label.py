"""``segue pseudo-label`` on stored networks and generated scenes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.command import files, refused, segue
from helpers.stored import stage
from segue.data.images import read_ids
from segue.files import read_json


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("stages")
    return [stage(root / name, 1, seed=seed) for seed, name in enumerate(("source", "adapted"))]


def test_table_files_and_the_way_on(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    data = ("--data", "cityscapes:train", "--root", scene_data / "city", "--device", "cpu", "--size", "32x48")
    models = ("--model", stages[0], "--model", stages[1])
    done = segue("pseudo-label", *models, *data, "--out", tmp_path / "a", "--quantile", "0.5", "--cap", "1")
    assert done.code == 0, done
    index = read_json(tmp_path / "a/index.json")
    assert (index["quantile"], index["cap"], index["size"], index["split"]) == (0.5, 1, [32, 48], "train")
    assert index["model_paths"] == list(map(str, stages)) and len(set(index["models"])) == 2
    lines = done.out.splitlines()
    assert lines[-1] == f"6 labels in {tmp_path / 'a'}; train on them with data.NAME.labels={tmp_path / 'a'}"
    total = 0
    for name, line in zip(index["pixels"], lines[1:-2], strict=True):
        pixels, kept = index["pixels"][name], index["pixels_kept"][name]
        shown = (
            [f"{index['thresholds'][name]:.4f}", str(pixels), f"{100 * kept / pixels:.1f}"]
            if pixels
            else ["0", "absent"]
        )
        assert line.split() == [name, *shown]
        total += kept
    assert re.fullmatch(rf"all +{6 * 32 * 48} +{100 * index['share_kept']:.1f}", lines[-2])
    stored = sum(np.count_nonzero(read_ids(p) != 255) for p in (tmp_path / "a").glob("*.png"))
    assert stored == total == round(index["share_kept"] * 6 * 32 * 48)
    before = files(tmp_path / "a")
    done = segue("pseudo-label", *models, *data, "--out", tmp_path / "a", "--quantile", "0.5", "--cap", "1")
    assert done.code == 0 and files(tmp_path / "a") == before
    refused(segue("pseudo-label", *models, *data, "--out", tmp_path / "a"), "quantile 0.5, not 0.66", "another folder")
    run = ("run", "demo", "--out", tmp_path / "run", "--device", "cpu", f"data.game.root={scene_data / 'game'}")
    run = (*run, f"data.city.root={scene_data / 'city'}")
    refused(segue(*run, f"data.city.labels={tmp_path}"), "no index.json")
    of_val = ("--data", "cityscapes:val", "--root", scene_data / "city", "--device", "cpu", "--out", tmp_path / "val")
    assert segue("pseudo-label", *models, *of_val).code == 0
    refused(
        segue(*run, f"data.city.labels={tmp_path / 'val'}"), "'target_supervised'", "its own labels", "another split"
    )


def test_faults(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    given = ("--data", "cityscapes", "--root", scene_data / "city", "--out", tmp_path / "a", "--device", "cpu")
    model = ("--model", stages[0])
    refused(segue("pseudo-label", *given, *model, "--cap", "0"), "cap: Input should be greater than 0")
    refused(
        segue("pseudo-label", *given, *model, "--quantile", "2"), "quantile: Input should be less than or equal to 1"
    )
    refused(segue("pseudo-label", *given, "--model", tmp_path), "no model at")
    refused(segue("pseudo-label", *given, *model, "--size", "big"), "HEIGHTxWIDTH")
    refused(segue("pseudo-label", *model, "--data", "citiscapes", "--out", tmp_path / "a"), "did you mean 'cityscapes'")
    assert not (tmp_path / "a").exists()
    done = segue("pseudo-label", *model, "--data", "cityscapes")
    assert done.code == 2 and "--out" in done.err


def test_models_of_other_classes(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(stages[0], tmp_path / "other")
    (description,) = other.rglob("model.json")
    description.write_text(description.read_text().replace('"name": "road"', '"name": "street"'))
    given = ("--data", "cityscapes", "--root", scene_data / "city", "--out", tmp_path / "a", "--device", "cpu")
    refused(segue("pseudo-label", *given, "--model", stages[0], "--model", other), "know different classes")


def test_rules_and_trust(scene_data: Path, stages: list[Path], tmp_path: Path) -> None:
    given = ("--data", "cityscapes", "--root", scene_data / "city", "--device", "cpu", "--size", "64x96")
    given = (*given, "--model", stages[0])
    rules = ("--quantile", "0", "--entropy-max", "2.9", "--confidence-min", "0.05", "--class-quantile", "road=0.5")
    done = segue("pseudo-label", *given, *rules, "--out", tmp_path / "a", "--image-class-count-min", "2", "--trust")
    assert done.code == 0, done
    index = read_json(tmp_path / "a/index.json")
    assert (index["entropy_max"], index["confidence_min"], index["quantiles"]) == (2.9, 0.05, {"road": 0.5})
    assert index["image"]["class_count_min"] == 2 and index["trust"]["source"] is None
    lines = done.out.splitlines()
    assert lines[0].split()[-1] == "trust" and "no probability" in lines[-2]
    source = ("--trust-source", "gta5:train", "--trust-root", scene_data / "game")
    done = segue("pseudo-label", *given, *rules, *source, "--out", tmp_path / "b")
    assert done.code == 0, done
    index = read_json(tmp_path / "b/index.json")
    told = index["source_labels"]
    assert (told["data"], told["split"], index["trust"]["size"]) == ("gta5", "train", [64, 96])
    shown = {line.split()[0]: line.split()[-1] for line in done.out.splitlines()[1:20]}
    for name, mean in index["weights"].items():
        assert mean is None or shown[name] == f"{mean:.3f}"
    assert f"labels of {len(index['trust']['ids'])} images of gta5:train were read" in done.out
    stored = [read_ids(tmp_path / "b" / row["weight"]) for row in index["images"].values()]
    assert max(weight.max() for weight in stored) > 0
    refused(segue("pseudo-label", *given, "--out", tmp_path / "c", "--class-quantile", "road"), "as in road=0.8")
    refused(segue("pseudo-label", *given, "--out", tmp_path / "c", "--class-quantile", "rood=1"), "did you mean 'road'")
    refused(segue("pseudo-label", *given, "--out", tmp_path / "c", "--entropy-max", "-1"), "entropy_max: Input should")
