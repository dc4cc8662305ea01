"""The annotate job: rounds of buying, within budgets, resumed exactly, without losing or repeating a region."""

from __future__ import annotations

import hashlib
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.fingerprint import fingerprint
from helpers.recipes import recipe
from segue import engine, recipes
from segue.acquire import ACQUISITIONS
from segue.acquire.state import Round, rounds_of
from segue.config import DatasetConfig
from segue.data.batch import Batch
from segue.data.dataset import open_dataset
from segue.data.label_folder import LabelFolder
from segue.data.regions import Regions
from segue.errors import Interrupted, UserError
from segue.jobs import annotate
from segue.jobs.plan import plan
from segue.jobs.run import run
from segue.labels import IGNORE

SHARE = 0.02
NUMBER = 12
"""Superpixels of an image."""


def given(data: Path, acquisition: Any = "mixed", rounds: int = 2, **block: Any) -> dict[str, Any]:
    """A short warm-up, then rounds of annotation of the city."""
    out = recipe(data)
    bought = {"data": "city:train", "acquisition": acquisition, "superpixels": {"number": NUMBER}, "share": SHARE}
    out["stages"][1] = {
        "name": "active",
        "role": "adapted",
        "method": "supervised",
        "data": {"source": ["game:train", "city:train"]},
        "start": "first",
        "rounds": rounds,
        "train": {"iterations": 4},
        "annotate": {**bought, **block},
    }
    return out


def bought(folder: Path, group: str = "active") -> list[tuple[str, int]]:
    return [(row.image, row.region) for r in rounds_of(folder / "annotate" / group) for row in r.rows]


@pytest.mark.parametrize("name", ACQUISITIONS.names())
def test_every_acquisition_buys_two_rounds_within_its_budget(name: str, scene_data: Path, tmp_path: Path) -> None:
    recipe_of = given(scene_data, name, rounds=1 if name == "ripu_pixel" else 2)  # its windows leave one pixel each
    if name.startswith("aada"):
        recipe_of["stages"][0] |= {"method": "adversarial", "data": {"source": "game:train", "target": "city:train"}}
        recipe_of["stages"][1]["annotate"]["discriminator"] = "first"
    found = run(recipes.load(recipe_of), tmp_path / "run", device="cpu")
    regions = bought(tmp_path / "run")
    assert len(set(regions)) == len(regions) > 1
    spent = 0
    for number, one in enumerate(rounds_of(tmp_path / "run/annotate/active"), 1):
        info = one.info
        assert (info.round, info.group, info.labelled_px > 0) == (number, "active", True)
        assert info.budget_px == round(SHARE * info.pool_px) and info.annotator == "truth"
        largest = max(row.area_px - row.ignored_px for row in one.rows)
        assert info.labelled_px - info.budget_px < largest
        spent += info.labelled_px
        labels = LabelFolder(one.folder / "labels", one.labels, "train")
        labelled = sum(int((labels.read(image) != IGNORE).sum()) for image in labels.ids)
        assert labelled == spent
        stage = found.stages[0][f"active_{number}"]
        assert stage["annotate"]["labelled_px"] == spent and stage["annotate"]["round"] == number


def test_labels_are_those_of_the_bought_regions(scene_data: Path, tmp_path: Path) -> None:
    run(recipes.load(given(scene_data, "entropy")), tmp_path, device="cpu")
    last = rounds_of(tmp_path / "annotate/active")[-1]
    labels = LabelFolder(last.folder / "labels", last.labels, "train")
    regions = Regions(tmp_path / "regions/city_train")
    wanted: dict[str, set[int]] = {}
    for image, region in bought(tmp_path):
        wanted.setdefault(image, set()).add(region)
    truth = open_dataset("cityscapes", DatasetConfig(root=scene_data / "city"), "train", last.labels)
    for image, ids in wanted.items():
        inside = np.isin(regions.read(image), list(ids))
        label = truth.read_sample(truth.ids.index(image), True).label
        assert label is not None
        said = labels.read(image) if image in labels.ids else np.full(label.shape, IGNORE)
        assert (said == np.where(inside, label, IGNORE)).all()
    assert set(labels.ids) <= set(wanted)


class Kill(BaseException):
    """Stands for the end of the process."""


POINTS: dict[str, tuple[str, int]] = {
    "during a survey": ("segue.survey.run._rows", 9),
    "while densities are filled": ("segue.survey.densities.append_column", 3),
    "while a choice is written": ("segue.acquire.state.write_image", 3),
    "before the choice is whole": ("segue.acquire.state.write_json", 2),
    "while answers are stored": ("segue.data.label_folder.write_image", 6),
    "before training": ("segue.jobs.stages._train", 3),
    "during training": ("segue.engine._Loop._iterate", 8),
}
"""What dies, and at which call; the warm-up and the first round come before."""


@pytest.fixture(scope="module")
def uninterrupted(scene_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    run(recipes.load(given(scene_data)), folder, device="cpu")
    return content(folder)


def content(folder: Path) -> dict[str, str]:
    """Fingerprint of a run, and the bytes of all rounds, tables included.

    Not of the mixtures' file, whose header comes in any order; the densities that it gave are there.
    """
    rounds = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.glob("annotate/**/*"))
        if p.is_file() and p.suffix != ".safetensors"
    }
    return fingerprint(folder) | rounds


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_round_resumes_to_the_same_bytes(
    point: str, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, str]
) -> None:
    name, number = POINTS[point]
    owner, _, attribute = name.rpartition(".")
    calls: list[int] = []
    real = pkgutil.resolve_name(name.replace("._Loop", ":_Loop") if "_Loop" in name else f"{owner}:{attribute}")

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise Kill
        return real(*args, **kwargs)

    recipe_of = recipes.load(given(scene_data))
    with monkeypatch.context() as patch:
        patch.setattr(name, dying)
        with pytest.raises(Kill):
            run(recipe_of, tmp_path, device="cpu")
    run(recipe_of, tmp_path, resume=True, device="cpu")
    found = content(tmp_path)
    assert found == uninterrupted, {
        k for k in found.keys() | uninterrupted.keys() if found.get(k) != uninterrupted.get(k)
    }


def test_a_run_that_was_moved_goes_on(scene_data: Path, tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    """State is relative: the folder is moved between two rounds."""
    recipe_of, before, after = recipes.load(given(scene_data)), tmp_path / "before", tmp_path / "after"
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        real = annotate.buy

        def dying(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise Kill
            real(*args)

        patch.setattr(annotate, "buy", dying)
        with pytest.raises(Kill):
            run(recipe_of, before, device="cpu")
    shutil.move(before, after)
    run(recipe_of, after, resume=True, device="cpu")
    assert {k: v for k, v in content(after).items() if "round" in k} == {
        k: v for k, v in uninterrupted.items() if "round" in k
    }


def inside(data: Path, **block: Any) -> dict[str, Any]:
    """Two rounds inside one training."""
    out = given(data, "entropy", at=[2, 4], **block)
    del out["stages"][1]["rounds"]
    out["stages"][1]["train"] = {"iterations": 6, "checkpoint_every": 1}
    return out


def test_rounds_inside_one_training_resume_to_the_same_bytes(
    scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_of = recipes.load(inside(scene_data))
    run(recipe_of, tmp_path / "whole", device="cpu")
    wanted = content(tmp_path / "whole")
    assert len(rounds_of(tmp_path / "whole/annotate/active")) == 2
    real = engine._Loop._iterate
    calls: list[int] = []

    def dying(*args: Any) -> None:
        calls.append(1)
        if len(calls) in (4, 6, 7):  # before the first round (the warm-up has 2), between them, after the second
            raise Kill
        real(*args)

    monkeypatch.setattr(engine._Loop, "_iterate", dying)
    for again in (False, True, True):
        with pytest.raises(Kill):
            run(recipe_of, tmp_path / "killed", resume=again, device="cpu")
    run(recipe_of, tmp_path / "killed", resume=True, device="cpu")
    assert content(tmp_path / "killed") == wanted


def test_training_reads_what_has_been_bought_by_then(
    scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, int] = {}
    real = engine._Loop._iterate

    def noted(loop: Any, micro: dict[str, list[Batch]]) -> None:
        domains = [meta.domain for batch in micro["source"] for meta in batch.meta]
        if loop.total == 6:
            seen[loop.iteration] = domains.count("city")
        real(loop, micro)

    monkeypatch.setattr(engine._Loop, "_iterate", noted)
    run(recipes.load(inside(scene_data)), tmp_path, device="cpu")
    assert [seen[k] for k in range(2)] == [0, 0] and sum(seen[k] for k in range(2, 6)) > 0


def test_people_are_waited_for(scene_data: Path, tmp_path: Path) -> None:
    """The run stops after its choice, and goes on when all regions are answered, or the round is closed."""
    recipe_of = recipes.load(given(scene_data, "entropy", annotator="people"))
    with pytest.raises(Interrupted, match=r"round 1 of 'active' waits for labels of \d+ regions"):
        run(recipe_of, tmp_path, device="cpu")
    first = Round(tmp_path / "annotate/active/round_1")
    assert first.missing() and not first.answers().ids
    assert all(first.guess(image) is not None for image in first.by_image)
    with pytest.raises(Interrupted):
        run(recipe_of, tmp_path, resume=True, device="cpu")
    answers = first.answers()
    for image in first.by_image:
        answers.put(image, np.where(first.asked(image) > 0, np.uint8(3), np.uint8(IGNORE)))
    answers.save()
    with pytest.raises(Interrupted, match="round 2"):
        run(recipe_of, tmp_path, resume=True, device="cpu")
    Round(tmp_path / "annotate/active/round_2").close()
    run(recipe_of, tmp_path, resume=True, device="cpu")
    labels = LabelFolder(tmp_path / "annotate/active/round_2/labels", first.labels, "train")
    assert labels.ids == sorted(first.by_image), "what round 2 asked has no answers"
    assert {int(v) for image in labels.ids for v in np.unique(labels.read(image))} == {3, IGNORE}


def test_the_pool_needs_no_labels_when_people_answer(scene_data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(scene_data / "city", bare)
    shutil.rmtree(bare / "gtFine/train")
    out = given(scene_data, "entropy", annotator="people")
    out["data"]["pool"] = {"dataset": "cityscapes", "root": str(bare)}
    out["stages"][1]["data"] = {"source": ["game:train", "pool:train"]}
    out["stages"][1]["annotate"]["data"] = "pool:train"
    with pytest.raises(Interrupted, match="waits for labels"):
        run(recipes.load(out), tmp_path / "run", device="cpu")
    out["stages"][1]["annotate"]["annotator"] = "truth"
    with pytest.raises(UserError, match="pool"):
        run(recipes.load(out), tmp_path / "truth", device="cpu")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "acquisition": ({"acquisition": "densty"}, "did you mean 'density'"),
    "setting": ({"acquisition": {"name": "density", "best": 3}}, "unknown key .*best"),
    "superpixels": ({"superpixels": {"numbr": 3}}, "number"),
    "budget": ({"images": 3}, "one of share, images and budget_px"),
    "pool": ({"data": "city:val"}, "no labelled stream"),
    "discriminator": ({"acquisition": "aada_region"}, "discriminator"),
    "no such stage": ({"acquisition": "aada_region", "discriminator": "first"}, "no adversarial stage"),
    "both forms": ({"at": [1]}, "give one of them"),
    "order": ({"at": [3, 2]}, "rising"),
    "begin": ({"begin": "datalist_01.pkl"}, "--published"),
    "regions": ({"regions": "nowhere"}, "segue data regions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_before_anything_runs(fault: str, scene_data: Path, tmp_path: Path) -> None:
    block, told = FAULTS[fault]
    out = given(scene_data)
    out["stages"][1]["annotate"] |= block
    with pytest.raises(UserError, match=told):
        run(recipes.load(out), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_rounds_inside_a_training_need_something_to_train_on(scene_data: Path, tmp_path: Path) -> None:
    late = inside(scene_data)
    late["stages"][1]["annotate"]["at"] = [2, 6]
    with pytest.raises(UserError, match=r"train\.iterations"):
        run(recipes.load(late), tmp_path, device="cpu")
    alone = inside(scene_data)
    alone["stages"][1]["data"] = {"source": "city:train"}
    with pytest.raises(UserError, match="begin with 0"):
        run(recipes.load(alone), tmp_path, device="cpu")


def test_an_empty_pool_stops_the_run(scene_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to buy"):
        run(recipes.load(given(scene_data, "random", share=1.0)), tmp_path, device="cpu")
    assert len(rounds_of(tmp_path / "annotate/active")) == 1


def test_a_plan_needs_no_bought_labels(scene_data: Path, tmp_path: Path) -> None:
    found = plan(recipes.load(given(scene_data, annotator="people")), device="cpu")
    assert [stage.name for stage in found.stages] == ["first", "active_1", "active_2"]


def _no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


def _not_definite(*_: Any, **__: Any) -> Any:
    raise torch.linalg.LinAlgError("linalg.cholesky: the input is not positive-definite")


@pytest.mark.parametrize(
    ("block", "failing", "told"),
    [
        ({"time_limit_s": 0}, None, "no time left"),
        ({}, _no_memory, "not enough memory"),
        ({}, _not_definite, "not positive-definite"),
    ],
)
def test_densities_that_fail_end_in_a_finished_round_that_says_so(
    block: dict[str, Any],
    failing: Any,
    told: str,
    scene_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In process, so that there is no worker to lose; the published code waits for one for ever."""
    if failing is not None:
        monkeypatch.setattr("segue.survey.densities.fit_mixtures", failing)
    run(recipes.load(given(scene_data, "density", rounds=1, densities=block)), tmp_path, device="cpu")
    info = rounds_of(tmp_path / "annotate/active")[0].info
    assert info.regions > 0 and any(told in why for why in info.skipped.values())
    printed = capsys.readouterr().err
    assert "no densities for" in printed and told in printed
