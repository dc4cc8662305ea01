"""What goes wrong outside the program: one clear message, exit code 2, no traceback, and nothing computed is lost."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segue as package
from helpers.command import Outcome, files, process, refused, segue, started, write_recipe
from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import checkpoint, recipes, runs
from segue.hardware import Hardware
from segue.jobs import build, checks
from segue.labels import load_space
from segue.models.build import build_model


def run(*arguments: object) -> Outcome:
    """``segue run`` on the CPU."""
    return segue("run", *arguments, "--device", "cpu")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run to damage."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def own_data(scene_data: Path, tmp_path: Path) -> Path:
    """A copy of the data to damage."""
    shutil.copytree(scene_data, tmp_path / "data")
    return tmp_path / "data"


RECIPE_FAULTS: dict[str, tuple[list[str], list[str]]] = {
    "missing data folder": (["data.game.root=/nowhere"], ["'gta5'", "/nowhere is not a folder"]),
    "empty split": (["evaluate.data=[city:test]"], ["'city'", "split 'test' is empty", "splits of cityscapes: train"]),
    "unknown split": (["evaluate.data=[city:vla]"], ["no split 'vla'", "did you mean 'val'"]),
    "unknown key": (["train.itertions=3"], ["train.itertions", "did you mean 'iterations'"]),
    "two faults": (["train.itertions=3", "optim.lrr=1"], ["train.itertions", "optim.lrr"]),
    "unknown method": (["stages.second.method=fdaa"], ["unknown method 'fdaa'", "did you mean 'fda'"]),
    "unknown method key": (["stages.second.method.betta=1"], ["betta", "did you mean 'beta'"]),
    "unknown model": (["model.name=bisnet"], ["unknown model 'bisnet'", "did you mean 'bisenet'"]),
    "unknown data set": (["data.game.dataset=gta6"], ["unknown data set 'gta6'", "did you mean 'gta5'"]),
    "unknown label space": (["labels=cityscape19"], ["'cityscape19'", "did you mean 'cityscapes19'"]),
    "unknown view": (["evaluate.views=[classes16]"], ["no view 'classes16'", "known: all"]),
    "no such start": (["stages.second.start=frist"], ["'frist'", "known: ['first', 'second']"]),
    "other model than the start": (["stages.second.model.width=0.25"], ["'second'", "'first'", "another architecture"]),
    "no such network": (["stages.second.optim.networks.critic.lr=1"], ["'second'", "'critic'", "'model'"]),
    "no such level": (["stages.second.method={name: minent, levels: {top: 1}}"], ["'second'", "'top'", "out16, out32"]),
    "labels by nobody": (
        ["stages.second.pseudo_labels.source.models=[frist]"],
        ["'second'", "'frist'", "no such path"],
    ),
    "labels for nobody": (["stages.second.pseudo_labels.target.models=[first]"], ["'second'", "'target'", "source"]),
    "rounds of nothing": (["stages.second.rounds=0"], ["stages.1.rounds", "greater than 0"]),
    "not a setting": (["nonsense"], ["'nonsense'", "key=value"]),
    "key inside a value": (["evaluate.data.0.x=1"], ["evaluate.data.0.x", "'city:val'", "no keys"]),
    "no such stage": (["stages.third.name=a"], ["no item 'third'", "first, second"]),
    "broken value": (["train.iterations=["], ["train.iterations="]),
    "wrong type": (["train.iterations=many"], ["train.iterations", "'many'"]),
    "unknown device": (["--device", "tpu"], ["unknown device 'tpu'", "cuda:K"]),
    "seeds that are words": (["--seeds", "a,b"], ["--seeds 'a,b'", "0,1,2"]),
    "negative seed": (["--seeds", "-1"], ["--seeds '-1'"]),
    "repeated seed": (["--seeds", "1,1"], ["--seeds '1,1'"]),
}


@pytest.mark.parametrize("fault", RECIPE_FAULTS)
def test_fault_of_recipe_or_options(fault: str, mini: Path, tmp_path: Path) -> None:
    arguments, words = RECIPE_FAULTS[fault]
    out = tmp_path / "run"
    refused(segue("run", mini, "--out", out, "--device", "cpu", *arguments), *words)
    assert not out.exists(), "a refused run leaves no folder"


def test_refused_run_leaves_no_default_folder(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(segue("run", mini, "--device", "cpu", *RECIPE_FAULTS["missing data folder"][0]))
    assert not list(Path("runs").glob("*"))
    kept = Path("runs/mini/20200101-000000")
    kept.mkdir(parents=True)
    refused(segue("run", mini, "--device", "cpu", *RECIPE_FAULTS["missing data folder"][0]))
    assert [p for p in Path("runs").rglob("*") if p.is_dir()] == [kept.parent, kept]


@pytest.mark.parametrize("fault", ["missing data folder", "unknown key", "unknown model"])
def test_a_fault_does_not_touch_the_run_that_it_would_resume(fault: str, mini: Path, copied: Path) -> None:
    arguments, words = RECIPE_FAULTS[fault]
    before = files(copied)
    refused(run(mini, "--out", copied, "--resume", *arguments), *words)
    assert files(copied) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_without_a_gpu(mini: Path, trained: Path, tmp_path: Path) -> None:
    refused(segue("run", mini, "--out", tmp_path / "o", "--device", "cuda"), "cuda", "torch sees 0", "--device cpu")
    refused(segue("evaluate", "--model", trained, "--data", "cityscapes", "--device", "cuda"), "--device cpu")


@pytest.mark.parametrize("arguments", [["--gpus", "0"], ["--gpus", "two"], ["--sedes", "1"]])
def test_usage_errors(arguments: list[str], mini: Path) -> None:
    done = run(mini, *arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert arguments[0] in done.err


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x00", "name: x\nextends: nowhere\n"])
def test_unreadable_recipe(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refused(run(path, "--out", tmp_path / "o"), "nowhere" if "extends" in text else str(path))


def test_unknown_recipe_in_a_process_of_its_own(tmp_path: Path) -> None:
    refused(process("run", "dmo", cwd=tmp_path), "no recipe 'dmo'", "did you mean 'demo'")
    assert list(tmp_path.iterdir()) == []


def seen_first_at(given: dict[str, Any], iteration: int) -> Path:
    """Target image that the second stage reads at an iteration (six images, two at a time: and not before)."""
    job = checks.prepare(recipes.load(given), Path("unused"), Hardware(torch.device("cpu")))
    stream = build.build_streams(job, job.recipe.stages[1])["target"]
    file = stream.datasets[0].files(stream.places(iteration)[0][0][0])[0]
    return Path(str(file))


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_image_in_mid_training(workers: int, own_data: Path, tmp_path: Path) -> None:
    given = recipe(own_data, "fda", workers=workers, watch_every=None)  # the watch reads images before training does
    path, out = write_recipe(tmp_path / "r.yaml", given), tmp_path / "run"
    trained = tmp_path / "trained"
    assert run(path, "--out", trained).code == 0
    image = seen_first_at(given, 2)
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    refused(run(path, "--out", out), str(image), "truncated PNG")
    last = checkpoint.newest(out / "stages/1_second/checkpoints")
    assert last is not None
    assert last.name == "iteration_00000002", "the checkpoint before the fault stays"
    record = runs.read(out / "run.json")
    assert record["status"] == "failed" and str(image) in record["error"]
    image.write_bytes(whole)
    done = run(path, "--out", out, "--resume")
    assert done.code == 0, done
    assert runs.read(out / "run.json")["status"] == "finished" and runs.read(out / "run.json")["error"] is None
    assert fingerprint(out) == fingerprint(trained)


def _other_size(path: Path) -> None:
    with Image.open(path) as label:
        label.crop((0, 0, 32, 32)).save(path)


def _other_value(path: Path) -> None:
    with Image.open(path) as label:
        Image.fromarray(np.full((label.height, label.width), 77, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("damage", "words"), [(_other_size, ["96x64 pixels", "32x32", "must match"]), (_other_value, ["label values 77"])]
)
def test_labels_that_do_not_fit(
    damage: Callable[[Path], None], words: list[str], own_data: Path, tmp_path: Path
) -> None:
    for path in (own_data / "game/labels").iterdir():
        damage(path)
    given = write_recipe(tmp_path / "r.yaml", recipe(own_data, "fda"))
    refused(run(given, "--out", tmp_path / "run"), str(own_data / "game/labels"), *words)


def foreign_model(folder: Path, labels: str, width: float) -> Path:
    """A model folder of another kind."""
    folder.mkdir()
    space = load_space(labels)
    checkpoint.save_model(folder, build_model({"name": "bisenet", "width": width}, len(space)), space, {})
    return folder


@pytest.mark.parametrize(
    ("labels", "width", "words"),
    [
        ("cityscapes19", 0.25, ["another architecture", "'bisenet'"]),
        ("camvid11", 0.125, ["'camvid11' (11 classes)", "'cityscapes19' (19 classes)"]),
    ],
)
def test_start_from_a_model_that_does_not_fit(
    labels: str, width: float, words: list[str], mini: Path, tmp_path: Path
) -> None:
    other = foreign_model(tmp_path / "other", labels, width)
    refused(run(mini, "--out", tmp_path / "run", f"stages.second.start={other}"), str(other), *words)
    assert not (tmp_path / "run").exists(), "found before the first stage"


@pytest.mark.parametrize("keep", [0, 100])
def test_damaged_weights(keep: int, copied: Path, mini: Path, scene_data: Path, tmp_path: Path) -> None:
    weights = next(copied.glob("stages/1_second/checkpoints/*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:keep])
    data = ["--data", "cityscapes:val", "--root", scene_data / "city"]
    refused(segue("evaluate", "--model", copied, *data, "--device", "cpu"), str(weights), "copy")
    refused(run(mini, "--out", tmp_path / "o", f"stages.first.start={weights.parent}"), str(weights))


def test_damaged_description(copied: Path, scene_data: Path, tmp_path: Path) -> None:
    note = next(copied.glob("stages/1_second/checkpoints/*/model.json"))
    note.write_text("{")
    refused(segue("predict", "--model", copied, "--input", scene_data, "--out", tmp_path / "p"), str(note))


@pytest.mark.parametrize("keep", [0, 1000])
def test_damaged_state(keep: int, mini: Path, trained: Path, copied: Path) -> None:
    stage = copied / "stages/1_second"
    runs.update(stage / "stage.json", status="running")
    state = next(stage.glob("checkpoints/*/state.pt"))
    state.write_bytes(state.read_bytes()[:keep])
    refused(run(mini, "--out", copied, "--resume"), str(state), f"delete {state.parent}")
    shutil.rmtree(state.parent)
    assert run(mini, "--out", copied, "--resume").code == 0
    assert fingerprint(copied) == fingerprint(trained)


@pytest.mark.parametrize("record", ["run.json", "stages/0_first/stage.json", "config.yaml"])
def test_damaged_record(record: str, mini: Path, copied: Path) -> None:
    (copied / record).write_text("{")
    refused(run(mini, "--out", copied, "--resume"), str(copied / record))


def test_killed_before_the_first_record(mini: Path, trained: Path, copied: Path) -> None:
    (copied / "run.json").unlink()
    assert run(mini, "--out", copied, "--resume").code == 0
    assert fingerprint(copied) == fingerprint(trained)


HOLD = """
import time
from pathlib import Path
from segue import runs
with runs.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_folder_in_use(mini: Path, copied: Path) -> None:
    with started(copied, code=HOLD) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = files(copied)
        refused(run(mini, "--out", copied, "--resume"), str(copied), "in use by another process")
        assert files(copied) == before
        other.kill()
        other.wait()
    assert run(mini, "--out", copied, "--resume").code == 0


def test_folder_that_holds_a_run(mini: Path, copied: Path) -> None:
    before = files(copied)
    refused(run(mini, "--out", copied), str(copied), "already holds a run", "--resume")
    changed = run(mini, "--out", copied, "--resume", "optim.lr=0.5")
    refused(changed, str(copied), "another recipe", "lr: 0.001", "lr: 0.5")
    refused(run(mini, "--out", copied, "--resume", "--seeds", "3"), str(copied), "seeds [0], not [3]")
    assert files(copied) == before


def test_nothing_to_resume(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(mini, "--resume"), "nothing to resume", "'mini'")


@pytest.mark.parametrize("limit", [100_000, 1_000_000])
def test_full_disk(
    limit: int, mini: Path, trained: Path, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first limit stops model.safetensors, the second state.pt."""
    out, real = tmp_path / "run", checkpoint.save
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(root: Path, iteration: int, *rest: Any) -> Any:
        if root.parent.name == "1_second" and iteration >= 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, kept[1]))
        return real(root, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        try:
            done = run(mini, "--out", out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    refused(done, "iteration_00000004", "earlier checkpoints are untouched", "free space", "--resume")
    checkpoints = out / "stages/1_second/checkpoints"
    # the last good one, and nothing half written
    assert [p.name for p in checkpoints.iterdir()] == ["iteration_00000002"]
    predictor = package.load(out, device="cpu")
    assert (predictor.info["stage"], predictor.info["iteration"]) == ("second", 2)
    assert predictor.predict(next((scene_data / "game/images").iterdir())).shape == (64, 96)
    assert run(mini, "--out", out, "--resume").code == 0
    assert fingerprint(out) == fingerprint(trained)


def test_full_disk_names_the_file(trained: Path, scene_data: Path, tmp_path: Path) -> None:
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "scores.json"
    data = ["--data", "cityscapes:val", "--root", scene_data / "city", "--device", "cpu"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, kept[1]))
    try:
        done = segue("evaluate", "--model", trained, *data, "--json", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    refused(done, str(target), "disk is full")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_logging(tmp_path: Path) -> None:
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    metrics = runs.Metrics(tmp_path / "metrics.jsonl")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, kept[1]))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            metrics.write({"iteration": 1, "loss/source": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        metrics.close()


def test_output_that_cannot_be(mini: Path, trained: Path, scene_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run(mini, "--out", tmp_path / "file"), str(tmp_path / "file"))
    predict = ["predict", "--model", trained, "--input", scene_data / "game/images", "--device", "cpu"]
    refused(segue(*predict, "--out", tmp_path / "file"), str(tmp_path / "file"))


@pytest.mark.parametrize("size", ["64", "64x", "0x64", "-1x64", "axb", "64x64x64", "²x3"])
def test_bad_size(size: str, trained: Path, tmp_path: Path) -> None:
    evaluate = ["evaluate", "--model", trained, "--data", "cityscapes", "--size", size]
    refused(segue(*evaluate), repr(size), "HEIGHTxWIDTH")
    refused(segue("data", "scenes", "--out", tmp_path / "s", "--size", size), repr(size), "HEIGHTxWIDTH")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "32x32"], ["at least 64x64"]),
        (["--domain", "gmae"], ["'gmae'", "game, city"]),
        (["--layout", "kitti"], ["'kitti'", "cityscapes, gta5"]),
        (["--split", "minival"], ["'minival'", "train, val"]),
    ],
)
def test_scenes_that_cannot_be(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    refused(segue("data", "scenes", "--out", tmp_path / "s", *arguments), *words)


def test_evaluate_and_predict_without_their_inputs(trained: Path, scene_data: Path, tmp_path: Path) -> None:
    nowhere, text = tmp_path / "nowhere", tmp_path / "text.png"
    text.write_text("not an image")
    city = ["--root", scene_data / "city", "--device", "cpu"]
    refused(segue("evaluate", "--model", nowhere, "--data", "cityscapes", *city), str(nowhere), "give a run folder")
    evaluate = ["evaluate", "--model", trained, *city]
    refused(segue(*evaluate, "--data", "cityscape:val"), "'cityscape'", "did you mean 'cityscapes'")
    refused(segue(*evaluate, "--data", "cityscapes:vla"), "'vla'", "did you mean 'val'")
    refused(segue(*evaluate, "--data", "cityscapes:val", "--view", "some"), "no view 'some'")
    predict = ["predict", "--model", trained, "--out", tmp_path / "p", "--device", "cpu", "--input"]
    refused(segue(*predict, nowhere), str(nowhere))
    refused(segue(*predict, text), str(text), "not an image")
    refused(segue(*predict, text, "--format", "colour"), "'colour'", "did you mean 'color'")
    refused(segue("predict", "--model", nowhere, "--out", tmp_path / "p", "--input", text), str(nowhere))
    assert not (tmp_path / "p").exists()


def test_other_commands_without_their_inputs(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    refused(segue("report", nowhere), str(nowhere))
    refused(segue("list", "method"), "'method'", "methods")
    refused(segue("data", "check", nowhere), str(nowhere), "dataset.yaml")
    refused(segue("data", "show", "gta6"), "'gta6'", "did you mean 'gta5'")
    refused(segue("config", "show", "dmo"), "did you mean 'demo'")
    refused(segue("config", "validate", "demo", "model.name=bisnet"), "did you mean 'bisenet'")


def test_debug_shows_where(tmp_path: Path) -> None:
    done = process("config", "show", "dmo", "--debug", cwd=tmp_path)
    assert done.code == 1
    assert "Traceback" in done.err
    assert "no recipe 'dmo'" in done.err
