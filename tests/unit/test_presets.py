"""Presets stand below a stage's own settings, can be taken apart, and are explained."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.command import segue
from segue import recipes
from segue.config import Recipe
from segue.methods.parts.base import part_configs
from segue.presets import fragment, presets

DAFORMER = "adapt/selftraining/gta5_cityscapes"


def load(*overrides: str) -> Recipe:
    return recipes.load(DAFORMER, overrides, environment={})


def method(*overrides: str) -> dict[str, Any]:
    return load(*overrides).stages[0].method


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_listed(name: str) -> None:
    found = load(f"stages.adapted.preset={name}").stages[0]
    assert found.preset is None and found.method["name"] == fragment(name)["method"]["name"]
    assert part_configs(found.method.get("parts", {})).keys() == found.method.get("parts", {}).keys()
    assert name in segue("list", "presets").out


def test_the_stage_s_own_settings_win_and_the_preset_s_others_stay() -> None:
    found = method("stages.adapted.method.parts.feature_distance.weight=0.01", "stages.adapted.method.threshold=0.9")
    assert (found["alpha"], found["threshold"], found["margin"]["bottom"]) == (0.999, 0.9, 0.2344)
    assert found["parts"] == {"feature_distance": {"weight": 0.01}}


def test_a_part_is_switched_off() -> None:
    found = method("stages.adapted.preset=mic", "stages.adapted.method.parts.feature_distance=null")
    assert list(part_configs(found["parts"])) == ["masked_consistency"]


def test_another_method_takes_nothing_of_the_preset_s() -> None:
    found = method("stages.adapted.method={name: minent, parts: {masked_consistency: {}}}")
    assert found == {"name": "minent", "parts": {"masked_consistency": {}}}


def test_another_network_takes_no_settings_of_the_one_below() -> None:
    given = recipes.load(f"{DAFORMER}_hrda", environment={})
    assert "variant" not in given.model and given.model["name"] == "hrda"


def test_what_was_resolved_runs_to_the_same() -> None:
    given = load("stages.adapted.preset=dida")
    text = recipes.to_yaml(given)
    assert "preset" not in text
    assert recipes.validate(recipes.yaml.safe_load(text)) == given


def test_where_a_value_comes_from() -> None:
    lines = segue("config", "show", DAFORMER, "--why", "stages.adapted.preset=mic").out.splitlines()
    told = {line.split(" = ")[0]: line.split("# ")[-1] for line in lines}
    assert told["stages.0.method.alpha"] == "preset mic"
    assert told["stages.0.method.margin.top"].endswith("gta5_cityscapes.yaml")


def test_an_unknown_preset_and_unknown_parts_are_told_with_the_nearest_name() -> None:
    for settings, words in (
        (["stages.adapted.preset=daformr"], ["preset 'daformr'", "daformer"]),
        (["stages.adapted.method.parts.feature_distanc={}"], ["part 'feature_distanc'", "feature_distance"]),
        (
            ["stages.adapted.method.parts.feature_distance.wieght=1"],
            ["stages.adapted.method.parts.feature_distance.wieght", "weight"],
        ),
    ):
        done = segue("config", "validate", DAFORMER, *settings)
        assert done.code == 2 and all(word in done.err for word in words), done.err
