"""Recipes of ``adapt/selftraining``: every full-size one on miniatures with a small network, the small one whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import miniatures
from segue import recipes
from segue.data import scenes
from segue.files import read_json
from segue.jobs.run import run

FOLDER = "adapt/selftraining/"
OF_THEIR_OWN = ("scenes", "real_pair")
FULL = [name for name in recipes.shipped() if name.startswith(FOLDER) and not name.endswith(OF_THEIR_OWN)]
NETWORKS = {
    "vit": ["model.encoder=vit_tiny_patch16_224", "model.image_px=64", "model.channels=16"],
    "hrda": ["model.base={name: daformer, variant: b0, channels: 16}", "model.window_px=[64,64]"],
    "": ["model.variant=b0", "model.channels=16"],
}
"""Ending of a recipe's name -> the same network, small."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set in its published layout, a few pictures."""
    root = tmp_path_factory.mktemp("trees")
    for name in ("gta5", "cityscapes", "synthia", "acdc", "dark_zurich"):
        miniatures.make(name, root / name)
    return root


@pytest.mark.parametrize("name", [FULL[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FULL[1:])])
def test_a_recipe_on_a_small_network(name: str, trees: Path, tmp_path: Path) -> None:
    published = recipes.load(name, environment={})
    assert published.train.iterations == 40000 and published.optim.name == "adamw"
    network = next(more for ending, more in NETWORKS.items() if name.endswith(ending))
    data = [f"data.{d}.root={trees / d}" for d in published.data] + [f"data.{d}.size=[64,128]" for d in published.data]
    short = ["train.iterations=2", "train.batch_size=2", "train.workers=0", "transform.crop=[64,64]", "threads=1"]
    settings = [*network, *data, *short, "model.weights=null", "evaluate.samples=1"]
    (stage,) = published.stages
    if stage.streams:
        settings.append(f"stages.{stage.name}.streams.source.rare_class.min_px=1")
    if stage.method.get("parts", {}).get("masked_consistency"):  # else the one block hides whole images
        settings.append(f"stages.{stage.name}.method.parts.masked_consistency.block_px=16")
    (found,) = run(recipes.load(name, settings, environment={}), tmp_path, device="cpu").stages[0].values()
    assert found["status"] == "finished" and found["iterations"] == 2
    assert set(found["evaluations"]) == set(published.evaluate.data)


def test_without_weights_a_recipe_says_so(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = [f"data.{d}.root={trees / d}" for d in ("gta5", "cityscapes")]
    with pytest.raises(ValueError, match=r"mit_b5\.pth"):
        run(recipes.load(f"{FOLDER}gta5_cityscapes", data, environment={}), tmp_path / "run", device="cpu")
    assert not list(tmp_path.rglob("stages"))


def test_the_small_form_whole(tmp_path: Path) -> None:
    for name, layout, split in (
        ("game", "gta5", "train"),
        ("city", "cityscapes", "train"),
        ("city", "cityscapes", "val"),
    ):
        domain = scenes.domain(name)
        scenes.write(tmp_path / name, num=3, seed=1, domain=domain, size=(64, 96), layout=layout, split=split)
    settings = [f"data.game.root={tmp_path / 'game'}", f"data.city.root={tmp_path / 'city'}"]
    small = ["train.iterations=2", "train.batch_size=2", "model.width=0.125"]
    recipe = recipes.load(f"{FOLDER}scenes", [*settings, *small], environment={})
    folder = run(recipe, tmp_path / "run", device="cpu").folder
    for number, stage in enumerate(recipe.stages):
        assert read_json(folder / f"stages/{number}_{stage.name}/stage.json")["status"] == "finished"
