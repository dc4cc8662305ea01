"""Recipes of ``adapt/realtime``: every full-size one planned and trained for two iterations, the small one whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segue import recipes
from segue.compare import show
from segue.compare.table import compare
from segue.config import Recipe
from segue.data import scenes
from segue.files import read_json
from segue.jobs import plan as planning
from segue.jobs.run import run

FOLDER = "adapt/realtime/"
SMALL = f"{FOLDER}scenes"
STEPS = [name for name in recipes.shipped() if name.startswith(FOLDER) and name != SMALL]
SHIFT = f"{FOLDER}domain_shift"


def write(root: Path, size: tuple[int, int]) -> Path:
    """GTA5 and Cityscapes in their own layouts, a few images."""
    for name, layout, split in (
        ("game", "gta5", "train"),
        ("city", "cityscapes", "train"),
        ("city", "cityscapes", "val"),
    ):
        scenes.write(root / name, num=3, seed=1, domain=scenes.domain(name), size=size, layout=layout, split=split)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 96x192."""
    return write(tmp_path_factory.mktemp("small"), (96, 192))


@pytest.fixture(scope="module")
def full_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of Cityscapes' size."""
    return write(tmp_path_factory.mktemp("full"), (1024, 2048))


def load(name: str, data: Path, *more: str) -> Recipe:
    """A full-size recipe on generated trees, two iterations of two images."""
    roots = [f"data.gta5.root={data / 'game'}", f"data.cityscapes.root={data / 'city'}"]
    short = ["train.epochs=null", "train.iterations=2", "train.batch_size=2", "train.workers=0", "evaluate.samples=1"]
    return recipes.load(name, [*roots, *short, "threads=1", *more], environment={})


def needs(name: str, folder: Path, data: Path, *more: str) -> list[str]:
    """Overrides that a recipe cannot do without: the model that ``domain_shift`` is about."""
    if name != SHIFT:
        return []
    model = run(load(f"{FOLDER}source_supervised", data, *more), folder / "model", device="cpu").folder
    return [f"stages.domain_shift.references.model={model}"]


def check(name: str, recipe: Recipe, folder: Path) -> None:
    """Planned, trained and scored, stage by stage."""
    planned = planning.plan(recipe, device="cpu", out=folder, trial=False)
    assert [s.name for s in planned.stages] == [s.name for s in recipe.stages]
    found = run(recipe, folder / "run", device="cpu").stages[0]
    for stage in recipe.stages:
        record = found[stage.name]
        assert record["status"] == "finished" and record["iterations"] == (2 if stage.data else 0), name
        assert set(record["evaluations"]) == set(recipe.evaluate.data)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_a_small_network(name: str, data: Path, tmp_path: Path) -> None:
    small = ["model.width=0.125", "data.gta5.size=[64,128]", "data.cityscapes.size=[64,128]"]
    recipe = load(name, data, *small, *needs(name, tmp_path, data, *small))
    check(name, recipe, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_step_at_full_size(name: str, full_data: Path, tmp_path: Path) -> None:
    recipe = load(name, full_data, *needs(name, tmp_path, full_data))
    assert recipe.data["gta5"].size == recipe.data["cityscapes"].size == (512, 1024)
    assert recipe.model["backbone"] == "stdc813" and "width" not in recipe.model
    check(name, recipe, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small form, two iterations a stage."""
    folder = tmp_path_factory.mktemp("whole")
    data = write(folder / "data", (64, 96))
    settings = [f"data.game.root={data / 'game'}", f"data.city.root={data / 'city'}", "train.iterations=2"]
    recipe = recipes.load(SMALL, [*settings, "model.width=0.125", "train.batch_size=2"], environment={})
    return run(recipe, folder / "run", device="cpu").folder


def stage(folder: Path, name: str) -> dict[str, Any]:
    """stage.json of a stage."""
    (path,) = folder.glob(f"stages/*_{name}/stage.json")
    record: dict[str, Any] = read_json(path)
    return record


def test_multi_band_is_the_mean_probability_of_the_three(whole: Path) -> None:
    from segue import evaluate, load

    members = [load(next(whole.glob(f"stages/*_fda_beta{beta}"))) for beta in ("01", "05", "09")]
    data = next(iter(whole.parent.glob("data/city")))
    asked = evaluate(members, "cityscapes:val", root=data)
    record = stage(whole, "multi_band")
    assert record["evaluations"]["city:val"]["confusion"] == asked["confusion"]
    assert record["parameters"] == 3 * stage(whole, "fda_beta01")["parameters"] and record["training"] is None


def test_rounds_learn_from_the_one_before(whole: Path) -> None:
    first, second = stage(whole, "round_1"), stage(whole, "round_2")
    assert (first["start"], second["start"]) == ("fda_beta01", "round_1")
    folders = [next(whole.glob(f"stages/*_round_{k}")) / "pseudo_labels/target/city_train" for k in (1, 2)]
    models = [read_json(folder / "index.json")["models"] for folder in folders]
    assert [len(m) for m in models] == [3, 1]
    made = second["pseudo_labels"]["target"]["city:train"]
    assert 0 < made["share_kept"] < 1 and len(made["thresholds"]) == 19
    shown = f"city:train: {100 * made['share_kept']:.0f} % of the pixels pseudo-labelled"
    assert shown in (whole / "report.html").read_text()


def test_the_table_of_all_steps(whole: Path) -> None:
    found = compare([whole], "city:val")
    assert [line.entry.stage for line in found.lines][-3:] == ["multi_band", "round_1", "round_2"]
    assert all(line.time["wall_s_scoring"] > 0 for line in found.lines)
    trained = [line for line in found.lines if line.entry.stage != "multi_band"]
    assert all(line.time["wall_s_per_epoch"] > 0 for line in trained)
    rows = show.to_csv(found).splitlines()
    assert len(rows) == 1 + len(found.lines) and "wall_s_scoring" in rows[0]
