"""The vDNA project's three JSON files as recipes: keys that had an effect, keys that had none, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import vdna_tree
from helpers.vdna_tree import CHECKPOINT, README, TESTING, TRAINING, WEAK_LABELS, write
from segue import recipes
from segue.cli.vdna import results
from segue.files import write_json
from segue.jobs.checks import check_settings
from segue.vdna_config import Translated, translate
from segue.vdna_files import VdnaConfigError

CONFIGS = "configs/training_pipeline.json"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published tree without data, as the current folder."""
    monkeypatch.chdir(tmp_path)
    return vdna_tree.settings(tmp_path)


def translated(data: dict[str, Any], name: str = CONFIGS, *overrides: str) -> Translated:
    given, rest = translate(write(Path(name), data), overrides)
    assert rest == []
    return given


def test_other_data_sets_are_told_by_their_own_names(tmp_path: Path) -> None:
    scores = {"confusion": [[3, 1], [0, 0]], "iou": {"a": 0.75, "b": None}}
    scores |= {"accuracy": 0.75, "mean_accuracy": 0.75, "miou": 0.75}
    for number, found in enumerate(({"camvid:val": scores, "cityscapes_val:val": scores}, {})):
        folder = tmp_path / f"stages/{number}_model"
        folder.mkdir(parents=True)
        write_json(folder / "stage.json", {"name": f"m{number}", "evaluations": found})
    lines = list(results(Translated("Testing"), tmp_path))
    assert lines[:3] == ["m0: Cityscapes mIoU 75.00", "m0: camvid:val mIoU 75.00", "m0: average mIoU 75.00"]
    assert len(lines) == 4 and lines[3].endswith("validation_results_bn.json")


def stage_of(given: Translated) -> dict[str, Any]:
    found: dict[str, Any] = given.recipe["stages"][1]
    return found


def test_training_as_committed(root: Path) -> None:
    given, _ = translate(Path(CONFIGS))
    recipe = recipes.validate(given.recipe)
    check_settings(recipe)
    assert recipe.seed == 1 and recipe.labels == "cityscapes19" and recipe.train.iterations == 20
    assert recipe.train.batch_size == 16 and recipe.transform.crop == (370, 370) and recipe.transform.flip == 0.5
    jitter = recipe.transform
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.5, 0.5, 0.5, 0)
    optim = recipe.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.001, 0.9, 1e-4)
    assert (optim.schedule.name, optim.schedule.power) == ("poly", 0.9) and recipe.model["head_lr_factor"] == 10
    assert recipe.evaluate.data == ("kitti360:val", "cityscapes:val")  # the published lists are not there
    source, bucket = recipe.stages
    assert (source.name, source.references) == ("source", {"model": CHECKPOINT})
    assert (bucket.name, bucket.start, bucket.references) == ("rand_1", CHECKPOINT, {"source": CHECKPOINT})
    assert bucket.method == {"name": "weak_labels", "weak_over": "all", "distillation_over": "pixels_and_classes"}
    weak = bucket.pseudo_labels["target"]
    assert (weak.models, weak.quantile, weak.entropy_max, weak.confidence_min) == ((CHECKPOINT,), 0, 0.3, None)
    follow = bucket.follow
    assert follow is not None and follow.order == "random" and follow.images == 2000 and follow.buckets == 1
    assert (follow.rank.by, follow.rank.file) == ("stream", Path("assets/ranked_2k_class.json"))
    assert given.checkpoints == [CHECKPOINT]


def test_what_is_trained_is_layer_1_and_the_head_and_all_norms_move(root: Path) -> None:
    import torch

    from segue.models.build import build_model

    stage = stage_of(translated({**TRAINING, "model": "deeplabv3plus_resnet50"}))
    model = build_model({"name": "deeplabv3plus", "encoder": "resnet50", "decoder_convs": 1, **stage["model"]}, 19)
    model.apply_freeze()
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {n for n, _ in model.named_parameters() if "layer1." in n or not n.startswith("encoder.")}
    assert trained == wanted and any("layer1." in n for n in trained)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(m.training for m in norms)
    assert {m.momentum for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.01}


def test_a_network_without_layer_1_has_its_head_trained_alone(root: Path) -> None:
    given = translated({**TRAINING, "model": "deeplabv3plus_mobilenet"})
    assert stage_of(given)["model"]["train_only"] == [r"^(?!encoder\.)"]
    assert any("no layer1" in note for note in given.notes)


def test_the_readme_s_example(root: Path) -> None:
    for name in ("data_processor_config.json", "checkpoint.pth", "teacher_checkpoint.pth"):
        (root / "path/to").mkdir(parents=True, exist_ok=True)
        (root / "path/to" / name).write_text("[]")
    given = translated(README)
    recipe = recipes.validate(given.recipe)
    assert recipe.model == {
        "name": "deeplabv3plus",
        "decoder_convs": 1,
        "encoder": "resnet101",
        "output_stride": 16,
        "weights": None,
        "head_lr_factor": 10,
    }
    assert recipe.seed == 42 and recipe.train.iterations == 1800 and len(recipe.stages) == 6
    first, last = recipe.stages[1], recipe.stages[-1]
    assert first.references == {"source": "path/to/teacher_checkpoint.pth"} and last.role == "adapted"
    assert first.follow is not None and first.follow.order == "ascending" and first.follow.rank.by == "emd_block_11"
    assert first.follow.images == 100 and first.follow.buckets == 5
    assert any("total_itrs, taken as 1800" in note for note in given.notes)
    assert given.checkpoints == ["path/to/checkpoint.pth", "path/to/teacher_checkpoint.pth"]


def test_an_empty_path_is_none(root: Path) -> None:
    with pytest.raises(VdnaConfigError, match="ckpt is not given; add ckpt=PATH"):
        translated(TRAINING | {"ckpt": ""})


@pytest.mark.parametrize(("order", "wanted"), [("asc", "ascending"), ("desc", "descending"), ("rand", "random")])
def test_orders(order: str, wanted: str, root: Path) -> None:
    follow = stage_of(translated({**TRAINING, "buckets_order": order}))["follow"]
    assert follow["order"] == wanted
    assert follow["rank"]["by"] == ("stream" if order == "rand" else "emd_block_11")


def test_the_deleted_column_where_a_file_has_it(root: Path) -> None:
    write(root / "old.json", [{"image": "a.png", "emd": 3.5}])
    given = translated({**TRAINING, "buckets_order": "asc"}, CONFIGS, "data_processor.json_file=old.json")
    assert stage_of(given)["follow"]["rank"] == {"by": "emd", "file": "old.json"}


def test_step_policy_drops_every_step_size_iterations(root: Path) -> None:
    from segue.config import ScheduleConfig
    from segue.optim import lr_factor

    given = translated({**TRAINING, "lr_policy": "step", "total_itrs": 1800})
    schedule = ScheduleConfig.model_validate(given.recipe["optim"]["schedule"])
    factors = [lr_factor(schedule, n, 1800, 1.0) for n in (0, 599, 600, 1199, 1200, 1799)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_buckets(root: Path) -> None:
    data = {**TRAINING, "data_processor": {**TRAINING["data_processor"], "num_buckets": 3}}
    for number, rounds, noted in ((None, 3, False), (2, 2, False), (7, 3, True)):
        given = translated({k: v for k, v in {**data, "buckets_num": number}.items() if v is not None})
        assert (stage_of(given)["rounds"], stage_of(given)["follow"]["buckets"]) == (rounds, 3)
        assert any("buckets_num 7" in note for note in given.notes) == noted


def test_inert_keys_are_told_and_others_are_not(root: Path) -> None:
    told = [note.split()[2] for note in translate(Path(CONFIGS))[0].notes if note.startswith("not read: ")]
    assert sorted(told) == ["continue_training", "data_processor.train_ratio", "dataset", "gpu_id"]
    weak, _ = translate(Path("configs/weak_label_kitti_360.json"), [f"ckpt={CHECKPOINT}", f"json_file={ranked()}"])
    told = [note.split()[2] for note in weak.notes if note.startswith("not read: ")]
    assert sorted(told) == ["base_source_dir", "confidence_threshold", "normalization"]


def ranked() -> str:
    return "assets/ranked_2k_class.json"


def test_the_threshold_of_the_file_beside(root: Path) -> None:
    write(Path("configs/weak_label_kitti_360.json"), {**WEAK_LABELS, "entropy_threshold": 0.5})
    given, _ = translate(Path(CONFIGS))
    assert stage_of(given)["pseudo_labels"]["target"]["entropy_max"] == 0.5


def test_data_is_found_from_the_lists_and_lists_are_scored(root: Path) -> None:
    (root / "elsewhere/KITTI-360/data_2d_raw").mkdir(parents=True)
    write(root / "tests/kitti-360_val_set_v3.json", vdna_tree.ranking(2))
    rows = [{**row, "image": row["image"].replace("datasets/data", "elsewhere")} for row in vdna_tree.ranking(3)]
    write(root / ranked(), rows)
    given, _ = translate(Path(CONFIGS))
    assert given.recipe["data"]["kitti360"] == {"root": "elsewhere/KITTI-360"}
    assert given.recipe["evaluate"]["data"] == ["kitti360_val:every", "cityscapes:val"]
    assert given.recipe["data"]["kitti360_val"]["listed"] == "tests/kitti-360_val_set_v3.json"


def test_paths_from_another_folder(root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("away"))
    given, _ = translate(root / CONFIGS)
    assert stage_of(given)["start"] == (root / CHECKPOINT).as_posix()
    assert f"ckpt: {root / CHECKPOINT}" in given.notes


def test_testing_names_every_checkpoint_with_an_order(root: Path) -> None:
    for name in ("latest_bucket_0_rand_x.pth", "latest_bucket_0_asc_x.pth"):
        (root / "checkpoints" / name).write_bytes(b"")
    for name in ("cityscapes_val_set", "kitti-360_val_set_v3"):
        write(root / f"tests/{name}.json", vdna_tree.ranking(2))
    given, _ = translate(Path("configs/testing_pipeline.json"))
    recipe = recipes.validate(given.recipe)
    assert [s.name for s in recipe.stages] == ["latest_bucket_0_asc_x", "latest_bucket_0_rand_x"]
    assert recipe.evaluate.data == ("kitti360_val:every", "cityscapes_val:val") and recipe.evaluate.batch_size == 4
    assert recipe.data["kitti360_val"].limit == 2200 and recipe.data["cityscapes_val"].dataset == "cityscapes"


def test_testing_without_an_order_in_any_name_takes_all(root: Path) -> None:
    given = translated({k: v for k, v in TESTING.items() if "json_file" not in k}, "configs/testing_pipeline.json")
    assert [s["references"] for s in given.recipe["stages"]] == [{"model": CHECKPOINT}]
    assert given.recipe["evaluate"]["data"] == ["kitti360:val", "cityscapes:val"]


def test_weak_labels_say_what_must_be_added(root: Path) -> None:
    with pytest.raises(VdnaConfigError) as caught:
        translate(Path("configs/weak_label_kitti_360.json"))
    assert "add ckpt=PATH" in str(caught.value) and "add json_file=PATH" in str(caught.value)
    given = translated(WEAK_LABELS, "w.json", f"ckpt={CHECKPOINT}", f"json_file={ranked()}", "num_samples=3")
    assert given.labelling["rules"] == {"models": [CHECKPOINT], "quantile": 0, "entropy_max": 0.3}
    assert given.labelling["data"]["limit"] == 3 and given.labelling["out"] == "./outputs/weaklabels/KITTI-360"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ckpt": "gone.pth"}, ["ckpt is gone.pth, which is not there", "add ckpt=PATH"]),
        ({"teacher_ckpt": "gone.pth"}, ["teacher_ckpt is gone.pth"]),
        ({"data_processor": {"json_file": "a.json"}}, ["data_processor.json_file is a.json"]),
        ({"total_iters": 5}, ["'total_iters'", "did you mean 'total_itrs'"]),
        ({"model": "deeplabv3plus_resnet110"}, ["'deeplabv3plus_resnet110'", "did you mean 'deeplabv3plus_resnet101'"]),
        ({"model": "deeplabv3plus_xception"}, ["no counterpart of 'deeplabv3plus_xception'"]),
        ({"num_classes": 21}, ["num_classes", "19"]),
        ({"output_stride": 12}, ["output_stride"]),
        ({"buckets_order": "up"}, ["buckets_order", "'asc', 'desc' or 'rand'"]),
        ({"lr": "much"}, ["lr"]),
    ],
)
def test_what_cannot_be(change: dict[str, Any], words: list[str], root: Path) -> None:
    with pytest.raises(VdnaConfigError) as caught:
        translated({**TRAINING, **change})
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"), [("[1]", "one JSON object"), ("{", "not JSON"), ('{"a": 1}', "none of the vDNA project's")]
)
def test_other_files(text: str, word: str, root: Path) -> None:
    Path("x.json").write_text(text)
    with pytest.raises(VdnaConfigError, match=word):
        translate(Path("x.json"))


def test_overrides_are_of_the_file_or_of_the_recipe(root: Path) -> None:
    given, rest = translate(Path(CONFIGS), ["total_itrs=7", "data_processor.num_buckets=1", "train.workers=2"])
    assert given.recipe["train"]["iterations"] == 7 and rest == ["train.workers=2"]


def test_a_json_file_is_no_recipe(root: Path) -> None:
    with pytest.raises(recipes.ConfigError, match=r"segue config convert configs/training_pipeline\.json"):
        recipes.load(CONFIGS)


@pytest.mark.parametrize("text", ["total_itrs=[", "data_processor.num_buckets={"])
def test_an_override_that_cannot_be_read(text: str, root: Path) -> None:
    with pytest.raises(VdnaConfigError, match="cannot read the value"):
        translate(Path(CONFIGS), [text])
    translated({**TRAINING, "data_processor": 3}, "x.json", "data_processor.json_file=assets/ranked_2k_class.json")
