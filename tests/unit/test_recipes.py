"""Recipes: precedence, overrides, explanations, faults told all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segue import recipes
from segue.recipes import ConfigError

BASE = """
name: base
labels: cityscapes19
model: {name: bisenet, width: 0.25}
data: {game: , city: {dataset: cityscapes}}
train: {iterations: 10, batch_size: 2}
stages:
  - {name: a, method: supervised, data: {source: game:train}}
  - {name: b, method: supervised, data: {source: [{data: game, weight: 2}, city]}, train: {epochs: 3}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def test_precedence(base: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nname: child\ntrain: {batch_size: 4}\noptim: {lr: 0.1}\n")
    environment = {"SEGUE__OPTIM__LR": "0.2", "SEGUE__SEED": "5"}
    got = recipes.load(child, ["optim.lr=0.3"], environment)
    assert (got.name, got.train.iterations, got.train.batch_size) == ("child", 10, 4)
    assert (got.seed, got.optim.lr) == (5, 0.3)
    _, why = recipes.collect(child, ["optim.lr=0.3"], environment)
    assert why["optim.lr"] == "command line"
    assert why["seed"] == "environment SEGUE__SEED"
    assert why["train.batch_size"] == str(child)
    assert why["train.iterations"] == str(base)


def test_stage_overrides_by_name_and_number(base: Path) -> None:
    got = recipes.load(base, ["stages.a.method.criterion.name=ohem", "stages.1.optim.lr=1e-3"], {})
    assert got.stages[0].method == {"name": "supervised", "criterion": {"name": "ohem"}}
    assert got.optim_of(got.stages[1]).lr == 1e-3
    assert got.optim_of(got.stages[0]).lr == 0.01


def test_stage_length_replaces_the_other_unit(base: Path) -> None:
    got = recipes.load(base, [], {})
    assert got.train_of(got.stages[1]).iterations is None
    assert got.train_of(got.stages[1]).epochs == 3
    assert [m.weight for m in got.stages[1].data["source"]] == [2, 1]


def test_resolved_recipe_runs_to_the_same_recipe(base: Path, tmp_path: Path) -> None:
    first = recipes.load(base, ["train.iterations=7"], {})
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipes.to_yaml(first))
    assert recipes.load(copy, [], {}) == first


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.itertions=3", ["train.itertions", "did you mean 'iterations'"]),
        ("train.batch_size=-1", ["train.batch_size", "-1"]),
        ("stages.c.name=x", ["no item 'c'", "a, b"]),
        ("stages.a.data.source=gam:train", ["'gam'", "did you mean 'game'"]),
        ("stages.a.train.lr=3", ["stages.a.train.lr"]),
        ("stages.b.name=a", ["two stages", "'a'"]),
        ("evaluate.data=[citty:val]", ["'citty'", "did you mean 'city'"]),
        ("train.best=city:val", ["train.best"]),
        ("optim.schedule.name=cosine", ["optim.schedule.name", "cosine"]),
        ("train.epochs=2", ["either 'iterations' or 'epochs'"]),
        ("nonsense", ["key=value"]),
        ("train.accumulate=3", ["not divisible"]),
    ],
)
def test_faults_are_named(base: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.load(base, [override], {})
    for word in words:
        assert word in str(caught.value)


def test_all_faults_at_once(base: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.load(base, ["train.itertions=3", "optim.lrr=1", "seed=-1"], {})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\x00"])
def test_unreadable_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        recipes.load(path)


def test_several_bases(tmp_path: Path) -> None:
    """Each base goes over those before it, the file over all of them."""
    (tmp_path / "roots.yaml").write_text("data: {game: {root: /there}}\ntrain: {batch_size: 2}\nname: roots\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: [demo, roots.yaml]  # the site\nname: child\n")
    found = recipes.load(child, environment={})
    assert (found.name, found.train.batch_size, str(found.data["game"].root)) == ("child", 2, "/there")
    assert found.stages == recipes.load("demo", environment={}).stages
    assert "extends: [demo, roots.yaml]" in recipes.portable(child)


def test_rounds_are_written_out() -> None:
    data = yaml.safe_load(recipes.find("adapt/realtime/pseudo_labels").read_text())
    labels = {"models": ["fda_beta01"], "quantile": 0.5}
    stages = [*data["stages"][:1], {**data["stages"][-1], "rounds": 3, "pseudo_labels": {"target": labels}}]
    stages.append({"name": "scored", "method": "evaluation", "references": {"model": "round"}, "role": "source_only"})
    found = recipes.load(
        {
            **recipes.collect("demo")[0],
            "data": {"gta5": {}, "cityscapes": {}},
            "stages": stages,
            "evaluate": {"data": ["cityscapes:val"]},
        },
        environment={},
    )
    rounds = found.stages[1:-1]
    assert [s.name for s in rounds] == ["round_1", "round_2", "round_3"]
    assert [s.start for s in rounds] == [None, "round_1", "round_2"]
    assert [s.pseudo_labels["target"].models for s in rounds] == [("fda_beta01",), ("round_1",), ("round_2",)]
    assert {s.pseudo_labels["target"].quantile for s in rounds} == {0.5}
    assert [s.role for s in rounds] == [None, None, "adapted"]
    assert found.stages[-1].references == {"model": "round_3"}
    assert recipes.validate(yaml.safe_load(recipes.to_yaml(found))) == found, "what is written runs to the same"


def test_circle_and_missing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        recipes.load(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="demo"):
        recipes.load("dmo")


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_are_valid_and_say_how_to_run_them(name: str) -> None:
    path = recipes.find(name)
    assert recipes.load(name, environment={}).stages
    assert path.read_text().startswith("# segue ")
    assert yaml.safe_load(path.read_text())
