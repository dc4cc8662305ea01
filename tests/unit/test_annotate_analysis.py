"""What rounds add up to, against counts made from the labels themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.bought import SPACE, answer, begin_run, buy, city
from segue.acquire.analysis import Analysis, AnalysisError, against, analyse, induced_weights, scores_by_round
from segue.acquire.state import Round
from segue.cli import annotate_analyse
from segue.data.dataset import Dataset
from segue.labels import IGNORE
from segue.review.page import short
from segue.review.selection import histogram, notes, render, weights_line

FIRST = [(0, 0), (1, 5), (0, 15), (2, 10)]
SECOND = [(0, 1), (3, 3), (2, 11)]


@pytest.fixture
def pool(scene_data: Path) -> Dataset:
    return city(scene_data)


@pytest.fixture
def rounds(tmp_path: Path, scene_data: Path, pool: Dataset) -> list[Round]:
    run = begin_run(tmp_path / "run", scene_data, [0.40, 0.45])
    found = [buy(run, pool, 1, FIRST), buy(run, pool, 2, SECOND)]
    for one in found:
        answer(one, pool)
    return found


def truth_of(pool: Dataset) -> np.ndarray:
    counts = [np.bincount(pool.read_label(n).ravel(), minlength=256)[:19] for n in range(len(pool))]
    return np.stack(counts).astype(np.int64)


def cut(pool: Dataset, index: int, cell: int) -> np.ndarray:
    top, left = divmod(cell, 4)
    return pool.read_label(index)[16 * top : 16 * (top + 1), 24 * left : 24 * (left + 1)]


def test_pixels_are_those_of_the_labels_below(rounds: list[Round], pool: Dataset) -> None:
    found = analyse(rounds, truth=truth_of(pool))
    for number, cells in ((1, FIRST), (2, SECOND)):
        bought, labels = found.rounds[number], np.concatenate([cut(pool, *c).ravel() for c in cells])
        assert bought.answered_px.tolist() == np.bincount(labels, minlength=256)[:19].tolist()
        assert bought.void_px == (labels == IGNORE).sum() == bought.ignored_px
        assert bought.labelled_px == bought.answered_px.sum() == bought.region_px.sum()
        for cell in {c for _, c in cells}:
            costs = [(cut(pool, i, c) != IGNORE).sum() for i, c in cells if c == cell]
            assert bought.predicted_px[cell] == sum(costs)
    assert (found.total.regions, found.total.images, found.total.clicks) == (7, 4, 4 * 7 + 3 + 5)
    assert found.several == 2 and not found.overlap_px
    assert found.shares[2] == found.total.labelled_px / (6 * 64 * 96)


def test_weights_give_all_labels_the_shares_of_the_answers(rounds: list[Round], pool: Dataset) -> None:
    truth = truth_of(pool)
    found = analyse(rounds, truth=truth)
    weights = np.array(found.weights)
    present = truth.sum(0) > 0
    assert weights[present].mean() == pytest.approx(1) and (weights[~present] == 1).all() and not present.all()
    weighted = weights * truth.sum(0)
    answered = found.total.answered_px
    assert weighted / weighted.sum() == pytest.approx(answered / answered.sum())


def test_the_printed_weights_are_a_criterion(rounds: list[Round], pool: Dataset) -> None:
    import yaml

    from segue.ops.losses import CriterionConfig

    weights = analyse(rounds, truth=truth_of(pool)).weights
    assert weights is not None
    read = CriterionConfig(**yaml.safe_load(weights_line(weights))["criterion"])
    assert read.class_weights == pytest.approx(weights, rel=1e-3)


def test_answers_of_other_data_give_no_weights() -> None:
    with pytest.raises(AnalysisError, match="different data"):
        induced_weights(np.array([0, 5]), np.array([9, 0]))


def test_pixels_that_are_bought_twice_are_counted_and_told(rounds: list[Round], pool: Dataset) -> None:
    run = rounds[0].folder.parents[2]
    third = buy(run, pool, 3, [(0, 15), (0, 1), (4, 4)])
    found = analyse([*rounds, third])
    assert found.overlap_px == {(1, 3): 384, (2, 3): 384}
    assert any(line.startswith("OVERLAP") and "1 and 3: 384 px" in line for line in notes(found))
    assert "pixels bought twice" in render(found, None, "run")


def test_two_choices_by_pixels_and_regions(
    rounds: list[Round], tmp_path: Path, scene_data: Path, pool: Dataset
) -> None:
    run = begin_run(tmp_path / "other", scene_data)
    other = [buy(run, pool, 1, [(0, 0), (0, 1), (5, 5)])]
    found = against(rounds, other)
    assert (found.both_px, found.images) == (2 * 384, 1)
    assert found.pixels == found.regions == pytest.approx(2 / 8)
    windows = [buy(run, pool, 1, [(0, 0)], partition={"name": "windows"})]
    assert against(rounds, windows).regions is None
    assert against(rounds, rounds).pixels == 1


def test_scores_of_stages_and_of_one_training(tmp_path: Path, scene_data: Path) -> None:
    run = begin_run(tmp_path / "run", scene_data, [0.40, 0.45])
    assert scores_by_round(run, "buy", [1, 2, 3]) == ("city:val", {1: 40.0, 2: 45.0})
    stage = run / "stages" / "2_buy_2" / "stage.json"
    stage.write_text(stage.read_text().replace('"buy_2"', '"buy"'))
    assert scores_by_round(run, "buy", [1, 2, 3])[1] == {1: 40.0, 3: 45.0}
    assert scores_by_round(tmp_path / "nothing", "buy", [1]) == ("", {})


def four(tmp_path: Path, scene_data: Path, pool: Dataset) -> Analysis:
    run = begin_run(tmp_path / "run", scene_data)
    rounds = [buy(run, pool, n, [(n, c) for c in range(3)]) for n in range(1, 5)]
    return analyse(rounds, truth=truth_of(pool), scores=("city:val", {1: 40.0, 2: 45.0, 3: 47.0, 4: 48.0}))


def test_the_forecast_is_of_the_next_round_and_of_whole_images(tmp_path: Path, scene_data: Path, pool: Dataset) -> None:
    found = four(tmp_path, scene_data, pool)
    names = [(name, share) for name, share, _ in found.forecasts()]
    last = found.rounds[4].labelled_px / found.pool_px
    assert names == [("round 5", pytest.approx(found.shares[4] + last))]  # 30 images are more than the pool of 6 has
    assert found.forecast_lines()[0].startswith("round 5 (")
    assert "Forecast, round 5" in render(found, None, "run")


def test_no_forecast_without_the_newest_score(rounds: list[Round]) -> None:
    assert analyse(rounds, scores=("", {1: 40.0})).forecasts() == []


def test_a_round_that_bought_nothing_is_no_fault(tmp_path: Path, scene_data: Path, pool: Dataset) -> None:
    run = begin_run(tmp_path / "run", scene_data)
    rounds = [buy(run, pool, n, [(n, 0)] if n < 4 else []) for n in range(1, 5)]
    found = analyse(rounds, scores=("city:val", {1: 40.0, 2: 45.0, 3: 47.0, 4: 48.0}))
    assert found.forecasts() == [] and found.total.regions == 3
    assert found.to_dict()["rounds"]["4"]["regions"] == 0
    assert render(found, None, "run") and analyse(rounds[3:]).to_dict() and render(analyse(rounds[3:]), None, "run")


def test_the_page_escapes_and_asks_no_network(rounds: list[Round], pool: Dataset) -> None:
    page = render(analyse(rounds, truth=truth_of(pool)), None, "<script>alert(1)</script>")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page and "class_weights" in page
    assert "class_weights" not in render(analyse(rounds), None, "run")


def test_a_histogram_holds_every_region() -> None:
    import re

    drawn = str(histogram([1, 10, 10, 100, 5000]))
    assert sum(int(n) for n in re.findall(r"px: (\d+)<", drawn)) == 5
    assert str(histogram([])) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9_999, "9999"), (12_345, "12.3k"), (999_499, "999k"), (999_600, "1M"), (5.95e6, "5.95M")],
)
def test_pixels_in_little_room(value: float, text: str) -> None:
    assert short(value) == text


def test_the_command(rounds: list[Round], tmp_path: Path, capsys: pytest.CaptureFixture[str], pool: Dataset) -> None:
    run = rounds[0].folder.parents[2]
    numbers, page = tmp_path / "n.json", tmp_path / "p.html"
    annotate_analyse.analyse(run, truth=True, against=run, json_file=numbers, out=page)
    out = capsys.readouterr().out
    lines = [x for x in out.splitlines() if "class_weights" not in x and str(tmp_path) not in x]
    assert max(map(len, lines)) <= 80
    assert "no pixel was bought twice" in out and "100.0 % of all" in out
    assert all(name in out for name in SPACE.classes)
    stored = json.loads(numbers.read_text())
    assert stored["total"]["regions"] == 7 and stored["against"]["pixels"] == 1
    assert stored["rounds"]["2"]["miou"] == pytest.approx(45)
    assert page.read_text().startswith("<!doctype html>")
