"""The follow job: buckets of a stream, weak labels of each, no source image, exact resume wherever it is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import checkpoint, engine, files, recipes, runs
from segue.data.buckets import EqualCount, make_buckets
from segue.data.view import View
from segue.errors import UserError
from segue.gap.distances import image_distances
from segue.gap.fingerprint import count
from segue.gap.networks import extractor_of
from segue.gap.ranges import measure
from segue.gap.reading import images_of
from segue.hardware import launch
from segue.jobs import follow, stages, stream
from segue.jobs.build import build_method, build_streams, model_config
from segue.jobs.checks import prepare
from segue.jobs.run import run
from segue.models.anchor import blank_anchor
from segue.pseudo_labels.write import Writer

BUCKETS = 2
RULE = {"models": ["first"], "quantile": 0, "entropy_max": 2.9}


def given(data: Path, **follow: Any) -> dict[str, Any]:
    """A source stage, then two buckets of the city's images, ordered by their distance."""
    out = recipe(data, iterations=3, checkpoint_every=1)
    first = {"name": "first", "method": "supervised", "data": {"source": "game:train"}}
    stage = {
        "name": "follow",
        "method": "weak_labels",
        "start": "first",
        "references": {"source": "first"},
        "data": {"target": "city:train"},
        "rounds": BUCKETS,
        "pseudo_labels": {"target": RULE},
        "follow": {"data": "city:train", "rank": "gap", "source": "game:train", **follow},
    }
    out["evaluate"] = {"data": ["city:val", "game:val"], "samples": 1}
    return out | {"stages": [first, stage]}


def images_by_bucket(folder: Path) -> list[list[str]]:
    found = files.read_json(folder / "follow/follow/buckets.json")["buckets"]
    return [[image_id for _, image_id in row["images"]] for row in found]


@pytest.fixture(scope="module")
def whole(scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("follow") / "whole"
    run(recipes.load(given(scene_data)), folder, device="cpu")
    return folder


def test_every_image_is_in_one_bucket_nearest_first(whole: Path, scene_data: Path) -> None:
    """Against distances measured here, from a whole pass without the job."""
    job = prepare(recipes.load(given(scene_data)), whole, launch("cpu"))
    city, game = job.dataset("city:train", ""), job.dataset("game:train", "")
    extractor = extractor_of(checkpoint.load_model(whole / "stages/0_first")[0])
    reference = count(extractor.probe, measure(extractor.probe, images_of(game, extractor)), images_of(game, extractor))
    distances = image_distances(extractor.probe, reference, images_of(city, extractor)).numbers
    expected = make_buckets(distances.numpy(), "ascending", EqualCount(BUCKETS))
    assert images_by_bucket(whole) == [[city.ids[i] for i in bucket.indices] for bucket in expected]


def test_each_stage_trains_on_its_bucket_and_records_it(whole: Path, scene_data: Path) -> None:
    job = prepare(recipes.load(given(scene_data)), whole, launch("cpu"))
    seen: set[str] = set()
    for number, stage in enumerate(job.recipe.stages[1:], 1):
        (dataset,) = build_streams(job, stage)["target"].datasets
        assert dataset.ids == images_by_bucket(whole)[number - 1]
        assert not seen & set(dataset.ids)
        seen |= set(dataset.ids)
        told = runs.read(job.stage_folder(stage) / "stage.json")
        follow = told["follow"]
        assert (follow["bucket"], follow["buckets"], follow["images"]) == (number, BUCKETS, len(dataset))
        assert follow["source"] == "game:val" and follow["from"] == "first"
        assert follow["low"] <= follow["high"]
        assert "without labels" in follow["source_data"]
        assert set(told["evaluations"]) == {"city:val", "game:val"}
        labelled = files.read_json(next(job.stage_folder(stage).rglob("pseudo_labels/target/*/index.json")))
        assert labelled["model_paths"] == [("first", "follow_1")[number - 1]], "the model before labels the bucket"


class Kill(BaseException):
    """Stands for the end of the process."""


POINTS: dict[str, tuple[object, str, int]] = {
    "while the stream is measured": (stream._Measurer, "_store", 2),
    "before the buckets are stored": (stream, "write_buckets", 1),
    "while the first bucket is labelled": (Writer, "add", 2),
    "in the first bucket": (engine._Loop, "_iterate", 5),
    "while the second bucket is labelled": (Writer, "_write", 4),
    "in the second bucket": (engine._Loop, "_iterate", 8),
    "after the last iteration": (stages, "_score", 3),
}


OFTEN = ("while the stream is measured", "in the first bucket", "while the second bucket is labelled")
"""The others cost as much and are tried by ``make slow``."""


@pytest.mark.parametrize("point", [p if p in OFTEN else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_a_killed_stream_resumes_to_the_same_bytes(
    point: str, whole: Path, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, call = POINTS[point]
    calls: list[int] = []
    real = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Kill
        return real(*args, **kwargs)

    monkeypatch.setattr(stream, "CHUNK", 2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Kill):
            run(recipes.load(given(scene_data)), tmp_path / "killed", device="cpu")
    run(recipes.load(given(scene_data)), tmp_path / "killed", resume=True, device="cpu")
    assert fingerprint(tmp_path / "killed") == fingerprint(whole)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b.replace(b"id", b"\xff", 1).replace(b"gap", b"", 2)])
def test_lines_that_are_damaged_are_measured_again(
    damage: Callable[[bytes], bytes], whole: Path, scene_data: Path, tmp_path: Path
) -> None:
    recipe_of = recipes.load(given(scene_data))
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "make_buckets", lambda *_: (_ for _ in ()).throw(Kill()))
        with pytest.raises(Kill):
            run(recipe_of, folder, device="cpu")
    path = folder / "follow/follow" / stream.MEASURES
    path.write_bytes(damage(path.read_bytes()))
    run(recipe_of, folder, resume=True, device="cpu")
    assert fingerprint(folder) == fingerprint(whole)


def test_order_filters_and_ranking_files(scene_data: Path, tmp_path: Path) -> None:
    job = prepare(recipes.load(given(scene_data)), tmp_path, launch("cpu"))
    ids = job.dataset("city:train", "").ids
    ranking = [
        {"image": f"leftImg8bit/train/{image_id}_leftImg8bit.png", "emd_block_11": float(-n), "val_set": n == 0}
        for n, image_id in enumerate(ids)
    ]
    (tmp_path / "ranked.json").write_text(json.dumps(ranking))
    block = {"rank": {"by": "emd_block_11", "file": str(tmp_path / "ranked.json")}, "images": 2, "source": None}
    out = tmp_path / "run"
    run(recipes.load(given(scene_data, **block)), out, device="cpu")
    expected = ids[:0:-1]
    half = (len(expected) + 1) // 2
    found = images_by_bucket(out)
    assert all(len(b) == 2 for b in found)
    assert set(found[0]) <= set(expected[:half]) and set(found[1]) <= set(expected[half:])
    assert found[0] == sorted(found[0], key=expected.index)
    assert not (out / "follow/follow" / stream.MEASURES).exists(), "nothing had to be measured"
    told = files.read_json(out / "follow/follow/buckets.json")["left_out"]
    assert told["for validation"] == 1


def test_an_image_of_a_bucket_that_is_gone_is_told(whole: Path, scene_data: Path) -> None:
    job = prepare(recipes.load(given(scene_data)), whole, launch("cpu"))
    job.datasets["city:train"] = View(job.dataset("city:train", ""), [0, 1])
    with pytest.raises(UserError, match="of 3 images of a bucket are there no more, the first is"):
        build_streams(job, job.recipe.stages[1])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no source": ({"source": None}, "follow.source"),
    "unknown column": ({"rank": "emd"}, "rank.file"),
    "random width": ({"order": "random", "cut": "width"}, "random"),
    "too few buckets": ({"cut": "within", "distance": 1e9}, "1 buckets, 'rounds' visits 2"),
    "filter": ({"filters": {"class_count_min": 20}}, "loosen"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(fault: str, scene_data: Path, tmp_path: Path) -> None:
    block, told = FAULTS[fault]
    with pytest.raises(UserError, match=told):
        run(recipes.load(given(scene_data, **block)), tmp_path / "run", device="cpu")


def test_layers_are_chosen_by_their_gap(scene_data: Path, tmp_path: Path) -> None:
    """What the distances choose is trained, and what is no encoder's; the rest keeps its bytes, statistics included."""
    given_recipe = given(scene_data, layers={"deviations": 0.5})
    given_recipe["stages"][1]["rounds"] = 1
    run(recipes.load(given_recipe), tmp_path, device="cpu")
    told = runs.read(tmp_path / "stages/1_follow_1/stage.json")["follow"]
    found = files.read_json(tmp_path / "follow/follow/layers_1.json")
    assert 0 < len(told["layers"]) < len(found["distances"])
    bar = np.mean(list(found["distances"].values())) + 0.5 * np.std(list(found["distances"].values()))
    assert told["layers"] == [name for name, distance in found["distances"].items() if distance > bar]
    before, after = (
        checkpoint.load_model(tmp_path / "stages" / name)[0].state_dict() for name in ("0_first", "1_follow_1")
    )
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    chosen = tuple(f"{name}." for name in told["layers"])
    assert moved and all(name.startswith(chosen) or not name.startswith("backbone.") for name in moved)
    assert any(name.startswith(chosen) for name in moved) and any(not name.startswith("backbone.") for name in moved)
    trained, everything = told["trained"]
    assert 0 < trained < everything


def test_chosen_layers_of_a_wrapped_network(scene_data: Path, tmp_path: Path) -> None:
    given_recipe = given(scene_data, rank="stream", layers={"deviations": 0.5})
    given_recipe["stages"][0]["anchor"] = {}
    given_recipe["stages"][1] |= {"rounds": 1, "model": {"name": "reservoir"}}
    run(recipes.load(given_recipe), tmp_path, device="cpu")
    chosen = tuple(f"base.{name}." for name in runs.read(tmp_path / "stages/1_follow_1/stage.json")["follow"]["layers"])
    model = checkpoint.load_model(tmp_path / "stages/1_follow_1")[0]
    inside = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("base.backbone.")}
    assert inside and all(name.startswith(chosen) and "norm" in name for name in inside)


def test_layers_that_are_none_are_told_before_anything_is_trained(scene_data: Path, tmp_path: Path) -> None:
    for block in ({"rank": {"by": "gap", "layers": ["lost"]}}, {"layers": {"layers": ["lost"]}}):
        with pytest.raises(UserError, match="no layer of BiSeNet matches 'lost'"):
            prepare(recipes.load(given(scene_data, **block)), tmp_path, launch("cpu"))


def test_a_reference_s_anchor_is_told_as_source_data(whole: Path, scene_data: Path) -> None:
    job = prepare(recipes.load(given(scene_data, rank="stream", source=None)), whole, launch("cpu"))
    method = build_method(job, stage := job.recipe.stages[1])
    assert (bare := follow.record(job, stage, method)) and bare["source_data"] == "none"
    method.references["source"].anchor = blank_anchor(method.model, job.labels)
    assert (told := follow.record(job, stage, method)) and "statistics of 1 labelled images" in told["source_data"]


def test_the_source_is_kept_by_its_anchor_and_a_reservoir(scene_data: Path, tmp_path: Path) -> None:
    """Source images go through the source's own norm layers after two buckets, by the style that its anchor tells."""
    given_recipe = given(scene_data, rank="stream", source=None)
    first, follow = given_recipe["stages"]
    first["anchor"] = {}
    follow["model"] = {"name": "reservoir", "base": given_recipe["model"]}
    follow["method"] = {"name": "weak_labels", "parts": {"source_anchor": {}}}
    result = run(recipes.load(given_recipe), tmp_path, device="cpu")
    kept = result.stages[0]["first"]["anchor"]
    assert kept["bytes"] > 0 and kept["images"] == 6
    source, labels, _ = checkpoint.load_model(tmp_path / "stages/0_first")
    followed, _, info = checkpoint.load_model(tmp_path / "stages/2_follow_2")
    assert info["anchor"]["images"] == 6, "carried on"
    game = prepare(recipes.load(given_recipe), tmp_path, launch("cpu")).dataset("game:train", "")
    images = torch.stack([torch.from_numpy(game.read_image(i)).permute(2, 0, 1) for i in range(len(game))]) / 255
    with torch.no_grad():
        slots = followed(images) and followed.last_slots
        own = slots == 0
        assert own.any()
        torch.testing.assert_close(followed(images[own]).logits, source(images[own]).logits, rtol=0, atol=0)
    assert len(labels) == 19


NO_ANCHOR: dict[str, tuple[int, dict[str, Any], str]] = {
    "few images": (0, {"images": 3}, "at least 4 images, 'game' gives 3"),
    "weak labels": (1, {}, r"'follow_1' trains on no labels of its own: set anchor\.data"),
    "no training": (2, {}, "'scored' trains no model"),
}


@pytest.mark.parametrize("fault", NO_ANCHOR)
def test_what_no_anchor_can_be_made_of_is_told_before_anything_is_trained(
    fault: str, scene_data: Path, tmp_path: Path
) -> None:
    number, block, told = NO_ANCHOR[fault]
    given_recipe = given(scene_data)
    given_recipe["stages"].append({"name": "scored", "method": "evaluation", "references": {"model": "first"}})
    given_recipe["stages"][number]["anchor"] = block
    with pytest.raises(UserError, match=told):
        prepare(recipes.load(given_recipe), tmp_path, launch("cpu"))


@pytest.mark.parametrize(
    ("model", "method"), [("reservoir", {"name": "weak_labels", "distillation": 0}), ("gated", "prototype_gate")]
)
def test_an_anchor_that_will_be_lacking_is_told_before_anything_is_trained(
    model: str, method: Any, scene_data: Path, tmp_path: Path
) -> None:
    given_recipe = given(scene_data)
    first = given_recipe["stages"][0]
    stage = {"name": "next", "start": "first", "method": method, "model": {"name": model}}
    stage |= {"data": {"target": "city:train"}}
    given_recipe["stages"] = [first, stage]
    with pytest.raises(UserError, match="stage 'next' needs the anchor of the source"):
        prepare(recipes.load(given_recipe), tmp_path, launch("cpu"))
    stage["anchor"] = {"data": "game:train"}  # made when it has been trained
    with pytest.raises(UserError, match="stage 'next' needs the anchor of the source"):
        prepare(recipes.load(given_recipe), tmp_path, launch("cpu"))
    first["anchor"] = {}
    prepare(recipes.load(given_recipe), tmp_path, launch("cpu"))
    stage["start"] = "next"
    with pytest.raises(UserError, match="which comes later"):
        prepare(recipes.load(given_recipe), tmp_path, launch("cpu"))


def test_a_model_file_s_anchor_is_known_in_advance(whole: Path, scene_data: Path, tmp_path: Path) -> None:
    model, labels, _ = checkpoint.load_model(whole / "stages/0_first")
    model.anchor = blank_anchor(model, labels)
    (tmp_path / "source").mkdir()
    checkpoint.save_model(tmp_path / "source", model, labels, {})
    given_recipe = given(scene_data)
    method = {"name": "weak_labels", "distillation": 0, "parts": {"source_anchor": {}}}
    stage = {"name": "kept", "method": method, "data": {"target": "city:train"}, "start": str(tmp_path / "source")}
    stage["pseudo_labels"] = {"target": {**RULE, "models": [str(tmp_path / "source")]}}
    prepare(recipes.load(given_recipe | {"stages": [stage]}), tmp_path, launch("cpu"))


def test_a_wrapper_without_a_base_is_one_of_the_recipes_network(scene_data: Path) -> None:
    given_recipe = given(scene_data)
    given_recipe["model"] = {"name": "bisenet", "width": 0.125, "weights": None, "head_lr_factor": 3.0}
    given_recipe["stages"][1]["model"] = {"name": "reservoir", "slots": 3}
    found = recipes.load(given_recipe)
    config = model_config(found, found.stages[1])
    assert config["base"] == {"name": "bisenet", "width": 0.125}
    assert (config["slots"], config["head_lr_factor"]) == (3, 3.0)


def test_a_ranking_of_our_own_needs_no_source(scene_data: Path, tmp_path: Path) -> None:
    """What ``segue gap rank`` writes orders a stream by ``gap`` without looking at the source again."""
    ids = prepare(recipes.load(given(scene_data)), tmp_path, launch("cpu")).dataset("city:train", "").ids
    rows = [{"image": f"leftImg8bit/train/{i}_leftImg8bit.png", "val_set": False, "gap": -n} for n, i in enumerate(ids)]
    (tmp_path / "ranked.json").write_text(json.dumps(rows))
    block = {"rank": {"by": "gap", "file": str(tmp_path / "ranked.json")}, "source": None}
    run(recipes.load(given(scene_data, **block)), tmp_path / "run", device="cpu")
    assert [i for bucket in images_by_bucket(tmp_path / "run") for i in bucket] == ids[::-1]
    assert runs.read(tmp_path / "run/stages/1_follow_1/stage.json")["follow"]["source_data"] == "none"
    (tmp_path / "ranked.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "gap"} for row in rows]))
    with pytest.raises(UserError, match="no score 'gap'"):
        run(recipes.load(given(scene_data, **block)), tmp_path / "again", device="cpu")
