"""The vDNA project's three JSON files run as they are, on its own tree in miniature, with its smallest network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from helpers import vdna_tree
from helpers.command import Outcome, refused, segue
from helpers.vdna_tree import CHECKPOINT
from segue import recipes
from segue.checkpoint import find_model
from segue.data.images import read_ids
from segue.files import read_json

SMALL = ("model=deeplabv3plus_mobilenet",)
SHORT = (*SMALL, "total_itrs=2", "batch_size=2", "crop_size=64", "threads=1", "evaluate.samples=1")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published tree, and ``cache``: its checkpoint is converted once."""
    return vdna_tree.tree(tmp_path_factory.mktemp("vdna"))


@pytest.fixture(autouse=True)
def here(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the tree, as published."""
    monkeypatch.chdir(tree)
    monkeypatch.setenv("SEGUE_CACHE", str(tree / "cache"))


@pytest.fixture(scope="module")
def trained(tree: Path) -> Outcome:
    """``segue run configs/training_pipeline.json`` with two ascending buckets, into ``runs/asc``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree)
        patch.setenv("SEGUE_CACHE", str(tree / "cache"))
        buckets = ("buckets_order=asc", "data_processor.num_buckets=2", "buckets_num=2")
        given = (*SHORT, *buckets, "stages.asc.pseudo_labels.target.entropy_max=3")
        return segue("run", "configs/training_pipeline.json", *given, "--out", "runs/asc", "--device", "cpu")


def test_training_runs_and_scores_both_data_sets_after_every_bucket(trained: Outcome, tree: Path) -> None:
    assert trained.code == 0, trained
    assert "not read: gpu_id" in trained.err and "entropy_threshold 0.3 of configs/weak_label" in trained.err
    stages = [read_json(path) for path in sorted((tree / "runs/asc/stages").glob("*/stage.json"))]
    assert [stage["name"] for stage in stages] == ["source", "asc_1", "asc_2"]
    for stage in stages:
        assert list(stage["evaluations"]) == ["kitti360_val:every", "cityscapes_val:val"]
        assert all(scores["num_images"] == 2 for scores in stage["evaluations"].values())
    buckets = read_json(tree / "runs/asc/follow/asc/buckets.json")["buckets"]
    followed = [[image_id.rpartition("/")[2] for _, image_id in bucket["images"]] for bucket in buckets]
    assert followed == [["0000000000", "0000000002", "0000000003"], ["0000000004", "0000000005"]]  # 1: validation


def test_resuming_the_finished_run_keeps_it(trained: Outcome, tree: Path) -> None:
    before = (tree / "runs/asc/stages/2_asc_2/stage.json").read_bytes()
    given = (*SHORT, "buckets_order=asc", "data_processor.num_buckets=2", "buckets_num=2")
    given = (*given, "stages.asc.pseudo_labels.target.entropy_max=3")
    done = segue("run", "configs/training_pipeline.json", *given, "--out", "runs/asc", "--resume", "--device", "cpu")
    assert done.code == 0, done
    assert (tree / "runs/asc/stages/2_asc_2/stage.json").read_bytes() == before


def test_testing_prints_both_means_and_their_average(tree: Path) -> None:
    done = segue("run", "configs/testing_pipeline.json", *SMALL, "--out", "runs/test", "--device", "cpu")
    assert done.code == 0, done
    lines = [line.rsplit(" ", 1) for line in done.out.splitlines() if "_os16: " in line]
    values = {text.partition(": ")[2]: float(value) for text, value in lines}
    assert list(values) == ["Cityscapes mIoU", "KITTI-360 mIoU", "average mIoU"]
    mean = (values["Cityscapes mIoU"] + values["KITTI-360 mIoU"]) / 2
    assert values["average mIoU"] == pytest.approx(mean, abs=0.01)
    found = json.loads((tree / "runs/test/validation_results_bn.json").read_text())
    assert [entry["order"] for entry in found] == ["asc", "desc", "rand"]
    rows = found[2]["checkpoints"]
    assert [row["dataset"] for row in rows] == ["Cityscapes", "KITTI-360"]
    for row in rows:
        metrics = row["metrics_val"]
        assert list(metrics) == ["Overall Acc", "Mean Acc", "FreqW Acc", "Mean IoU", "Class IoU"]
        iou = np.array([np.nan if v is None else v for v in metrics["Class IoU"].values()])
        assert len(iou) == 19 and metrics["Mean IoU"] == pytest.approx(np.nanmean(iou))


def test_testing_a_run_of_ours(trained: Outcome, tree: Path) -> None:
    assert trained.code == 0
    given = (*SMALL, "checkpoint_dir=runs/asc", "num_test=1")
    done = segue("run", "configs/testing_pipeline.json", *given, "--out", "runs/test_ours", "--device", "cpu")
    assert done.code == 0, done
    found = json.loads((tree / "runs/test_ours/validation_results_bn.json").read_text())
    names = [row["name"] for row in found[0]["checkpoints"]]
    assert [n.rpartition("_")[2] for n in names] == ["1", "1", "2", "2"], names


def test_weak_labels_alone(tree: Path) -> None:
    given = ("configs/weak_label_kitti_360.json", f"ckpt={CHECKPOINT}", "json_file=assets/ranked_2k_class.json")
    refused(segue("run", given[0]), "add ckpt=PATH", "add json_file=PATH")
    done = segue("run", *given, "num_samples=2", "entropy_threshold=2.5", "--device", "cpu")
    assert done.code == 0, done
    folder = tree / "outputs/weaklabels/KITTI-360"
    rows = read_json(folder / "image_label.json")
    assert len(rows) == 2 and all(0 < row["entropy"] < 3 and 0 < row["confidence"] < 1 for row in rows)
    for row in rows:
        label = read_ids(Path(row["label_path"]))
        assert label.shape == (64, 128) and set(np.unique(label)) <= {*range(19), 255}


def test_config_convert_writes_a_recipe_that_is_the_same_run(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    done = segue("config", "convert", "configs/training_pipeline.json", *SHORT, "--out", out)
    assert done.code == 0, done
    recipe = recipes.load(out, environment={})
    assert [s.name for s in recipe.stages] == ["source", "rand_1"]
    start = recipe.stages[1].start
    assert start is not None and (Path(start) / "model.safetensors").is_file()
    assert segue("config", "validate", out).code == 0
    refused(segue("config", "convert", "configs/training_pipeline.json", "--out", out), "exists")
    refused(segue("config", "convert", "configs/weak_label_kitti_360.json"), "segue run")


def test_a_recipe_is_printed_even_without_its_files(tree: Path, tmp_path: Path) -> None:
    path = vdna_tree.write(tmp_path / "readme.json", vdna_tree.README)
    done = segue("config", "convert", path)
    assert done.code == 0 and yaml.safe_load(done.out)["stages"][1]["rounds"] == 5
    assert "add ckpt=PATH" in done.err
    refused(segue("run", path), "ckpt is path/to/checkpoint.pth", "json_file is path/to/data_processor_config.json")


def test_a_damaged_checkpoint(tree: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    shutil.copy(CHECKPOINT, damaged)
    with damaged.open("r+b") as file:
        file.truncate(1000)
    refused(segue("run", "configs/training_pipeline.json", *SHORT, f"ckpt={damaged}"), "damaged.pth")


@pytest.mark.slow
def test_only_layer_1_and_the_head_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vdna_tree.tree(tmp_path, "resnet50"))
    given = (*SHORT, "model=deeplabv3plus_resnet50", "stages.rand.pseudo_labels.target.entropy_max=3")
    done = segue("run", "configs/training_pipeline.json", *given, "--out", "run", "--device", "cpu")
    assert done.code == 0, done
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    before = load_file(str(Path(config["stages"][1]["start"]) / "model.safetensors"))
    after = load_file(str(find_model(Path("run/stages/1_rand_1")) / "model.safetensors"))
    moved = {name for name in before if not before[name].equal(after[name])}
    weights = {n for n in moved if n.endswith(("weight", "bias"))}
    assert weights and all("layer1." in n or not n.startswith("encoder.") for n in weights)
    statistics = {n for n in before if n.startswith("encoder.") and n.endswith("running_mean")}
    assert statistics <= moved, "the published run lets all norm statistics move"
