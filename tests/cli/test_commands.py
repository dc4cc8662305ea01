"""Every command once on miniature data, what it prints and what it writes; and the same from Python."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import segue as package
from helpers.command import files, process, segue
from helpers.recipes import recipe
from segue import recipes
from segue.files import read_json
from segue.jobs import demo
from segue.labels import load_space

ROLES = {"source_only", "adapted", "target_supervised"}


def said(*arguments: object) -> str:
    """Standard output of a command that must succeed."""
    done = segue(*arguments)
    assert done.code == 0, done
    return done.out


def test_run(trained: Path) -> None:
    for name in ("run.json", "config.yaml", "result.json", "report.html", "run.lock"):
        assert (trained / name).is_file(), name
    for stage in ("0_first", "1_second"):
        assert read_json(trained / "stages" / stage / "stage.json")["status"] == "finished"
        assert (trained / "stages" / stage / "metrics.jsonl").stat().st_size
    result = read_json(trained / "result.json")
    assert set(result["miou"]) == {"source_only", "adapted"}
    assert "gap_closed" not in result, "without a supervised run on the target there is no gap"
    assert recipes.load(trained / "config.yaml", environment={}).name == "mini", "config.yaml is runnable"
    assert b"http" not in (trained / "report.html").read_bytes().replace(b"http://www.w3.org", b"")


def test_run_without_a_folder_and_resume_the_newest(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["train.iterations=2", "stages.second.train.iterations=1", "--seeds", "3,1", "--device", "cpu"]
    assert "median seed" in said("run", mini, *short)
    (folder,) = (tmp_path / "runs/mini").iterdir()
    before = files(folder)
    said("run", mini, *short, "--resume")
    assert [p.name for p in (tmp_path / "runs/mini").iterdir()] == [folder.name]
    weights = [name for name in before if name.endswith(("state.pt", "model.safetensors"))]
    assert len(weights) == 8
    assert {name: files(folder)[name] for name in weights} == {name: before[name] for name in weights}
    median = read_json(folder / "result.json")["median_seed"]
    assert package.load(folder, device="cpu").info["run"] == str(Path("runs/mini") / folder.name / f"seed_{median}")


def test_evaluate(trained: Path, scene_data: Path, tmp_path: Path) -> None:
    data = ["--data", "cityscapes:val", "--root", scene_data / "city", "--device", "cpu"]
    text = said("evaluate", "--model", trained, *data, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    stage = read_json(trained / "stages/1_second/stage.json")["evaluations"]["city:val"]
    assert scores["confusion"] == stage["confusion"], "the numbers are those of the run"
    assert scores["model"]["stage"] == "second"
    assert scores["model"]["chosen"] == "last"
    assert "stage second, iteration 6, checkpoint last" in text
    assert f"mIoU {100 * scores['miou']:5.1f}" in text
    assert "(6 images)" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(load_space("cityscapes19").classes)
    small = said("evaluate", "--model", trained / "stages/0_first", *data, "--size", "32x48")
    assert "stage first, iteration 2" in small


def test_predict(trained: Path, scene_data: Path, tmp_path: Path) -> None:
    space = load_space("cityscapes19")
    images = scene_data / "city/leftImg8bit/val"
    image = next(images.rglob("*.png"))
    ids = package.load(trained, device="cpu").predict(image)
    assert (ids.shape, ids.dtype) == ((64, 96), np.uint8)
    wanted = {"trainid": ids, "labelid": space.to_label_ids(ids), "color": space.colorize(ids)}
    for name in ("trainid", "labelid", "color", "overlay"):
        out = tmp_path / name
        common = ["predict", "--model", trained, "--out", out, "--format", name, "--device", "cpu"]
        assert said(*common, "--input", image) == f"1 predictions in {out}\n"
        (written,) = out.iterdir()
        found = np.asarray(Image.open(written))
        assert written.name == image.name
        assert found.shape[:2] == (64, 96)
        if name in wanted:
            assert np.array_equal(found, wanted[name])
    assert said("predict", "--model", trained, "--input", images, "--out", tmp_path / "all").startswith("6 predictions")
    assert (tmp_path / "all" / image.relative_to(images)).is_file()


def test_report(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    page = tmp_path / "run/report.html"
    page.unlink()
    assert said("report", tmp_path / "run") == f"{page}\n"
    assert "second" in page.read_text()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", ["batch_statistics", "fda", "self_training", "supervised"]),
        ("models", ["bisenet", "deeplabv3plus"]),
        ("datasets", ["camvid", "cityscapes", "gta5", "idd_lite"]),
        ("recipes", ["adapt/camvid_idd", "demo"]),
        ("spaces", ["camvid11", "cityscapes19", "street7"]),
        ("domains", ["game", "city", "random-SEED"]),
    ],
)
def test_list(kind: str, names: list[str]) -> None:
    found = [line.split()[0] for line in said("list", kind).splitlines()]
    assert set(names) <= set(found)


def test_config(mini: Path, tmp_path: Path) -> None:
    shown = yaml.safe_load(said("config", "show", mini, "optim.lr=0.5"))
    assert (shown["name"], shown["optim"]["lr"]) == ("mini", 0.5)
    why = said("config", "show", mini, "optim.lr=0.5", "--why").splitlines()
    assert "optim.lr = 0.5   # command line" in why
    assert f'optim.name = "adamw"   # {mini}' in why
    assert "train.accumulate = 1   # default" in why
    assert "2 stages, no faults" in said("config", "validate", mini)
    copy = tmp_path / "mine.yaml"
    assert said("config", "copy", "demo", copy) == f"{copy}\n"
    assert copy.read_bytes() == recipes.find("demo").read_bytes()
    assert segue("config", "copy", "demo", copy).code == 2, "never overwritten"
    assert json.loads(said("config", "schema"))["properties"]["stages"]


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_copied_recipe_means_the_same(name: str, tmp_path: Path) -> None:
    said("config", "copy", name, tmp_path / "mine.yaml")
    assert recipes.load(tmp_path / "mine.yaml") == recipes.load(name)


def test_scenes_and_what_looks_at_them(tmp_path: Path) -> None:
    small = ["--num", "2", "--size", "64x96"]
    city, game, between = (tmp_path / name for name in ("city", "game", "between"))
    assert said("data", "scenes", "--out", city, *small, "--split", "val") == f"2 scenes in {city}\n"
    said("data", "scenes", "--out", game, *small, "--domain", "game", "--layout", "gta5")
    said("data", "scenes", "--out", between, *small, "--domain", "game-city-0.5", "--split", "val")
    assert len(list((city / "leftImg8bit/val").rglob("*.png"))) == 2
    assert len(list((game / "labels").glob("*.png"))) == 2
    pictures = [next((root / "leftImg8bit/val").rglob("*.png")).read_bytes() for root in (city, between)]
    assert pictures[0] != pictures[1], "drift changes the picture"
    again = tmp_path / "again"
    said("data", "scenes", "--out", again, *small, "--split", "val")
    assert files(again) == files(city), "equal seeds give equal files"
    stream = said("data", "scenes", "--out", tmp_path / "stream", *small, "--domain", "game", "--to", "city")
    assert stream.endswith(f"drifted: {tmp_path / 'stream/drift.json'}\n")
    assert "drifts to" in segue("data", "scenes", "--out", again, "--steps", "2").err

    checked = segue("data", "check", "gta5", "--root", game)
    assert (checked.code, checked.out) == (0, "")
    assert checked.err.endswith("2 images; 0 problems; 0 warnings\n")
    page = tmp_path / "page.html"
    said("data", "show", "cityscapes:val", "--root", city, "--out", page)
    assert page.read_text().count("<figure>") == 4
    label = next((game / "labels").glob("*.png"))
    label.write_bytes(label.read_bytes()[:100])
    checked = segue("data", "check", "gta5", "--root", game)
    assert checked.code == 2
    assert str(label) in checked.out
    assert "1 problem (1 unreadable)" in checked.err


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo itself with fewer and smaller images and two iterations a stage."""
    monkeypatch.setattr(demo, "SIZE", (64, 96))
    monkeypatch.setattr(demo, "DOMAINS", tuple((*row[:3], 4, row[4]) for row in demo.DOMAINS))
    monkeypatch.setenv("SEGUE__TRAIN__ITERATIONS", "2")
    out = tmp_path / "a demo #1"
    text = said("demo", "--out", out, "--seeds", "0,1")
    result = read_json(out / "result.json")
    assert set(result["miou"]) == ROLES
    assert {"gap_closed", "cpu_s", "seeds", "median_seed", "per_seed", "checkpoint", "data"} <= set(result)
    assert result["seeds"] == [0, 1]
    assert result["cpu_s"] > 0
    assert all(role in text for role in ROLES)
    assert "report.html" in text
    assert package.load(out, device="cpu").info["stage"] == "adapted", "of a run folder the adapted model is meant"
    scenes = files(out / "data")
    assert segue("demo", "--out", out, "--seeds", "0,1").code == 2
    said("demo", "--out", out, "--seeds", "0,1", "--resume")
    assert files(out / "data") == scenes
    assert {k: v for k, v in read_json(out / "result.json").items() if k in ("miou", "per_seed")} == {
        k: v for k, v in result.items() if k in ("miou", "per_seed")
    }


def test_python(scene_data: Path, tmp_path: Path) -> None:
    given = recipe(scene_data, "batch_statistics", evaluate_every=None)
    kept = json.loads(json.dumps(given))
    result = package.run(given, tmp_path / "run", overrides=["train.iterations=2"], device="cpu")
    assert given == kept, "the caller's containers stay as they are"
    assert set(result.stages[0]) == {"first", "second"}
    predictor = package.load(result.folder, device="cpu")
    image = np.zeros((50, 70, 3), np.uint8)
    assert predictor.predict(image).shape == (50, 70)
    scores = package.evaluate(predictor, "cityscapes:val", root=scene_data / "city")
    assert 100 * scores["miou"] == pytest.approx(result.summary["miou"]["adapted"])


LIGHT = [
    ["--help"],
    ["run", "--help"],
    ["config", "show", "demo"],
    ["config", "show", "demo", "--why"],
    ["config", "schema"],
    ["config", "copy", "demo", "copy.yaml"],
    ["list", "recipes"],
    ["list", "datasets"],
]


def test_looking_imports_no_torch(tmp_path: Path) -> None:
    """Help and recipes answer at once; one process each for --help, whose CPU time is printed, and for the rest."""
    check = "import atexit\natexit.register(lambda: print('TORCH', 'torch' in sys.modules))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = process("--help", code=check, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"segue --help: {after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.2f} CPU-seconds")
    assert "Run a recipe" in shown.out
    assert "TORCH False" in shown.out
    rest = f"""
import segue
{check}
for arguments in {LIGHT!r}:
    sys.argv = ["segue", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments
    assert "torch" not in sys.modules, arguments
sys.argv = ["segue", "list", "spaces"]
"""
    done = process(code=rest, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "TORCH False" in done.out
    assert "cityscapes19" in done.out
