"""Recipes of ``extend``: every one trained for two iterations a stage on miniatures, with small networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import miniatures
from segue import recipes
from segue.config import Recipe
from segue.data import scenes
from segue.data.catalog import load
from segue.jobs.run import RunResult, run
from segue.report.extension import ledger_of
from segue.report.read import read_run
from segue.tasks import load_task

FOLDER = "extend/"
NAMES = [name for name in recipes.shipped() if name.startswith(FOLDER)]
CITIES = {1: "hanover", 2: "jena", 3: "krefeld", 0: "erfurt"}
SHORT = ["train.epochs=null", "train.batch_size=2", "train.workers=0", "evaluate.samples=0", "threads=1"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in cities of every step and of none, and pictures of CamVid and VOC that show every class."""
    root = tmp_path_factory.mktemp("trees")
    city = scenes.domain("city")
    scenes.write(root / "cityscapes", num=2, seed=2, domain=city, size=(64, 64), split="val")
    scenes.write(root / "drawn", num=8, seed=1, domain=city, size=(64, 64), split="train")
    for kind in ("leftImg8bit", "gtFine"):
        for path in sorted(root.glob(f"drawn/{kind}/train/*/*.png")):
            number = int(path.name.split("_")[1])
            name = f"{CITIES[number % 4]}_{path.name.partition('_')[2]}"
            target = root / "cityscapes" / kind / "train" / CITIES[number % 4] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    spec = load("camvid")
    for split in ("train", "val"):
        for number in range(6 if split == "train" else 1):
            miniatures.save(root / f"camvid/{split}/{number}.png", miniatures.picture(number, (64, 64)))
            label = miniatures.file_ids(spec, spec.labels[0], number, (64, 64))
            miniatures.save(root / f"camvid/{split}annot/{number}.png", np.minimum(label, 11))
    miniatures.make("voc2012", root / "voc2012")
    return root


def small(name: str, trees: Path, *more: str) -> Recipe:
    """A recipe on the miniatures, two iterations a stage."""
    given = recipes.load(name, environment={})
    settings = [*SHORT, "train.iterations=2", "transform.crop=[64,64]", *more]
    for data in given.data:
        source = given.data[data].dataset or data
        settings += [f"data.{data}.root={trees / source}", f"data.{data}.size=[64,64]"]
    model = given.model["name"]
    settings.append("model.weights=none")
    if model.startswith("deeplab"):
        settings += ["model.encoder=mobilenetv3_small_050", "model.channels=16"]
    if model == "bisenet":
        settings.append("model.width=0.125")
    for stage in given.stages:
        if "epochs" in stage.train or "iterations" in stage.train:
            settings.append(f"stages.{stage.name}.train={{iterations: 2}}")
    return recipes.load(name, settings, environment={})


def trained(name: str, trees: Path, folder: Path, *more: str) -> RunResult:
    """The run of a recipe, after checks of what every step stores."""
    recipe = small(name, trees, *more)
    result = run(recipe, folder / "run", device="cpu")
    task = load_task(recipe.task or "")
    target = recipe.evaluate.data[0]
    for stage in recipe.stages:
        record = result.stages[0][stage.name]
        assert record["status"] == "finished" and record["iterations"] == 2
        assert record["extend"]["step"] == stage.step and record["extend"]["task"] == task.name
        assert list(record["evaluations"][target]["tasks"]) == list(task.tasks(stage.step))
        assert record["extend"]["old_data"] == (stage.method["name"] == "replay")
    return result


OFTEN = ("cil_cityscapes", "camvid_5_3_3", "scenes_5_6_8")
"""The others differ from the first in a method, whose chain `test_extend.py` trains."""


@pytest.mark.parametrize(
    "name", [n if n.removeprefix(FOLDER) in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_a_recipe_on_a_small_network(name: str, trees: Path, tmp_path: Path) -> None:
    result = trained(name, trees, tmp_path)
    found = ledger_of(read_run(result.folder))
    steps = load_task(recipes.load(name, environment={}).task or "").steps
    assert all(chain.steps == tuple(range(1, steps + 1)) for chain in found.chains)
    assert len(found.chains) == {"extend/all_classes": 0}.get(name, 3 if "_3" in name or "_8" in name else 1)
    html = (result.folder / "report.html").read_text("utf-8")
    assert "Class-incremental steps" in html and "Task 1∪2" in html


def test_images_of_a_step_are_those_of_its_cities(trees: Path, tmp_path: Path) -> None:
    result = trained(f"{FOLDER}replay", trees, tmp_path, "stages.replay_3.memory=3")
    told = [record["extend"] for record in result.stages[0].values()]
    assert [row["images"] for row in told] == [2, 2, 2]
    assert [row["old_images"] for row in told] == [0, 2, 3] and told[2]["stored_bytes"] > 0
    everything = trained(f"{FOLDER}all_classes", trees, tmp_path / "all").stages[0]["all_classes"]["extend"]
    assert everything["images"] == 6 and len(everything["taught"]) == 19, "Erfurt is held out"


def test_the_published_values_of_cil() -> None:
    recipe = recipes.load(f"{FOLDER}cil_cityscapes", environment={})
    optim, train, transform = recipe.optim, recipe.train, recipe.transform
    assert (optim.name, optim.lr, optim.weight_decay, optim.schedule.unit) == ("adam", 5e-4, 3e-4, "epoch")
    assert (train.epochs, train.batch_size) == (200, 6)
    assert recipe.data["cityscapes"].size == (512, 1024) and transform.crop == (192, 640)
    assert (transform.brightness, transform.contrast, transform.saturation, transform.hue) == (0.2, 0.2, 0.2, 0.1)
    assert all(stage.start is None for stage in recipe.stages), "every student starts from ImageNet"
    assert [stage.references for stage in recipe.stages] == [{}, {"teacher": "step_1"}, {"teacher": "cil_2"}]
