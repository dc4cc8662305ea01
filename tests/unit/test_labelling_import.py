"""What people hand in: whole and half jobs in every format, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from helpers.labelling_jobs import (
    IDS,
    NAMES,
    SPACE,
    Photos,
    brush,
    everything,
    hand_in,
    labelled,
    make_round,
    paint,
    png,
    same,
    stored,
    take,
    truth,
    wanted,
)
from segue.acquire.state import VOID, Round
from segue.labelling import LabellingError, export, lines
from segue.labelling.items import Item, Target
from segue.labelling.job import name_of, names
from segue.labelling.merge import Merger, Policy
from segue.labels import IGNORE, U8

VALUES = st.sampled_from([0, 1, 4, VOID, IGNORE])
TOOLS = ("label-studio", "cvat", "cvat-grey", "png", "png-grey", "png-colour", "png-zip")


@pytest.fixture
def chosen(tmp_path: Path) -> Round:
    return make_round(tmp_path / "g")


@pytest.mark.parametrize("tool", TOOLS)
def test_answers_arrive_and_the_same_again_changes_nothing(tool: str, chosen: Round, tmp_path: Path) -> None:
    path = labelled(chosen, tool, tmp_path, everything())
    report = take(chosen, path)
    same(stored(chosen), wanted(chosen, everything()))
    assert report.missing == [] and report.complete and report.labels == 3
    assert report.merged.outside_px == sum(int((chosen.asked(i) == 0).sum()) for i in IDS)
    files = {p: p.read_bytes() for p in chosen.folder.rglob("*") if p.is_file()}
    again = take(chosen, path)
    assert {p: p.read_bytes() for p in chosen.folder.rglob("*") if p.is_file()} == files
    assert not again.merged.changes and again.merged.known == 3 and not again.merged.untouched
    assert "3 with none that is new" in "\n".join(lines(again, "R"))


@pytest.mark.parametrize("tool", TOOLS)
def test_half_a_job_and_then_the_rest(tool: str, chosen: Round, tmp_path: Path) -> None:
    done = everything()
    first = done[IDS[0]].copy()
    first[chosen.asked(IDS[0]) == 3] = IGNORE  # one region left out
    part = chosen.asked(IDS[0]) == 2
    first[part & (np.cumsum(part).reshape(part.shape) > 32)] = IGNORE  # and half of another
    report = take(chosen, labelled(chosen, tool, tmp_path, {IDS[0]: first}))
    assert [(r.image, r.part) for r in report.missing if r.image == IDS[0]] == [(IDS[0], 2), (IDS[0], 3)]
    assert len(report.missing) == 2 + 6 and not report.complete
    text = "\n".join(lines(report, "R"))
    assert "1 of 9 regions answered" in text and f"{IDS[0]}: 2 regions" in text and "--close" in text

    job = tmp_path / "rest" / "files"
    described = export(chosen, Photos(), job, tool.split("-")[0] if tool != "label-studio" else tool)
    assert {i.id: i.parts for i in described.images}[IDS[0]] == (2, 3)
    assert take(chosen, hand_in(tool, job, done)).complete
    same(stored(chosen), wanted(chosen, done))


def test_gaps_at_borders_of_a_region_are_no_missing_answer(chosen: Round, tmp_path: Path) -> None:
    done = everything()
    for image in IDS:
        for part in (1, 2, 3):
            done[image][tuple(np.argwhere(chosen.asked(image) == part)[:3].T)] = IGNORE  # 3 of 64
    assert take(chosen, labelled(chosen, "label-studio", tmp_path, done)).complete


@pytest.mark.parametrize("tool", ["cvat", "png"])
def test_a_proposal_that_nobody_touched_is_no_answer(tool: str, chosen: Round, tmp_path: Path) -> None:
    job = tmp_path / "job" / "files"
    export(chosen, Photos(), job, tool)
    back = job / "annotations.zip" if tool == "cvat" else job
    report = take(chosen, back)
    assert stored(chosen) == {} and len(report.merged.untouched) == 3
    assert "3 images came back exactly as proposed" in "\n".join(lines(report, "R"))
    assert take(chosen, back, accept_untouched=True).complete
    assert not take(chosen, back).merged.untouched  # they are answers now


def test_a_proposal_of_earlier_strokes_that_nobody_touched_is_no_answer(chosen: Round, tmp_path: Path) -> None:
    half = np.where((chosen.asked(IDS[0]) > 0) & (np.arange(32) % 8 < 4), VOID, IGNORE).astype(np.uint8)
    take(chosen, labelled(chosen, "png", tmp_path, {IDS[0]: half}))
    export(chosen, Photos(), tmp_path / "rest", "png")
    report = take(chosen, tmp_path / "rest")
    assert sorted(report.merged.untouched) == sorted(IDS)
    same(stored(chosen), {IDS[0]: half})


@pytest.mark.parametrize("together", [True, False])
def test_two_people_share_the_images_of_a_job(together: bool, chosen: Round, tmp_path: Path) -> None:
    done = everything()
    first = labelled(chosen, "png", tmp_path, {IDS[0]: done[IDS[0]]}, "first")
    second = labelled(
        chosen, "png", tmp_path, {i: done[i] for i in IDS[1:]}, "second"
    )  # the first image is as proposed
    if together:
        report = take(chosen, second, first)
    else:
        half = take(chosen, first)
        assert sorted(half.merged.untouched) == sorted(IDS[1:])
        report = take(chosen, second)
    assert report.complete and report.merged.conflict_px == 0
    same(stored(chosen), wanted(chosen, done))


def test_one_touched_region_makes_an_image_looked_at(chosen: Round, tmp_path: Path) -> None:
    job = tmp_path / "job" / "files"
    export(chosen, Photos(), job, "png")
    path = job / "labels" / f"{name_of(IDS[1])}.png"
    label = np.asarray(Image.open(path)).copy()
    label[chosen.asked(IDS[1]) == 2] = 4
    path.write_bytes(png(label))
    report = take(chosen, job)
    assert sorted(report.merged.untouched) == sorted([IDS[0], IDS[2]])
    same(stored(chosen), {IDS[1]: label})


def test_what_label_studio_says_was_submitted_is_looked_at(chosen: Round, tmp_path: Path) -> None:
    job = tmp_path / "job" / "files"
    export(chosen, Photos(), job, "label-studio")
    tasks = json.loads((job / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [{"completed_by": 4, "result": task["predictions"][0]["result"]}]
    (tmp_path / "back.json").write_text(json.dumps(tasks))
    assert take(chosen, tmp_path / "back.json").complete


def test_predictions_drafts_and_cancelled_annotations_do_not_count(chosen: Round, tmp_path: Path) -> None:
    path = labelled(chosen, "label-studio", tmp_path, everything())
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[1]["drafts"] = tasks[1].pop("annotations")
    path.write_text(json.dumps(tasks))
    report = take(chosen, path)
    assert list(stored(chosen)) == [tasks[2]["data"]["image_id"]]
    text = "\n".join(report.notes)
    assert "1 of 3 tasks have no annotation yet" in text and "1 annotations were cancelled" in text


def test_an_empty_brush_answers_nothing_and_void_is_an_answer(chosen: Round, tmp_path: Path) -> None:
    path = labelled(chosen, "label-studio", tmp_path, {})
    tasks = json.loads(path.read_text())
    nothing, all_void = np.zeros((24, 32), bool), chosen.asked(tasks[1]["data"]["image_id"]) > 0
    tasks[0]["annotations"] = [{"completed_by": 1, "result": [brush(nothing, "road")]}]
    tasks[1]["annotations"] = [{"completed_by": 1, "result": [brush(all_void, "void_")]}]
    path.write_text(json.dumps(tasks))
    report = take(chosen, path)
    assert len(report.missing) == 6
    same(stored(chosen), {tasks[1]["data"]["image_id"]: np.where(all_void, VOID, IGNORE).astype(np.uint8)})


def test_a_later_brush_lies_over_an_earlier_one(chosen: Round, tmp_path: Path) -> None:
    path = labelled(chosen, "label-studio", tmp_path, {})
    tasks = json.loads(path.read_text())
    image = tasks[0]["data"]["image_id"]
    over = np.zeros((24, 32), bool)
    over[:, 10:20] = True
    tasks[0]["annotations"] = [{"result": [brush(np.ones((24, 32), bool), "tree"), brush(over, NAMES[1])]}]
    path.write_text(json.dumps(tasks))
    take(chosen, path)
    expected = np.where(chosen.asked(image) > 0, np.where(over, 1, 3), IGNORE).astype(np.uint8)
    same(stored(chosen), {image: expected})


def two_annotators(chosen: Round, tmp_path: Path, *, second: int = 2, time: str = "2026-01-02T00:00:00Z") -> Path:
    """Both label the first image; the second one sees 'night' in the left half."""
    path = labelled(chosen, "label-studio", tmp_path, {IDS[0]: truth(0, void=False)})
    tasks = json.loads(path.read_text())
    task = next(t for t in tasks if t["data"]["image_id"] == IDS[0])
    other = truth(0, void=False)
    other[:, :16] = 4
    task["annotations"].append({"completed_by": second, "updated_at": time, "result": paint(other, names(SPACE))})
    path.write_text(json.dumps(tasks))
    return path


def test_two_annotators_who_disagree(chosen: Round, tmp_path: Path) -> None:
    path = two_annotators(chosen, tmp_path)
    one, asked = truth(0, void=False), chosen.asked(IDS[0])
    other = one.copy()
    other[:, :16] = 4
    differ = (asked > 0) & (one != other)
    with pytest.raises(LabellingError, match=f"differs from another label.* in {differ.sum()} pixels") as told:
        take(chosen, path)
    assert "--on-conflict" in str(told.value) and stored(chosen) == {}
    expected = {"keep": one, "replace": other, "void": np.where(differ, VOID, one)}
    for policy, label in expected.items():
        for file in (chosen.folder / "answers").glob("*"):
            file.unlink()
        report = take(chosen, path, policy=policy)
        assert report.merged.conflict_px == differ.sum()
        same(stored(chosen), {IDS[0]: np.where(asked > 0, label, IGNORE).astype(np.uint8)})
        take(chosen, path, policy=policy)
        same(stored(chosen), {IDS[0]: np.where(asked > 0, label, IGNORE).astype(np.uint8)})


def test_the_last_word_of_the_same_annotator_counts(chosen: Round, tmp_path: Path) -> None:
    take(chosen, two_annotators(chosen, tmp_path, second=1, time="2025-12-31T00:00:00Z"))  # handed in before the other
    expected = np.where(chosen.asked(IDS[0]) > 0, truth(0, void=False), IGNORE)
    same(stored(chosen), {IDS[0]: expected.astype(np.uint8)})


@pytest.mark.parametrize("policy", ["error", "keep", "replace", "void"])
def test_earlier_answers(policy: str, chosen: Round, tmp_path: Path) -> None:
    take(chosen, labelled(chosen, "png", tmp_path, everything()))
    before = stored(chosen)
    changed = everything()
    changed[IDS[2]] = (truth(2, void=False) + 1) % 5
    export(chosen, Photos(), tmp_path / "again" / "files", "png", everything=True)
    path = hand_in("png", tmp_path / "again" / "files", changed)
    if policy == "error":
        with pytest.raises(LabellingError, match=r"answer imported before in \d+ pixels of 'c'"):
            take(chosen, path)
        same(stored(chosen), before)
        return
    take(chosen, path, policy=policy)
    asked, old, new = chosen.asked(IDS[2]) > 0, before[IDS[2]], changed[IDS[2]]
    differ = asked & (old != new)
    assert differ.any()
    expected = {"keep": old, "replace": np.where(asked, new, IGNORE), "void": np.where(differ, VOID, old)}[policy]
    same(stored(chosen), before | {IDS[2]: expected.astype(np.uint8)})


def test_late_answers_go_to_their_own_round(chosen: Round, tmp_path: Path) -> None:
    take(chosen, labelled(chosen, "png", tmp_path, {IDS[0]: truth(0)}))
    second = make_round(tmp_path / "g", 2)
    job = tmp_path / "late" / "files"
    export(second, Photos(), job, "cvat")
    label = truth(1)
    answer = np.where(second.asked(IDS[1]) > 0, label, IGNORE).astype(np.uint8)
    first_asked = chosen.asked(IDS[1])
    answer[first_asked == 1] = label[first_asked == 1]  # a whole region of round 1, too
    stroke = (first_asked == 2) & (np.arange(32) % 8 < 2)
    answer[stroke] = 0  # and a stroke that reached into another
    report = take(second, hand_in("cvat", job, {IDS[1]: answer}))
    assert report.round.info.round == 2 and set(report.merged.new_px) == {1, 2}
    assert report.merged.outside_px == stroke.sum()
    same(stored(second), {IDS[1]: np.where(second.asked(IDS[1]) > 0, label, IGNORE).astype(np.uint8)})
    np.testing.assert_array_equal(stored(chosen)[IDS[1]], np.where(first_asked == 1, label, IGNORE))
    assert "late answers" in "\n".join(lines(report, "R"))


def test_a_job_of_an_earlier_round_answers_that_round(chosen: Round, tmp_path: Path) -> None:
    half = np.where(chosen.asked(IDS[0]) > 0, truth(0), IGNORE).astype(np.uint8)
    half[:12] = IGNORE
    path = labelled(chosen, "png", tmp_path, {IDS[0]: half})
    second = make_round(tmp_path / "g", 2)
    take(second, path)
    assert stored(second) == {}
    asked = chosen.asked(IDS[0])
    np.testing.assert_array_equal(stored(chosen)[IDS[0]], np.where(asked > 0, half, IGNORE))


def test_answers_that_contradict_the_model_are_shown(chosen: Round, tmp_path: Path) -> None:
    done = {}
    for image in IDS:
        label = np.full((24, 32), IGNORE, np.uint8)
        for row in chosen.by_image[image]:
            label[chosen.asked(image) == row.part] = row.predicted
        done[image] = label
    done[IDS[1]][chosen.asked(IDS[1]) == 2] = (chosen.by_image[IDS[1]][1].predicted + 1) % 5
    done[IDS[0]][chosen.asked(IDS[0]) == 1] = VOID  # no class, no contradiction
    report = take(chosen, labelled(chosen, "label-studio", tmp_path, done))
    assert len(report.merged.surprising) == 1 and "town/b, region 2" in report.merged.surprising[0]
    assert "look again" in "\n".join(lines(report, "R"))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        arrays.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 4, VOID, IGNORE])), min_size=1, max_size=3
    ),
    arrays.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, VOID, IGNORE])),
    st.sampled_from(["keep", "replace", "void"]),
)
def test_merging_pixel_by_pixel(chosen: Round, tiles: list[U8], before: U8, policy: Policy) -> None:
    big = [np.kron(tile, np.ones((8, 8), np.uint8)) for tile in tiles]
    asked = chosen.asked(IDS[0])
    old = np.where(asked > 0, np.kron(before, np.ones((8, 8), np.uint8)), IGNORE).astype(np.uint8)
    answers = chosen.answers()
    answers.put(IDS[0], old)
    answers.save()
    items = [
        Item(f"label {n}", IDS[0], f"person {n}", lambda size, label=label: label, f"{n}", looked=True)
        for n, label in enumerate(big)
    ]
    merger = Merger(Target([chosen]), 1, policy, accept_untouched=False)
    merger.add(IDS[0], items[::-1])
    expected = old.copy()
    for label in big:
        for at in np.ndindex(24, 32):
            if asked[at] == 0 or label[at] == IGNORE or label[at] == expected[at]:
                continue
            if expected[at] == IGNORE or policy == "replace":
                expected[at] = label[at]
            elif policy == "void":
                expected[at] = VOID
    found = merger.out.changes[0].label if merger.out.changes else old
    np.testing.assert_array_equal(found, expected)
    assert merger.out.outside_px == sum(int(((label != IGNORE) & (asked == 0)).sum()) for label in big)
