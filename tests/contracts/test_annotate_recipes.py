"""Recipes of ``annotate``: every full-size one on miniatures with a small network, the others whole but short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import miniatures
from segue import recipes
from segue.acquire.state import rounds_of
from segue.data import scenes
from segue.files import read_json
from segue.jobs.run import run

FOLDER = "annotate/"
SMALL = {f"{FOLDER}scenes", f"{FOLDER}idd_lite_camvid"}
FULL = [name for name in recipes.shipped() if name.startswith(FOLDER) and name not in SMALL]
BUYER = {"one_shot": "one_shot", "during_training": "ripu"}
SHORT = ["train.batch_size=2", "train.workers=0", "train.iterations=2", "evaluate.samples=1", "threads=1"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 64x128 in the layouts of the data sets."""
    root = tmp_path_factory.mktemp("trees")
    for name, domain, split in (
        ("gta5", "game", "train"),
        ("synthia", "game", "train"),
        ("cityscapes", "city", "train"),
        ("cityscapes", "city", "val"),
    ):
        look = scenes.domain(domain)
        scenes.write(root / name, num=3, seed=1, domain=look, size=(64, 128), layout=name, split=split)
    return root


def finished(folder: Path, buyer: str) -> list[Any]:
    """Rounds that a finished run has bought."""
    stages = [read_json(path) for path in folder.glob("stages/*/stage.json")]
    assert stages and all(stage["status"] == "finished" for stage in stages)
    return rounds_of(folder / "annotate" / buyer)


OFTEN = ("gta5_cityscapes_deeplabv2", "one_shot")
"""The others differ from the first in data or network."""


@pytest.mark.parametrize(
    "name", [n if n.removeprefix(FOLDER) in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in FULL]
)
def test_a_recipe_on_a_small_network(name: str, trees: Path, tmp_path: Path) -> None:
    published = recipes.load(name, environment={})
    assert published.optim.lr == 0.00025 and published.model["head_lr_factor"] == 10
    buyer = BUYER.get(name.removeprefix(FOLDER), "d2ada")
    settings = ["model.encoder=mobilenetv3_small_050", "model.weights=null"]
    settings += [f"data.{d}.root={trees / d}" for d in published.data if (trees / d).is_dir()]
    settings += [f"data.{d}.size=[64,128]" for d in published.data]
    for stage in {s.name.rpartition("_")[0] if s.name.startswith("d2ada_") else s.name for s in published.stages}:
        settings.append(f"stages.{stage}.train.iterations={6 if stage == 'ripu' else 2}")
    rounds = 1 if buyer == "one_shot" or "v3plus" in name or "synthia" in name else 2
    settings += {
        "d2ada": [f"stages.d2ada.rounds={rounds}"],
        "one_shot": ["stages.one_shot.transform.crop=[64,64]"],
        "ripu": ["stages.ripu.annotate.at=[2,3]"],
    }[buyer]
    given = recipes.load(name, [*settings, *SHORT], environment={})
    found = finished(run(given, tmp_path / "run", device="cpu").folder, buyer)
    assert [r.info.round for r in found] == [1, 2][:rounds]
    assert all(r.rows and not r.missing() for r in found)


def test_the_small_form(trees: Path, tmp_path: Path) -> None:
    roots = [f"data.game.root={trees / 'gta5'}", f"data.city.root={trees / 'cityscapes'}", "model.width=0.125"]
    given = recipes.load(f"{FOLDER}scenes", environment={})
    groups = ("random", "entropy", "d2ada")
    assert all(sum(s.name.startswith(f"{group}_") for s in given.stages) == 5 for group in groups)
    stages = {"source_only", "target_supervised"}
    short = [*(f"stages.{s}.train.iterations=2" for s in stages), *(f"stages.{g}.rounds=1" for g in groups)]
    given = recipes.load(f"{FOLDER}scenes", [*roots, *SHORT, *short], environment={})
    folder = run(given, tmp_path / "run", device="cpu").folder
    for group in groups:
        assert len(finished(folder, group)) == 1
    regions = [{(row.image, row.region) for row in finished(folder, group)[0].rows} for group in groups]
    assert regions[0] != regions[1], "the same budget, other regions"


def test_real_photographs(tmp_path: Path) -> None:
    for name in ("camvid", "idd_lite"):
        miniatures.make(name, tmp_path / name)
    settings = [f"data.{d}.root={tmp_path / d}" for d in ("camvid", "idd_lite")]
    settings += [f"data.{d}.size=[64,96]" for d in ("camvid", "idd_lite")]
    settings += ["model.weights=null", "model.encoder=mobilenetv3_small_050", "transform.crop=[64,64]"]
    for stage in ("warmup", "target_supervised", "random", "d2ada"):
        settings.append(f"stages.{stage}.train.iterations=2")
    settings += [f"stages.{g}.rounds=1" for g in ("random", "d2ada")]
    given = recipes.load(f"{FOLDER}idd_lite_camvid", [*settings, *SHORT], environment={})
    folder = run(given, tmp_path / "run", device="cpu").folder
    assert len(finished(folder, "d2ada")) == len(finished(folder, "random")) == 1
