"""Runs side by side, from folders written by hand: spreads, absent classes, intervals, and what is not comparable."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segue.compare import page, show, table
from segue.compare.entries import collect
from segue.compare.table import Comparison, Spread, compare
from segue.errors import UserError
from segue.files import read_json, write_json
from segue.labels import space_from_dict
from segue.scoring.bootstrap import PerImage, paired_interval, write_per_image
from segue.scoring.matrix import Confusion
from segue.scoring.names import per_image_file

CLASSES = ("road", "car", "train", "sky")
"""``train`` never occurs: it is absent unless it is predicted."""
SPACE = space_from_dict(
    {"name": "four", "classes": [{"name": n, "color": [i, i, i], "id": i} for i, n in enumerate(CLASSES)]}
)
TARGET = "city:val"
IMAGES = 30


def stage(
    folder: Path, name: str, right: float, *, seed: int = 0, data: str = TARGET, stray: bool = False, **more: Any
) -> None:
    """A finished stage that labels a share ``right`` of the pixels right; ``stray``: it also predicts ``train``."""
    rng = np.random.default_rng(seed)
    total, rows, ids = Confusion(4), [], [f"image/{k}" for k in range(IMAGES)]
    for k in range(IMAGES):
        truth = np.random.default_rng(1000 + k).choice([0, 1, 3], (12, 12)).astype(np.uint8)
        wrong = rng.random(truth.shape) > right
        prediction = np.where(wrong, (truth + 1) % 4 if stray else np.where(truth == 0, 1, 0), truth).astype(np.uint8)
        rows.append(total.add(truth, prediction).sums())
    sums = (np.stack(r).astype(np.uint32) for r in zip(*rows, strict=True))
    where = folder / "stages" / name
    write_per_image(PerImage(tuple(ids), CLASSES, *sums, (0, 1, 2, 3)), where / per_image_file(data))
    write_json(
        where / "stage.json",
        {
            "name": name.partition("_")[2],
            "method": {"name": "supervised"},
            "status": "finished",
            "checkpoint": "last",
            "evaluations": {data: total.scores(SPACE).to_dict() | {"num_images": IMAGES}},
            "scoring": {data: {"cpu_s": 3.0, "wall_s": 2.5}, "elsewhere": {"cpu_s": 9.0, "wall_s": 9.0}},
            "training": {
                "iterations": 50,
                "cpu_s": 40.0,
                "wall_s": 25.0,
                "iterations_per_epoch": 30.0,
                "device": "cpu: x86_64",
                "threads": 1,
            },
        }
        | more,
    )


def run(folder: Path, name: str = "game", seed: int = 0, roles: dict[str, str] | None = None) -> Path:
    """A run folder without stages."""
    given = {"source_only": "source", "adapted": "adapt"} if roles is None else roles
    info = {"name": name, "seed": seed, "status": "finished", "labels": SPACE.to_dict(), "roles": given}
    write_json(folder / "run.json", info)
    return folder


@pytest.fixture()
def pair(tmp_path: Path) -> Path:
    """One run: ``source`` right on 60 % of the pixels, ``adapt`` on 80 %."""
    stage(run(tmp_path / "a"), "0_source", 0.6)
    stage(tmp_path / "a", "1_adapt", 0.8, seed=1)
    return tmp_path / "a"


def miou(folder: Path, name: str) -> float:
    """What stage.json holds."""
    return float(read_json(folder / "stages" / name / "stage.json")["evaluations"][TARGET]["miou"])


def test_rows_of_one_run(pair: Path) -> None:
    found = compare([pair])
    assert found.data == TARGET and not found.differ and not found.notes
    assert [(x.entry.stage, x.entry.role) for x in found.lines] == [("source", "source_only"), ("adapt", "adapted")]
    assert [x.miou.mean for x in found.lines] == [miou(pair, "0_source"), miou(pair, "1_adapt")]
    training = {"cpu_s_per_100": 80.0, "wall_s_per_100": 50.0, "wall_s_per_epoch": 15.0}
    assert found.lines[0].time == training | {"wall_s_scoring": 2.5}
    assert found.lines[0].gain is None


def test_gain_is_the_paired_bootstrap(pair: Path) -> None:
    from segue.scoring.bootstrap import read_per_image

    a, b = (read_per_image(pair / f"stages/{s}" / per_image_file(TARGET)) for s in ("0_source", "1_adapt"))
    gain = compare([pair]).lines[1].gain
    assert gain is not None and gain.against == 1 and gain.interval == paired_interval(a, b)
    assert gain.clear and gain.value == pytest.approx(miou(pair, "1_adapt") - miou(pair, "0_source"))


def test_absent_is_not_zero(tmp_path: Path) -> None:
    stage(run(tmp_path / "a"), "0_source", 0.7)
    stage(tmp_path / "a", "1_adapt", 0.7, stray=True)
    found = compare([tmp_path / "a"])
    assert [show.class_score(x, "train") for x in found.lines] == ["absent", "0.0"]
    rows = list(csv.DictReader(io.StringIO(show.to_csv(found))))
    assert [r["iou train"] for r in rows] == ["absent", "0"]
    assert ">absent<" in page.render(found)


def test_seeds_are_one_row_with_their_spread(tmp_path: Path) -> None:
    run(tmp_path / "many")
    values = []
    for seed, right in enumerate((0.6, 0.7, 0.8)):
        stage(run(tmp_path / f"many/seed_{seed}", seed=seed), "0_source", right, seed=seed)
        values.append(miou(tmp_path / f"many/seed_{seed}", "0_source"))
    (line,) = compare([tmp_path / "many"]).lines
    assert line.miou.mean == pytest.approx(np.mean(values)) and line.miou.sd == pytest.approx(np.std(values, ddof=1))
    assert (line.miou.low, line.miou.high, line.miou.count) == (min(values), max(values), 3)
    assert show.score(line.miou).count(".") == 4 and "±" in show.score(line.miou)
    one = compare([tmp_path / "many/seed_1"]).lines[0]
    assert one.miou.mean == values[1] and "±" not in show.score(one.miou)


def test_gain_over_seeds_resamples_the_mean(tmp_path: Path) -> None:
    """Two equal seeds are as one; the interval of different seeds lies around the gain of their means."""
    for name, rights in (("a", (0.6, 0.6)), ("b", (0.7, 0.8))):
        run(tmp_path / name, name)
        for seed, right in enumerate(rights):
            own = 5 if name == "a" else seed
            stage(run(tmp_path / f"{name}/seed_{seed}", name, seed), "0_source", right, seed=own)
    stage(run(tmp_path / "single", "single"), "0_source", 0.6, seed=5)
    over_two, over_one = (compare([tmp_path / x, tmp_path / "b"]).lines[1].gain for x in ("a", "single"))
    assert over_two is not None and over_one is not None and over_two.interval and over_one.interval
    assert over_two.interval.low == pytest.approx(over_one.interval.low)
    assert over_two.interval.low < over_two.value < over_two.interval.high
    assert over_two.interval.value == pytest.approx(over_two.value)


def test_other_runs_are_held_against_the_stage_of_that_name(pair: Path, tmp_path: Path) -> None:
    stage(run(tmp_path / "b", "other"), "0_adapt", 0.9)
    stage(tmp_path / "b", "1_longer", 0.9)
    found = compare([pair, tmp_path / "b"])
    assert [x.gain.against if x.gain else None for x in found.lines] == [None, 1, 2, 1]
    found = compare([pair, tmp_path / "b"], baseline=tmp_path / "b")
    assert [x.gain.against if x.gain else None for x in found.lines] == [3, 3, None, 3]
    found = compare([tmp_path / "b"], baseline=pair / "stages/1_adapt")
    assert [x.entry.stage for x in found.lines] == ["adapt", "longer", "adapt"]
    assert [x.gain.against if x.gain else None for x in found.lines] == [3, 3, None]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "mmseg"}, "scoring protocols differ: native (row 1); mmseg (row 2)"),
        ({"view": "13"}, "scoring views differ"),
        ({"num_images": 7}, "numbers of images differ"),
    ],
)
def test_what_is_not_comparable_is_said(change: dict[str, Any], told: str, pair: Path) -> None:
    path = pair / "stages/1_adapt/stage.json"
    record = read_json(path)
    record["evaluations"][TARGET] |= change
    write_json(path, record)
    found = compare([pair])
    assert any(told in text for text in found.differ)
    assert "not directly comparable" in page.render(found)
    gain = found.lines[1].gain
    assert gain is not None and (gain.interval is None) == ("num_images" not in change)


def test_a_checkpoint_chosen_with_target_labels_is_said(pair: Path) -> None:
    path = pair / "stages/1_adapt/stage.json"
    write_json(path, read_json(path) | {"checkpoint": "oracle (target labels used for selection)"})
    (told,) = compare([pair]).differ
    assert "oracle (target labels used for selection) (row 2)" in told


def test_no_interval_between_other_images(pair: Path) -> None:
    """Equal ids are not enough: the labels below them must be equal too."""
    path = pair / "stages/1_adapt" / per_image_file(TARGET)
    given = table.read_per_image(path)
    write_per_image(PerImage(given.ids, CLASSES, given.right, given.truth + 1, given.predicted, given.rows), path)
    gain = compare([pair]).lines[1].gain
    assert gain is not None and gain.interval is None and "other labels" in gain.reason
    path.unlink()
    gain = compare([pair]).lines[1].gain
    assert gain is not None and gain.interval is None and gain.reason == "no per-image scores stored"
    assert "no per-image scores stored" in show.gain(compare([pair]).lines[1])


def test_unfinished_unscored_and_damaged_are_said(pair: Path) -> None:
    stage(pair, "2_late", 0.5, status="running", evaluations={})
    stage(pair, "3_elsewhere", 0.5, data="fog:val")
    (pair / "stages/4_broken").mkdir()
    (pair / "stages/4_broken/stage.json").write_text("{")
    found = compare([pair])
    text = " ".join(found.notes)
    assert "late is not finished (status running)" in text
    assert "elsewhere was not scored on city:val (but on: fog:val)" in text
    assert "4_broken/stage.json cannot be read" in text
    assert math.isnan(found.lines[2].miou.mean) and show.score(found.lines[2].miou) == "–"
    assert all(word in html.unescape(page.render(found)) for word in ("not finished", "cannot be read"))


def test_runs_of_one_name_are_told_apart(pair: Path, tmp_path: Path) -> None:
    for name in ("x/1", "x/2"):
        stage(run(tmp_path / name), "0_source", 0.5)
    assert [e.run for e in collect([str(tmp_path / "x/*")]).entries] == ["game 1", "game 2"]


def test_classes_of_another_space_are_empty_not_absent(pair: Path, tmp_path: Path) -> None:
    stage(run(tmp_path / "b", "b"), "0_source", 0.5)
    path = tmp_path / "b/stages/0_source/stage.json"
    record = read_json(path)
    record["evaluations"][TARGET]["iou"] = {"tree": 0.5}
    write_json(path, record)
    found = compare([pair, tmp_path / "b"])
    assert show.class_score(found.lines[0], "tree") == "" and show.class_score(found.lines[2], "road") == ""
    assert any(text.startswith("classes differ") for text in found.differ)


@pytest.mark.parametrize(
    ("given", "data", "words"),
    [
        (["none"], None, ["none", "give run folders"]),
        (["above"], None, ["no run.json", "above/a"]),
        (["above/a"], "citty:val", ["citty:val", "city:val"]),
        (["empty"], None, ["nothing has been trained"]),
    ],
)
def test_refusals(given: list[str], data: str | None, words: list[str], tmp_path: Path) -> None:
    stage(run(tmp_path / "above/a"), "0_source", 0.5)
    run(tmp_path / "empty")
    with pytest.raises(UserError) as error:
        compare([tmp_path / g for g in given], data)
    assert all(word in str(error.value) for word in words), error.value


def test_spread() -> None:
    assert Spread.of([1.0, math.nan, 3.0]) == Spread(2.0, math.sqrt(2), 1.0, 3.0, 2)
    assert math.isnan(Spread.of([1.0]).sd) and Spread.of([]).count == 0


def test_the_page_is_self_contained_and_escapes(tmp_path: Path) -> None:
    stage(run(tmp_path / "a", "<script>alert(1)</script>"), "0_source", 0.5)
    stage(tmp_path / "a", "1_adapt", 0.8)
    text = page.render(compare([tmp_path / "a"]))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.findall(r"(?:src|href)=|@import|url\(", text)
    assert text.count("<svg") == 1 and len(text) < 100_000


def test_many_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a")
    for k in range(12):
        stage(tmp_path / "a", f"{k}_s{k}", 0.5 + k / 40)
    found = compare([tmp_path / "a"])
    show.text(found)
    out = capsys.readouterr().out
    assert all(f"s{k}" in out for k in range(12)) and "+" in out and "absent" in out
    assert isinstance(found, Comparison) and "s11 reaches" in page.render(found)
