"""The ledger of class-incremental steps: against hand-made numbers, in every damaged shape, and in the report."""

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
from segue.report.extension import extension, ledger_of
from segue.report.read import read_run
from segue.scoring.ledger import Chain, Scored, columns, ledger, lines, title, union

NAN = math.nan
# The two rows of the published table (Klingner et al., ITSC 2020, README of its code), in percent.
PUBLISHED = {"1": 0.845, "2": 0.578, "1+2": 0.640, "3": 0.684, "1+2+3": 0.622}
STATIC = {"1": 0.881, "2": 0.656, "1+2": 0.708, "3": 0.638, "1+2+3": 0.644}


def three_steps() -> list[Scored]:
    """A shared first step, two methods of two further steps, all classes at once."""
    one = Scored("step1", 1, "supervised", (), {"1": 0.90})
    rows = [one]
    for name, second, third in (
        ("cil", {"1": 0.86, "2": 0.60, "1+2": 0.66}, PUBLISHED),
        ("fine_tune", {"1": 0.40, "2": 0.70, "1+2": 0.20}, {"1": 0.10, "2": 0.20, "1+2": 0.05, "3": 0.7, "1+2+3": 0.1}),
    ):
        rows.append(Scored(f"{name}_2", 2, name, ("step1",), second))
        rows.append(Scored(f"{name}_3", 3, name, (f"{name}_2",), third))
    return [*rows, Scored("joint", None, "supervised", (), STATIC)]


def test_columns_stand_as_in_the_published_table() -> None:
    found = columns(["1+2+3", "3", "1", "1+2", "2"])
    assert [title(name) for name in found] == ["Task 1", "Task 2", "Task 1∪2", "Task 3", "Task 1∪2∪3"]
    assert title(union(6)) == "Task 1∪…∪6" and columns(["extra", "10", "9"]) == ("9", "10", "extra")


def test_chains_share_their_first_stage_and_are_named_by_their_last() -> None:
    found = ledger(three_steps())
    assert [(c.name, [s.name for s in c.stages]) for c in found.chains] == [
        ("cil", ["step1", "cil_2", "cil_3"]),
        ("fine_tune", ["step1", "fine_tune_2", "fine_tune_3"]),
    ]
    assert Chain((Scored("set123", 3),)).name == "set123", "only a number that stands apart is that of the step"


def test_numbers_of_a_chain_by_hand() -> None:
    cil, tuned = ledger(three_steps()).chains
    np.testing.assert_array_equal(
        cil.matrix, [[0.90, NAN, NAN], [0.86, 0.60, NAN], [PUBLISHED["1"], PUBLISHED["2"], PUBLISHED["3"]]]
    )
    found = cil.summary()
    assert found["all"] == 0.622 and found["average"] == pytest.approx((0.90 + 0.66 + 0.622) / 3)
    assert found["forgetting"] == pytest.approx(((0.90 - 0.845) + (0.60 - 0.578)) / 2)
    assert found["backward"] == pytest.approx(-found["forgetting"])
    assert found["gap"] == pytest.approx(0.644 - 0.622)
    assert tuned.summary()["forgetting"] == pytest.approx((0.8 + 0.5) / 2)


def test_the_best_score_before_the_end_counts_and_not_the_first() -> None:
    rows = [Scored("a_1", 1, miou={"1": 0.5}), Scored("a_2", 2, before=("a_1",), miou={"1": 0.6, "2": 0.4})]
    rows.append(Scored("a_3", 3, before=("a_2",), miou={"1": 0.3, "2": 0.5, "3": 0.9}))
    found = ledger(rows).chains[0].summary()
    assert found["forgetting"] == pytest.approx(((0.6 - 0.3) + (0.4 - 0.5)) / 2), "a task that gained counts, too"
    assert found["backward"] == pytest.approx(((0.3 - 0.5) + (0.5 - 0.4)) / 2)


def test_old_and_new_are_of_the_union_and_leave_out_the_background() -> None:
    iou = {"1": {"background": 0.9, "cat": 0.8, "dog": 0.6}}
    iou["1+2"] = {"background": 0.95, "cat": 0.5, "dog": 0.3, "cow": 0.2, "hen": NAN}
    last = Scored("mib_2", 2, before=("mib_1",), miou={"1": 0.77, "1+2": 0.49}, iou=iou)
    found = ledger([Scored("mib_1", 1), last], background="background").chains[0].summary()
    assert found["old"] == pytest.approx(0.4) and found["new"] == 0.2, "a class that is absent is in no mean"
    assert found["harmonic"] == pytest.approx(2 * 0.4 * 0.2 / 0.6)
    assert ledger([Scored("mib_1", 1), last]).chains[0].summary()["old"] == pytest.approx((0.95 + 0.5 + 0.3) / 3)


def test_one_missing_score_leaves_no_mean_of_the_others() -> None:
    rows = three_steps()
    rows[1] = Scored("cil_2", 2, "cil", ("step1",), {})
    found = ledger(rows).chains[0].summary()
    assert math.isnan(found["average"]) and math.isnan(found["forgetting"]) and math.isnan(found["backward"])
    assert found["gap"] == pytest.approx(0.022)
    assert all(math.isnan(v) for v in ledger([Scored("a", 1)]).chains[0].summary().values())


def test_a_chain_may_begin_late_end_early_and_repeat_a_step() -> None:
    from_file = [Scored("x_2", 2, before=("model.pth",), miou={"1": 0.8, "2": 0.5, "1+2": 0.6})]
    from_file.append(Scored("x_3", 3, before=("x_2",), miou={"1": 0.7, "2": 0.5, "3": 0.4}))
    found = ledger(from_file).chains[0].summary()
    assert found["forgetting"] == pytest.approx((0.8 - 0.7) / 2), "from the first score that there is"
    assert found["backward"] == 0, "of task 2 alone: what the model scored just after step 1 is not known"
    again = [Scored("a", 1, miou={"1": 0.5}), Scored("b", 2, before=("a",), miou={"1": 0.1})]
    again.append(Scored("c", 2, before=("b",), miou={"1": 0.4, "2": 0.3}))
    (chain,) = ledger(again).chains
    assert [s.name for s in chain.stages] == ["a", "c"] and chain.summary()["forgetting"] == pytest.approx(0.1)
    backwards = [Scored("p", 2, before=("q",)), Scored("q", 2, before=("p",))]
    assert [len(c.stages) for c in ledger(backwards).chains] == [1], "what comes later is not gone on from"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=2, max_size=6))
def test_any_full_matrix_against_numpy(values: list[list[float]]) -> None:
    n = len(values)
    r = np.array([row[:n] for row in values])
    rows = [
        Scored(f"s_{i + 1}", i + 1, before=(f"s_{i}",), miou={str(j + 1): r[i, j] for j in range(i + 1)})
        for i in range(n)
    ]
    found = ledger(rows).chains[0].summary()
    best = np.array([r[j : n - 1, j].max() for j in range(n - 1)])
    assert found["forgetting"] == pytest.approx((best - r[n - 1, : n - 1]).mean())
    assert found["backward"] == pytest.approx((r[n - 1, : n - 1] - np.diag(r)[: n - 1]).mean())


def test_the_terminal_table() -> None:
    head, *rows = lines(ledger(three_steps()))
    assert re.split(r"\s{2,}", head.strip()) == ["Task 1", "Task 2", "Task 1∪2", "Task 3", "Task 1∪2∪3"]
    assert rows[2].split() == ["cil_3", "84.5", "57.8", "64.0", "68.4", "62.2"]
    assert rows[0].split() == ["step1", "90.0", "–", "–", "–", "–"]
    assert rows[5].split() == ["joint", "88.1", "65.6", "70.8", "63.8", "64.4"]
    assert rows[6].startswith("cil: all 62.2") and "gap 2.2" in rows[6] and "nan" not in "".join(rows)
    assert lines(ledger([])) == ["  "]


def stage(folder: Path, number: int, name: str, step: object, miou: dict[str, float], **more: Any) -> Path:
    """A stage.json with what a class-incremental stage stores."""
    tasks = {key: {"miou": value, "iou": {"road": value}} for key, value in miou.items()}
    extend = {"step": step, "task": "cityscapes_5_6_8", "treatment": "ignore", "stored_bytes": 0, "old_data": False}
    extend |= {"taught": ["road"], "images": 956, **more.pop("extend", {})}
    path = folder / "stages" / f"{number}_{name}" / "stage.json"
    scores = {"miou": 0.5, "iou": {"road": 0.5}, "num_images": 3, "tasks": tasks}
    write_json(path, {"name": name, "extend": extend, "evaluations": {"city:val": scores}, **more})
    return path


def make_run(folder: Path) -> Path:
    """A run of the stages of ``three_steps``."""
    info = {"name": "extend", "labels": load_space("cityscapes19").to_dict(), "status": "finished", "roles": {}}
    write_json(folder / "run.json", info)
    for number, one in enumerate(three_steps()):
        before: dict[str, Any] = {
            "method": {"name": one.method},
            "start": None,
            "references": {"teacher": one.before[0]} if one.before else {},
        }
        stored = {"old_data": True, "old_images": 40, "stored_bytes": 2_500_000} if one.name == "cil_3" else {}
        stage(folder, number, one.name, one.step or "all", dict(one.miou), extend=stored, **before)
    return folder


def section(folder: Path) -> str:
    """The page's section on steps, without tags; empty when it has none."""
    html = report.write(folder).read_text("utf-8")
    found = re.search(r"<h2>Class-incremental steps</h2>(.*?)</section>", html, re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[1])) if found else ""


def test_the_report_shows_the_table_the_sums_and_what_was_stored(tmp_path: Path) -> None:
    text = section(make_run(tmp_path))
    assert "Task 1 Task 2 Task 1∪2 Task 3 Task 1∪2∪3" in text
    assert "cil_3 road 3 cil 956 2.5 40 images 84.5 57.8 64.0 68.4 62.2" in text
    assert "joint road all supervised 956 0.0 no 88.1 65.6 70.8 63.8 64.4" in text
    assert "ignored" in text and "cityscapes_5_6_8" in text
    assert re.search(r"fine_tune (–|\d)", text), "sums of the second chain"
    assert len(ledger_of(read_run(tmp_path)).chains) == 2


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in run.glob("stages/*/stage.json"):
        content = json.loads(path.read_text())
        del content["extend"]
        write_json(path, content)
    assert section(run) == "" and extension(read_run(run)) is None


DAMAGED: list[dict[str, Any]] = [
    {"extend": None},
    {"extend": {"step": 10**9}},
    {"extend": {"step": "two"}},
    {"extend": {"step": 2}},
    {"extend": {"step": 2, "taught": 3, "images": "many", "stored_bytes": [], "task": None, "treatment": {}}},
    {"evaluations": {}},
    {"evaluations": None},
    {"evaluations": {"city:val": {"tasks": [1, 2]}}},
    {"evaluations": {"city:val": {"tasks": {"1": 3, "2": {"miou": None, "iou": 4}, "x": {"miou": "y"}}}}},
    {"evaluations": {"city:val": {"tasks": {str(k): {"miou": 0.1} for k in range(500)}}}},
    {"references": ["step1"], "start": 4},
    {"start": "cil_2"},
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_and_unfinished_stages_do_not_break_the_page(damage: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (path,) = run.glob("stages/*_cil_2/stage.json")
    write_json(path, json.loads(path.read_text()) | damage)
    text = section(run)
    assert "fine_tune_3" in text and "nan" not in text.lower()


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"name": "extend", "status": "running"})
    path = tmp_path / "stages/0_step1/stage.json"
    write_json(path, {"name": "step1", "status": "running", "extend": {"step": 1, "taught": ["<b>"]}})
    assert "&lt;b&gt;" in report.write(tmp_path).read_text("utf-8") and "step1" in section(tmp_path)


def test_the_end_of_a_run_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _print_summary(make_run(tmp_path), {"cpu_s": 1.0, "peak_memory_gb": 1.0})
    out = capsys.readouterr().out
    assert "Task 1∪2∪3" in out and "cil: old 62.2, all 62.2" in out and "1 CPU-seconds" in out
    for path in tmp_path.glob("stages/*/stage.json"):
        path.unlink()
    _print_summary(tmp_path, {"cpu_s": 1.0, "peak_memory_gb": 1.0})
    assert capsys.readouterr().out.startswith("1 CPU-seconds"), "a run without steps has no table"
