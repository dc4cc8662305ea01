"""Images and labels of the steps of a task: against the published tables and a plain restatement of the protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.miniatures import picture, save
from helpers.stepped import CONTENT, SIZE, folder, open_things, voc_labels
from segue.config import DatasetConfig, TransformConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.errors import DataError
from segue.data.loaders import Stream
from segue.data.statistics import class_pixels
from segue.data.steps import Memory, SeenImages, StepImages
from segue.labels import load_space
from segue.tasks import Task, TaskError, load_task

# Cityscapes label id to train id of the task of Klingner et al. (ITSC 2020), and what its named tables keep.
TRAIN_ID = dict(zip((7, 8, 21, 22, 23, 11, 12, 13, 17, 19, 20, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True))
TABLES = {
    "train1": range(5),
    "train2": range(5, 11),
    "train2_eval": range(11),
    "train3": range(11, 19),
    "train3_eval": range(19),
}
SETS = {
    1: ["hanover", "aachen", "strasbourg", "dusseldorf"],
    2: ["jena", "monchengladbach", "ulm", "tubingen", "bochum", "hamburg", "weimar"],
    3: ["zurich", "darmstadt", "bremen", "cologne", "stuttgart", "krefeld"],
    -1: ["erfurt"],
}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cities of Cityscapes' train with one picture each, every label with every id that files hold."""
    root = tmp_path_factory.mktemp("cityscapes")
    for seed, name in enumerate(sorted(name for group in SETS.values() for name in group)):
        stem = f"train/{name}/{name}_000000_000019"
        save(root / f"leftImg8bit/{stem}_leftImg8bit.png", picture(seed, SIZE))
        save(root / f"gtFine/{stem}_gtFine_labelIds.png", raw(seed))
    return root


def raw(seed: int) -> Any:
    return np.roll(np.resize(np.array([*range(34), 255], np.uint8), SIZE[0] * SIZE[1]), seed).reshape(SIZE)


def opened(root: Path, task: Task, **keys: Any) -> tuple[Dataset, DatasetConfig]:
    config = DatasetConfig.model_validate({"dataset": "cityscapes", "root": root, **keys})
    return open_dataset("city", config, "train", task.space(None)), config


def expected(label_ids: Any, kept: Sequence[int]) -> Any:
    out = np.full(label_ids.shape, 255, np.uint8)
    for label_id, train_id in TRAIN_ID.items():
        if train_id in kept:
            out[label_ids == label_id] = train_id
    return out


@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_training_tables_of_5_6_8(city: Path, step: int) -> None:
    task = load_task("cityscapes_5_6_8")
    inner, _ = opened(city, task)
    images = StepImages(inner, task, step)
    assert [i.split("/")[0] for i in images.ids] == sorted(SETS[step])
    assert images.space == task.space(step) and images.name == "city" and images.split == "train" and not images.notes
    for index, image_id in enumerate(images.ids):
        place = inner.ids.index(image_id)
        wanted = expected(raw(place), TABLES[f"train{step}"])
        assert np.array_equal(images.read_label(index), wanted)
        sample, (picture_, scored) = images.read_sample(index, True), images.read_scored(index)
        assert np.array_equal(sample.label, wanted) and np.array_equal(scored, wanted)
        assert np.array_equal(sample.image, inner.read_image(place)) and np.array_equal(picture_, sample.image)
        assert images.read_sample(index, False).label is None and images.describe(index) == inner.describe(place)
    images.require_labels()


@pytest.mark.parametrize("step", [2, 3])
def test_the_evaluation_tables_of_5_6_8(city: Path, step: int) -> None:
    task = load_task("cityscapes_5_6_8")
    inner, _ = opened(city, task)
    images = SeenImages(inner, task, step)
    assert images.ids == inner.ids and images.space == task.space(step)
    for index in range(len(images)):
        assert np.array_equal(images.read_scored(index)[1], expected(raw(index), TABLES[f"train{step}_eval"]))


@pytest.mark.parametrize("step", [None, "all"])
def test_static_training_has_all_classes_and_no_held_out_city(city: Path, step: Any) -> None:
    task = load_task("cityscapes_5_6_8")
    inner, _ = opened(city, task)
    images = StepImages(inner, task, step)
    assert len(images) == 17 and not any(i.startswith("erfurt") for i in images.ids)
    place = inner.ids.index(images.ids[4])
    assert np.array_equal(images.read_label(4), expected(raw(place), range(19)))
    assert not images.notes


def test_coverage_says_what_a_step_does_not_label(city: Path) -> None:
    task = load_task("cityscapes_5_6_8")
    images = StepImages(opened(city, task)[0], task, 2)
    assert images.coverage is not None
    assert images.coverage.missing == task.groups[0] and images.coverage.lost == task.groups[0] + task.groups[2]


def test_a_stream_of_a_step_holds_only_its_classes(city: Path) -> None:
    task = load_task("cityscapes_5_6_8")
    inner, config = opened(city, task)
    images = StepImages(inner, task, 2)
    transform = TransformConfig.model_validate({"rare_class": {"min_px": 1}, "crop": (4, 4)})
    pixels = class_pixels(images, config)
    stream = Stream([images], None, transform, (0,), 2, True, 0, pixels=[pixels])
    batches = stream.iterate()
    for _ in range(4):
        assert set(np.unique(next(batches)[0].label.numpy())) <= {*range(5, 11), 255}


def test_labels_are_counted_once_for_all_steps(city: Path, read: list[str]) -> None:
    task = load_task("cityscapes_5_6_8")
    inner, config = opened(city, task)
    for step in (1, 2, 3, None):
        images = StepImages(inner, task, step)
        by_hand = [
            [int((images.read_label(i) == c).sum()) for c in range(len(images.space))] for i in range(len(images))
        ]
        read.clear()
        first = class_pixels(images, config).tolist()
        assert first == by_hand and (len(read) == len(images) if step in (1, 2, 3) else not read)
    whole = class_pixels(inner, config)
    assert len(read) == 1, "the held-out image was not counted yet, all others were"
    assert whole[0].tolist() == [int((expected(raw(0), range(19)) == c).sum()) for c in range(19)]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("things")
    folder(root, "voc21", voc_labels())
    return root


def restated(task: Task, step: int) -> tuple[list[int], list[Any]]:
    """Images of a step and their labels by the definitions, label file for label file."""
    names = load_space("voc21").classes
    order = ["background", *(c for group in CONTENT["classes"] for c in group)]
    current = {names.index(c) for c in CONTENT["classes"][step - 1]}
    later = {names.index(c) for group in CONTENT["classes"][step:] for c in group}
    past = {names.index(c) for group in CONTENT["classes"][: step - 1] for c in group}
    chosen, labels = [], []
    for n, label in enumerate(voc_labels()):
        shown = set(np.unique(label).tolist())
        if not shown & current or (task.protocol != "overlapped" and shown & later):
            continue
        kept = current | past if task.protocol == "sequential" else current
        chosen.append(n)
        labels.append([[255 if v == 255 else order.index(names[v]) if v in kept else 0 for v in row] for row in label])
    return chosen, labels


@pytest.mark.parametrize("protocol", ["overlapped", "disjoint", "sequential"])
def test_protocols_by_content_are_their_definitions(things: Path, protocol: str, read: list[str]) -> None:
    task = load_task({**CONTENT, "protocol": protocol})
    inner, config = open_things(things, task)
    steps = [StepImages(inner, task, step, config) for step in (1, 2, 3, 4)]
    assert len(read) == len(inner), "each label is opened once, for all steps"
    for step, images in enumerate(steps, 1):
        chosen, labels = restated(task, step)
        assert images.ids == [inner.ids[n] for n in chosen] and len(chosen) > 1
        assert [images.read_label(i).tolist() for i in range(len(images))] == labels
    together = [i for images in steps for i in images.ids]
    assert (len(together) == len(set(together))) == (protocol != "overlapped")
    assert len(StepImages(inner, task, None, config)) == 60, "the whole set, those without any class, too"


def test_void_may_join_the_background(tmp_path: Path) -> None:
    task = load_task("ade_100_50")
    label = np.array([[0, 1, 100, 101, 150, 0, 7, 140]] * 8, np.uint8)
    folder(tmp_path, "ade150", [label, np.minimum(label, 50)], ignore=[0])
    config = DatasetConfig(dataset=str(tmp_path))
    inner = open_dataset("ade", config, "train", task.space(None))
    old, new = StepImages(inner, task, 1, config), StepImages(inner, task, 2, config)
    assert (old.ids, new.ids) == (["00", "01"], ["00"])
    assert old.read_label(0)[0].tolist() == [0, 1, 100, 0, 0, 0, 7, 0]
    assert new.read_label(0)[0].tolist() == [0, 0, 0, 101, 150, 0, 0, 140]
    assert SeenImages(inner, task, 2).read_label(0)[0].tolist() == label[0].tolist()
    assert class_pixels(new, config)[0, [0, 101, 140, 150]].tolist() == [40, 8, 8, 8]
    assert new.coverage is not None and "background" not in new.coverage.missing


class Plain(Dataset):
    """Ids without files: groups by id need no more."""

    def __init__(self, ids: Sequence[str], task: Task) -> None:
        super().__init__("plain", task.space(None), sorted(ids), None)
        self.split = "train"


def grouped(*images: dict[str, Any], **keys: Any) -> Task:
    names = load_space("street7").classes
    classes = [names[: 8 - len(images)], *([n] for n in names[8 - len(images) :])]
    return load_task(
        {
            "name": "grouped",
            "labels": "street7",
            "protocol": "partitioned",
            "classes": classes,
            "images": images,
            **keys,
        }
    )


IDS = st.lists(st.from_regex(r"[a-c]/[0-9]{1,3}", fullmatch=True), min_size=20, max_size=60, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    ids=IDS,
    seed=st.integers(0, 5),
    kind=st.sampled_from(["part", "share", "include"]),
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    holdout=st.sampled_from([(), ("*/1*",)]),
)
def test_every_image_of_a_partition_is_in_one_step(
    ids: list[str], seed: int, kind: str, weights: list[int], holdout: tuple[str, ...]
) -> None:
    groups: list[dict[str, Any]] = {
        "part": [{"part": [n, len(weights)]} for n in range(len(weights))],
        "share": [{"share": w / sum(weights)} for w in weights],
        "include": [{"include": ["a/*"]}, {"include": ["b/*", "c/*"], "exclude": ["a/*"]}],
    }[kind]
    task = grouped(*groups, seed=seed, holdout=holdout)
    inner = Plain([*ids, "a/0000", "b/0000", *(f"c/{n:04d}" for n in range(20))], task)
    steps = [StepImages(inner, task, n).ids for n in range(1, task.steps + 1)]
    everything = StepImages(inner, task, None)
    assert sorted(image_id for step in steps for image_id in step) == everything.ids and not everything.notes
    assert everything.ids == [i for i in inner.ids if not (holdout and i.split("/")[1].startswith("1"))]
    if kind == "share":
        sizes = [len(everything) * w / sum(weights) for w in weights]
        assert all(abs(len(step) - size) <= 1 for step, size in zip(steps, sizes, strict=True))
    if kind == "part":
        assert steps[0] == everything.ids[:: len(weights)]


def test_shares_follow_the_seed() -> None:
    ids = [f"{n:02d}" for n in range(40)]
    halves = [{"share": 0.5}, {"share": 0.5}]
    first, again, other = (StepImages(Plain(ids, t), t, 1).ids for t in (grouped(*halves, seed=s) for s in (0, 0, 1)))
    assert first == again != other and first != ids[:20]


def test_a_list_names_the_images(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("b\n\n a \nof another split\n")
    task = grouped({"list": tmp_path / "one.txt"}, {"include": ["c"]})
    assert StepImages(Plain("abc", task), task, 1).ids == ["a", "b"]
    missing = grouped({"list": tmp_path / "two.txt"}, {"include": ["c"]})
    with pytest.raises(DataError, match=r"cannot read the list of images .*two.txt of task 'grouped'"):
        StepImages(Plain("abc", missing), missing, 2)


def test_what_is_in_two_steps_or_in_none_is_told() -> None:
    task = grouped({"include": ["[ab]"]}, {"include": ["[bc]"]}, {"include": ["c"]})
    inner = Plain("abcde", task)
    assert StepImages(inner, task, 1).notes == [
        "task 'grouped', data set 'plain': 1 image is (the first: b) in steps 1 and 2"
    ]
    assert [note.partition(") ")[2] for note in StepImages(inner, task, 2).notes] == [
        "in steps 2 and 1",
        "in steps 2 and 3",
    ]
    assert StepImages(inner, task, None).notes == [
        "task 'grouped', data set 'plain': 2 images are (the first: d) in no step"
    ]


def test_domain_steps_share_the_classes_and_not_the_images(city: Path) -> None:
    task = load_task("cityscapes_domains_1_1")
    inner, _ = opened(city, task)
    second = StepImages(inner, task, 2)
    assert [i.split("/")[0] for i in second.ids] == ["bremen"]
    assert set(np.unique(second.read_label(0)).tolist()) == {*range(19), 255}
    with pytest.raises(DataError, match=r"step 19 .* has no image of data set 'city' \(train\).*frankfurt"):
        StepImages(inner, task, 19)


def test_faults_name_the_way_out(city: Path, things: Path) -> None:
    task, content = load_task("cityscapes_5_6_8"), load_task({**CONTENT, "protocol": "disjoint"})
    inner, _ = opened(city, task)
    with pytest.raises(TaskError, match="has no step 4"):
        StepImages(inner, task, 4)
    with pytest.raises(DataError, match="open it in the task's own label space, 'content'"):
        StepImages(inner, content, 1)
    with pytest.raises(DataError, match="all are held out by erfurt/\\*"):
        StepImages(opened(city, task, include=("erfurt/*",))[0], task, 2)
    config = DatasetConfig(dataset=str(things), include=("00",))
    few = open_dataset("things", config, "train", content.space(None))
    with pytest.raises(DataError, match=r"no label shows sofa, .*diningtable and is in this step by protocol disjoint"):
        StepImages(few, content, 2, config)
    plain = Plain("ab", content)
    with pytest.raises(DataError, match="has no labels, but task 'content' chooses images by what they show"):
        StepImages(plain, content, 1, DatasetConfig())


class Squares:
    """A user's class: image n is all n, its label n in the left half and not labelled in the right."""

    calls = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, n: int) -> tuple[Any, Any]:
        type(self).calls += 1
        return np.full((*SIZE, 3), n, np.uint8), np.where(np.arange(SIZE[1]) < 6, np.full(SIZE, n), -1)


def test_a_python_class_works_likewise() -> None:
    task = grouped({"part": [0, 2]}, {"part": [1, 2]})
    config = DatasetConfig(dataset=f"python:{__name__}:Squares")
    inner = open_dataset("squares", config, "train", task.space(None))
    images = StepImages(inner, task, 1, config)
    assert images.ids == ["000000", "000002", "000004"]
    Squares.calls = 0
    sample = images.read_sample(1, True)
    assert Squares.calls == 1 and sample.label is not None
    assert sample.label[0].tolist() == [2] * 6 + [255] * 6 and (sample.image == 2).all()
    assert StepImages(inner, task, 2, config).read_label(0).max() == 255
    assert class_pixels(images, config)[:, [0, 2, 4]].tolist() == np.diag([48, 48, 48]).tolist()
    memory = Memory(inner, task, 2, 2, config)
    assert memory.bytes == 2 * SIZE[0] * SIZE[1] * 4 and class_pixels(memory, config).sum() == 96
