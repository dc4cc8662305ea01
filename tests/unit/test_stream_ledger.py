"""The ledger of a followed stream: against hand-made and published numbers, in every damaged shape, in the report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue import report
from segue.cli import _print_summary
from segue.files import write_json
from segue.labels import load_space
from segue.report.following import following, stream_ledger_of
from segue.report.read import read_run
from segue.scoring.bootstrap import PerImage, write_per_image
from segue.scoring.names import per_image_file
from segue.scoring.stream_ledger import Visited, lines, stream_ledger

NAN = math.nan
SOURCE, TARGET = "game:val", "city:val"
CURVE = [(0.70, 0.40), (0.71, 0.41), (0.66, 0.46), (0.68, 0.44)]  # source and target after bucket 0, 1, 2, 3

# The published tables, in percent: mean accuracy and mIoU on Cityscapes, the same on KITTI-360, mean mIoU.
PUBLISHED = {
    "source_only": (83.75, 76.21, 71.17, 48.62, 62.41),
    "random": (70.90, 61.36, 70.35, 50.37, 55.87),
    "ranked_class_count_kd_entropy": (73.50, 63.52, 71.89, 51.58, 57.55),
    "selected_blocks": (73.37, 64.48, 71.92, 51.60, 58.04),
}


def stream(curve: list[tuple[float, float]], group: str = "follow", start: str = "source_only") -> list[Visited]:
    """The stage that a stream began with, and a stage for each bucket."""
    return [
        Visited(
            name=f"{group}_{k}" if k else start,
            miou={TARGET: target, SOURCE: source},
            group=group,
            bucket=k,
            began=start if k else "",
            source=SOURCE if k else "",
        )
        for k, (source, target) in enumerate(curve)
    ]


def published() -> list[Visited]:
    """The rows of the published tables as streams of one bucket each."""
    return [
        Visited(
            name=name if name == "source_only" else f"{name}_1",
            miou={SOURCE: row[1] / 100, TARGET: row[3] / 100},
            accuracy={SOURCE: row[0] / 100, TARGET: row[2] / 100},
            group=name,
            bucket=int(name != "source_only"),
            began="source_only",
            source=SOURCE,
        )
        for name, row in PUBLISHED.items()
    ]


def test_numbers_of_a_stream_by_hand() -> None:
    (found,) = stream_ledger(stream(CURVE), TARGET).streams
    assert [row.name for row in found.rows] == ["source_only", "follow_1", "follow_2", "follow_3"]
    assert found.on_source == [0.70, 0.71, 0.66, 0.68] and found.on_target == [0.40, 0.41, 0.46, 0.44]
    assert found.change(found.buckets[2], SOURCE) == pytest.approx(-0.04)
    assert math.isnan(found.change(found.rows[0], SOURCE))
    assert found.summary() == pytest.approx(
        {"target": 0.04, "source": -0.02, "forgetting": 0.03, "mean": 1.31 / 3, "average": 0.56, "worst": 0.04}
    )


def test_a_source_that_only_gains_forgets_less_than_nothing() -> None:
    (found,) = stream_ledger(stream([(0.5, 0.4), (0.6, 0.4), (0.7, 0.4)]), TARGET).streams
    assert found.summary()["forgetting"] == pytest.approx(-0.1) and found.summary()["worst"] == pytest.approx(-0.1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9), st.randoms())
def test_any_stream_against_numpy_in_any_order_of_its_stages(curve: list[tuple[float, float]], random: Any) -> None:
    stages = stream(curve)
    random.shuffle(stages)
    sums = stream_ledger(stages, TARGET).streams[0].summary()
    source, target = np.array(curve).T
    expected = [target[-1] - target[0], source[-1] - source[0], source[:-1].max() - source[-1], target[1:].mean()]
    expected += [np.array(curve)[-1].mean(), (source[0] - source[1:]).max()]
    np.testing.assert_allclose(list(sums.values()), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("missing", "known"), [(0, {"mean", "average"}), (1, {"target", "source", "average"}), (3, set())]
)
@pytest.mark.parametrize("whole", [False, True], ids=["a score", "a stage"])
def test_what_misses_a_score_is_not_computed_from_the_rest(missing: int, known: set[str], whole: bool) -> None:
    stages = stream([*CURVE[:missing], (NAN, NAN), *CURVE[missing + 1 :]])
    if whole and missing < 3:
        del stages[missing]
    (found,) = stream_ledger(stages, TARGET).streams
    assert {name for name, value in found.summary().items() if not math.isnan(value)} == known


def test_the_target_is_never_the_source() -> None:
    assert stream_ledger(stream(CURVE), SOURCE).streams[0].target == TARGET
    assert stream_ledger(stream(CURVE), None).streams[0].target == TARGET
    only = [Visited("a", {SOURCE: 0.5}), Visited("b_1", {SOURCE: 0.4}, {}, "b", 1, "a", SOURCE)]
    (found,) = stream_ledger(only, SOURCE).streams
    assert found.target == "" and found.summary()["source"] == pytest.approx(-0.1)
    assert math.isnan(found.summary()["target"]) and math.isnan(found.summary()["average"])


def test_the_published_tables_read_as_published() -> None:
    found = stream_ledger(published(), TARGET)
    assert [row.name for row in found.compared] == list(PUBLISHED), "the source model's row comes first"
    for row in found.compared:
        np.testing.assert_allclose([100 * v for v in row.scores], PUBLISHED[row.name], atol=0.0051)
    best = found.streams[-1].summary()
    assert 100 * best["target"] == pytest.approx(2.98) and 100 * best["source"] == pytest.approx(-11.73)
    assert found.told == [] and stream_ledger(stream(CURVE), TARGET).compared == []


def test_the_terminal_tables() -> None:
    head, *rows, sums = lines(stream_ledger(stream(CURVE), TARGET))
    assert re.split(r"\s{2,}", head) == ["follow", "bucket", SOURCE, TARGET]
    assert re.split(r"\s{2,}", rows[0]) == ["source_only", "0", "70.0", "40.0"]
    assert re.split(r"\s{2,}", rows[2]) == ["follow_2", "2", "66.0 (-4.0)", "46.0 (+6.0)"]
    assert sums == "follow: target +4.0, source -2.0, forgetting 3.0, mean 43.7, average 56.0, worst 4.0"
    told = lines(stream_ledger(published(), TARGET))
    assert re.split(r"\s{2,}", told[0].strip()) == ["game:val mAcc", "mIoU", "city:val mAcc", "mIoU", "mean mIoU"]
    assert told[1].split() == ["source_only", "83.8", "76.2", "71.2", "48.6", "62.4"]
    assert told[4].split() == ["selected_blocks", "73.4", "64.5", "71.9", "51.6", "58.0"]
    assert told[5].startswith("random: target +1.7, source -14.8") and len(told) == 8
    bare = lines(stream_ledger([Visited("b_1", group="b", bucket=1)], None))
    assert bare == ["b    bucket", "b_1       1", "b: no scores"]
    assert lines(stream_ledger([Visited("a")], TARGET)) == []


def make_run(folder: Path, stages: list[Visited], num: int = 0) -> Path:
    """A run folder of such stages; ``num`` images with counts, on which their mIoU are drawn from two classes."""
    info = {"name": "follow", "labels": load_space("cityscapes19").to_dict(), "status": "finished", "target": TARGET}
    write_json(folder / "run.json", info)
    for number, one in enumerate(stages):
        follow = {"group": one.group, "bucket": one.bucket, "buckets": 3, "images": 2120, "low": 0.312, "high": 0.44}
        follow |= {"by": "gap", "order": "ascending", "source": one.source, "from": one.began, "before": one.began}
        follow |= {"source_data": "none", "layers": ["backbone.layer1.0"], "trained": [1_230_000, 60_000_000]}
        scores = {
            data: {"miou": miou, "iou": {"road": miou}, "mean_accuracy": one.accuracy.get(data), "num_images": 3}
            for data, miou in one.miou.items()
        }
        path = folder / "stages" / f"{number}_{one.name}"
        write_json(
            path / "stage.json", {"name": one.name, "evaluations": scores} | ({"follow": follow} if one.bucket else {})
        )
        for data, miou in one.miou.items() if num else ():
            rng = np.random.default_rng(7)
            truth = rng.integers(800, 1200, (num, 2)).astype(np.uint32)
            right = np.round(truth * miou * rng.uniform(0.9, 1.1, (num, 1))).astype(np.uint32)
            images = PerImage(tuple(map(str, range(num))), ("road", "sky"), right, truth, right, (0, 1))
            write_per_image(images, path / per_image_file(data))
    return folder


def section(folder: Path) -> str:
    """The page's section on the stream, without tags; empty when it has none."""
    html = report.write(folder).read_text("utf-8")
    found = re.search(r"<h2>Followed stream</h2>(.*?)</section>", html, re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[1])) if found else ""


def test_the_report_shows_every_bucket_the_sums_and_the_source(tmp_path: Path) -> None:
    text = section(make_run(tmp_path, stream(CURVE), num=30))
    assert "gains on the target city:val and loses on the source game:val" in text
    assert "source_only 0 – – – 70.0 – 40.0 –" in text
    assert (
        "follow_2 backbone.layer1.0 2 2 120 0.312 to 0.44 gap, ascending 1.23 M "
        "66.0 \N{MINUS SIGN}4.0 46.0 +6.0" in text
    )
    assert "mIoU on source and target, after every bucket" in text and "mean mIoU" not in text
    sums = re.search(r"follow \+4\.0 (\S+) to (\S+) \N{MINUS SIGN}2\.0 (\S+) to (\S+) 3\.0 4\.0 43\.7 56\.0 none", text)
    assert sums
    low_target, high_target, low_source, high_source = (float(v.replace("\N{MINUS SIGN}", "-")) for v in sums.groups())
    assert 0 < low_target <= high_target and low_source <= high_source < 0


def test_single_buckets_are_compared_by_their_ends(tmp_path: Path) -> None:
    text = section(make_run(tmp_path, published()))
    assert "Where the streams end" in text and "after every bucket" not in text
    assert "source mAcc source mIoU target mAcc target mIoU mean mIoU source_only 83.8 76.2 71.2 48.6 62.4" in text
    assert "selected_blocks 73.4 64.5 71.9 51.6 58.0" in text
    assert "selected_blocks +3.0 \N{MINUS SIGN}11.7 11.7 11.7 51.6 58.0 none" in text


def test_several_streams_have_a_chart_for_each_data_set(tmp_path: Path) -> None:
    stages = stream(CURVE) + stream([(0.7, 0.4), (0.6, 0.42), (0.5, 0.43)], "no_kd")[1:]
    text = section(make_run(tmp_path, stages))
    assert "mIoU on the source, after every bucket" in text and "mIoU on the target, after every bucket" in text
    assert "no_kd_2" in text and "Where the streams end" in text
    assert text.count("source_only 0 ") == 2, "every stream shows the model that it began with"


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    run = make_run(tmp_path, [Visited("source_only", {TARGET: 0.4})])
    assert section(run) == "" and following(read_run(run)) is None


DAMAGED: list[dict[str, Any]] = [
    {"follow": None},
    {"follow": {"bucket": 10**9}},
    {"follow": {"bucket": "two"}},
    {"follow": {"bucket": 2}},
    {"follow": {"bucket": 2, "group": "follow", "from": "follow_2", "source": ["x"], "trained": {}, "layers": 4}},
    {"follow": {"bucket": 2, "group": "follow", "from": [], "images": "many", "low": None, "high": {}, "trained": []}},
    {"evaluations": {}},
    {"evaluations": None},
    {"evaluations": {TARGET: {"miou": None}, SOURCE: 3}},
    {"evaluations": {f"{k}:val": {"miou": 0.1} for k in range(60)}},
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_and_unfinished_stages_do_not_break_the_page(damage: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path, stream(CURVE))
    (path,) = run.glob("stages/*_follow_2/stage.json")
    write_json(path, json.loads(path.read_text()) | damage)
    text = section(run)
    assert "follow_3" in text and "nan" not in text.lower()
    assert "nan" not in "".join(lines(stream_ledger_of(read_run(run))))


def test_names_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path, stream(CURVE, group="<b>x"))
    for path in run.glob("stages/*/stage.json"):
        content = json.loads(path.read_text())
        if "follow" in content:
            bad = dict.fromkeys(("by", "order", "source_data", "source"), "<b>x")
            content["follow"] |= bad | {"layers": ["<b>x"]}
        write_json(path, content)
    html = report.write(run).read_text("utf-8")
    assert "<b>x" not in html and "&lt;b&gt;x" in html


def test_the_end_of_a_run_prints_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _print_summary(make_run(tmp_path, stream(CURVE)), {"cpu_s": 1.0, "peak_memory_gb": 1.0})
    out = capsys.readouterr().out
    assert "follow: target +4.0, source -2.0" in out and out.index("follow_3") < out.index("1 CPU-seconds")
