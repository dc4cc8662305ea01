"""Tasks of incremental learning: the shipped ones against the published tables, spaces of steps, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from segue.labels import LabelError, LabelSpace, build_map, load_space, space_from_dict
from segue.tasks import TaskError, load_task, task_names

# Name, label id and train id of Cityscapes in the order of the task of Klingner et al. (ITSC 2020), by step.
ROWS = [
    ("road", 7, 0, 1),
    ("sidewalk", 8, 1, 1),
    ("vegetation", 21, 8, 1),
    ("terrain", 22, 9, 1),
    ("sky", 23, 10, 1),
    ("building", 11, 2, 2),
    ("wall", 12, 3, 2),
    ("fence", 13, 4, 2),
    ("pole", 17, 5, 2),
    ("traffic_light", 19, 6, 2),
    ("traffic_sign", 20, 7, 2),
    ("person", 24, 11, 3),
    ("rider", 25, 12, 3),
    ("car", 26, 13, 3),
    ("truck", 27, 14, 3),
    ("bus", 28, 15, 3),
    ("train", 31, 16, 3),
    ("motorcycle", 32, 17, 3),
    ("bicycle", 33, 18, 3),
]

# Ids of the new classes of each step, as published (0, the background, belongs to the first).
VOC = {
    "voc_19_1": [range(20), [20]],
    "voc_15_5": [range(16), range(16, 21)],
    "voc_15_1": [range(16), [16], [17], [18], [19], [20]],
    "voc_10_1": [range(11), *([n] for n in range(11, 21))],
}
ADE = {
    "ade_100_50": [range(101), range(101, 151)],
    "ade_100_10": [range(101), *(range(n, n + 10) for n in range(101, 151, 10))],
    "ade_50_50": [range(51), range(51, 101), range(101, 151)],
}
CITIES = ["aachen", "bremen", "darmstadt", "erfurt", "hanover", "krefeld", "strasbourg", "tubingen", "weimar"]
CITIES += ["bochum", "cologne", "dusseldorf", "hamburg", "jena", "monchengladbach", "stuttgart", "ulm", "zurich"]
CITIES += ["frankfurt", "lindau", "munster"]
DOMAINS = {"cityscapes_domains_11_5": [11, 5, 5], "cityscapes_domains_11_1": [11] + [1] * 10}
DOMAINS["cityscapes_domains_1_1"] = [1] * 21

BLOCK: dict[str, Any] = {
    "name": "mine",
    "labels": "street7",
    "protocol": "disjoint",
    "classes": [["road", "sky"], ["vehicle", "living", "sidewalk"], ["roadside", "far"]],
}


def test_every_shipped_task_is_looked_at_here() -> None:
    others = {"cityscapes_5_6_8", "scenes_5_6_8", "camvid_5_3_3"}
    assert set(task_names()) == {*VOC, *ADE, *DOMAINS, *others}


@pytest.mark.parametrize("name", ["cityscapes_5_6_8", "scenes_5_6_8"])
def test_the_19_rows_of_5_6_8(name: str) -> None:
    task, base = load_task(name), load_space("cityscapes19")
    full = task.space(None)
    for train_id, (label, label_id, old_train_id, step) in enumerate(ROWS):
        assert (full.classes[train_id], full.ids[train_id]) == (label, label_id)
        assert base.classes[old_train_id] == label and base.colors[old_train_id] == full.colors[train_id]
        assert train_id in task.taught(step) and train_id not in task.taught(step % 3 + 1)
    assert [len(task.space(step)) for step in (1, 2, 3)] == [5, 11, 19]
    assert [min(task.taught(step)) for step in (2, 3)] == [5, 11]
    assert [task.space(s).name for s in (None, "all", 2)] == [name, name, f"{name}/2"]
    assert task.background is None and full.background is None and (task.protocol, task.steps) == ("partitioned", 3)


def test_cities_and_holdout_of_5_6_8() -> None:
    task = load_task("cityscapes_5_6_8")
    cities = [sorted(p.removesuffix("/*") for p in group.include) for group in task.images]
    assert cities == [
        ["aachen", "dusseldorf", "hanover", "strasbourg"],
        ["bochum", "hamburg", "jena", "monchengladbach", "tubingen", "ulm", "weimar"],
        ["bremen", "cologne", "darmstadt", "krefeld", "stuttgart", "zurich"],
    ]
    assert task.holdout == ("erfurt/*",)
    assert {c for group in cities for c in group} | {"erfurt"} == set(CITIES[:18])


@pytest.mark.parametrize("name", [*VOC, *ADE])
def test_groups_with_a_background(name: str) -> None:
    task, groups = load_task(name), {**VOC, **ADE}[name]
    base = load_space("voc21" if name in VOC else "ade150")
    order = base.classes if name in VOC else ("background", *base.classes)
    full = task.space(None)
    assert full.classes == order and full.background == "background" == full.classes[0]
    assert full.ids[0] == 0 and full.colors[0] == (0, 0, 0)
    assert [task.taught(step) for step in range(1, len(groups) + 1)] == [tuple(group) for group in groups]
    assert task.steps == len(groups) and task.protocol == "overlapped"
    assert task.void == ("ignore" if name in VOC else "background")


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_steps_keep_the_classes(name: str) -> None:
    task = load_task(name)
    cities = [[p.removesuffix("/*") for p in group.include] for group in task.images]
    assert [len(group) for group in cities] == DOMAINS[name] and [c for group in cities for c in group] == CITIES
    for step in range(1, task.steps + 1):
        assert task.space(step).classes == load_space("cityscapes19").classes
        assert task.taught(step) == tuple(range(19)) and task.tasks(step) == {}


def test_camvid_5_3_3() -> None:
    task = load_task("camvid_5_3_3")
    assert task.groups == (
        ("road", "pavement", "sky", "tree", "building"),
        ("pole", "sign", "fence"),
        ("car", "pedestrian", "bicyclist"),
    )
    assert [group.part for group in task.images] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("name", task_names())
def test_train_ids_never_change(name: str) -> None:
    task = load_task(name)
    full = task.space(None)
    assert len(full) == len(load_space(task.labels)) + (name in ADE)
    for step in range(1, task.steps + 1):
        space = task.space(step)
        number = len(space)
        assert (space.classes, space.ids, space.colors) == tuple(
            part[:number] for part in (full.classes, full.ids, full.colors)
        )
        assert set(task.taught(step)) <= set(range(number)) and number - 1 in task.taught(step)
        assert all(set(members) <= set(space.classes) for members in space.views.values())
    assert task.taught(None) == tuple(range(len(full))) == task.taught("all")
    assert full.views == load_space(task.labels).views


def test_what_is_scored_after_a_step() -> None:
    task = load_task(BLOCK)
    one, two, three = (tuple(group) for group in BLOCK["classes"])
    assert task.tasks(1) == {"1": one}
    assert task.tasks(2) == {"1": one, "2": two, "1+2": one + two}
    assert list(task.tasks("all")) == ["1", "2", "1+2", "3", "1+2+3"]
    assert task.tasks(3)["1+2+3"] == one + two + three == task.space(3).classes


def test_sequential_teaches_all_classes_so_far() -> None:
    task = load_task({**BLOCK, "protocol": "sequential"})
    assert [task.taught(step) for step in (1, 2, 3)] == [tuple(range(n)) for n in (2, 5, 7)]


def test_data_of_another_space_maps_onto_the_space_of_a_task() -> None:
    space, camvid = load_task(BLOCK).space(2), load_space("camvid11")
    table = build_map(space, camvid, dict(zip(camvid.ids, camvid.classes, strict=True))).table
    merged = {"sky": "sky", "road": "road", "pavement": "sidewalk", "car": "vehicle"}
    merged |= {"pedestrian": "living", "bicyclist": "living"}
    for label_id, name in enumerate(camvid.classes):
        assert table[label_id] == (space.index(merged[name]) if name in merged else 255), name
    assert set(space.views) == {"things"} and load_task(BLOCK).space(1).views == {}


def test_the_background_survives_the_file_and_only_where_there_is_one() -> None:
    task = load_task("voc_15_5")
    for space in (task.space(1), task.space(None), load_space("voc21")):
        text = json.dumps(space.to_dict())
        assert ("background" in json.loads(text)) == (space.background is not None)
        again = space_from_dict(json.loads(text))
        assert (again.background, again.classes, again.ids) == (space.background, space.classes, space.ids)
    with pytest.raises(LabelError, match="background is class 0, 'a', not 'b'"):
        LabelSpace("x", ("a", "b"), ((0, 0, 0), (1, 1, 1)), (0, 1), background="b")


def test_a_task_extends_another_under_its_own_keys(tmp_path: Path) -> None:
    task = load_task({"extends": "voc_15_1", "protocol": "disjoint"})
    assert (task.name, task.protocol, task.space(3)) == ("voc_15_1", "disjoint", load_task("voc_15_1").space(3))
    (tmp_path / "base.yaml").write_text("extends: voc_15_1\nprotocol: sequential\n")
    names = load_space("voc21").classes[1:]
    rest = [n for n in names if n not in ("dog", "cat", "cow")]
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"extends": "base.yaml", "classes": [["dog", "cat"], ["cow"], rest]})
    )
    task = load_task(tmp_path / "mine.yaml")
    assert (task.name, task.protocol, task.background) == ("mine", "sequential", "background")
    assert task.space(2).classes == ("background", "dog", "cat", "cow")


def test_a_file_names_its_lists_from_where_it_lies(tmp_path: Path) -> None:
    block = {key: value for key, value in BLOCK.items() if key != "name"} | {"protocol": "partitioned"}
    block["images"] = [{"list": "one.txt"}, {"list": str(tmp_path / "two.txt")}, {"include": ["*_3"]}]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(block))
    task = load_task(str(tmp_path / "t.yaml"))
    assert [group.list for group in task.images] == [tmp_path / "one.txt", tmp_path / "two.txt", None]
    assert task.name == "t"


@pytest.mark.parametrize("name", task_names())
def test_a_task_written_out_is_the_same_task(name: str) -> None:
    task = load_task(name)
    text = yaml.safe_dump(task.model_dump(mode="json"))
    assert load_task(yaml.safe_load(text)) == task


PARTS = [{"part": [n, 3]} for n in range(3)]
FAULTS: dict[str, tuple[Any, str]] = {
    "unknown task": ("voc_15_2", "unknown task 'voc_15_2'.*did you mean 'voc_15_"),
    "no such file": ("nowhere/x.yaml", "cannot read task nowhere/x.yaml: No such file"),
    "unknown key": ({**BLOCK, "clases": []}, "unknown key 'clases'.*did you mean 'classes'"),
    "no protocol": ({k: v for k, v in BLOCK.items() if k != "protocol"}, "task: protocol: Field required"),
    "unknown protocol": ({**BLOCK, "protocol": "overlap"}, "'disjoint', 'overlapped', 'sequential' or 'partitioned'"),
    "unknown space": ({**BLOCK, "labels": "street8"}, "unknown label space 'street8'.*did you mean 'street7'"),
    "unknown class": ({**BLOCK, "classes": [["rood"]]}, "no class 'rood'.*did you mean 'road'"),
    "class twice": ({**BLOCK, "classes": [["road"], ["sky", "road"]]}, "'road' is in step 1 and in step 2"),
    "class missing": ({**BLOCK, "classes": [["road", "sky"], ["far", "vehicle", "living"]]}, "sidewalk, roadside"),
    "empty step": ({**BLOCK, "classes": [["road"], [], ["sky"]]}, "step 2 has no class"),
    "sizes": ({"extends": "voc_15_1", "sizes": [15, 4]}, "15 \\+ 4 is 19, label space 'voc21' has 20 classes"),
    "both": ({**BLOCK, "sizes": [7]}, "either 'classes'.*or 'sizes'"),
    "background": ({**BLOCK, "background": "none"}, "no class of this name, and its id 0 is 'road'"),
    "background in a group": (
        {"extends": "voc_19_1", "classes": [list(load_space("voc21").classes)]},
        "'background' is the background and there from the first step on: leave it out",
    ),
    "void": ({**BLOCK, "void": "background"}, "needs the name of that class under 'background'"),
    "no images": ({**BLOCK, "protocol": "partitioned"}, "partitioned needs 'images'"),
    "images by content": ({**BLOCK, "images": PARTS}, "leave 'images' out, or choose partitioned"),
    "too few images": ({**BLOCK, "protocol": "partitioned", "images": PARTS[:2]}, "2 entries for 3 groups"),
    "no way": ({**BLOCK, "protocol": "partitioned", "images": [{}]}, "one of include, list, part and share"),
    "two ways": (
        {**BLOCK, "protocol": "partitioned", "images": [{"part": [0, 2], "share": 0.5}]},
        "one of include, list, part and share",
    ),
    "only exclude": (
        {**BLOCK, "protocol": "partitioned", "images": [{"exclude": ["a"], "share": 0.5}]},
        "exclude narrows include",
    ),
    "part": ({**BLOCK, "protocol": "partitioned", "images": [{"part": [3, 3]}]}, "k from 0 to n - 1"),
    "shares": (
        {**BLOCK, "protocol": "partitioned", "images": [{"share": 0.4}] * 3},
        "shares add up to more than 1",
    ),
    "nothing": ({"name": "x", "labels": "street7", "protocol": "overlapped"}, "give the classes of each step"),
    "extends": ({"extends": "voc_15"}, "unknown task 'voc_15'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_says_what_to_do(fault: str) -> None:
    given, message = FAULTS[fault]
    with pytest.raises(TaskError, match=message) as caught:
        load_task(given)
    assert len(str(caught.value)) < 600


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(TaskError) as caught:
        load_task({"name": "x", "clases": [], "seed": -1})
    assert all(word in str(caught.value) for word in ("labels", "clases", "seed", "protocol"))


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "classes: 3\n", b"\xff\xfe"])
def test_damaged_files_are_named(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TaskError, match=r"broken\.yaml"):
        load_task(path)


def test_a_circle_of_tasks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(TaskError, match=r"[ab]\.yaml"):
        load_task(tmp_path / "a.yaml")


@pytest.mark.parametrize("step", [0, 4, -1])
def test_a_step_that_is_not_there(step: int) -> None:
    with pytest.raises(TaskError, match=f"'mine' has no step {step}: it has 1 to 3, and 'all'"):
        load_task(BLOCK).space(step)
