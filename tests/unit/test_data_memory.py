"""The memory of a step: old images, few, balanced, chosen from what was still there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.stepped import CONTENT, folder, open_things, voc_labels
from segue.data.errors import DataError
from segue.data.statistics import class_pixels
from segue.data.steps import Memory, StepImages
from segue.tasks import load_task


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("things")
    folder(root, "voc21", voc_labels())
    return root


def shown_of(memory: Memory) -> list[set[int]]:
    return [set(np.unique(memory.read_label(i)).tolist()) - {0, 255} for i in range(len(memory))]


@pytest.mark.parametrize("images", [1, 6, 500])
def test_a_memory_holds_old_images_with_the_labels_of_their_own_step(things: Path, images: int) -> None:
    task = load_task(CONTENT)
    inner, config = open_things(things, task)
    memory = Memory(inner, task, 3, images, config)
    steps = {step: StepImages(inner, task, step, config) for step in (1, 2)}
    union = sorted({*steps[1].ids, *steps[2].ids})
    assert len(memory) == min(images, len(union)) and set(memory.ids) <= set(union)
    assert len(set(memory.ids)) == len(memory) and memory.space == task.space(3)
    for index, (image_id, step) in enumerate(zip(memory.ids, memory.steps, strict=True)):
        own = steps[step]
        assert np.array_equal(memory.read_label(index), own.read_label(own.ids.index(image_id)))
    paths = [f for i in memory.ids for f in (things / f"images/train/{i}.png", things / f"labels/train/{i}.png")]
    assert memory.bytes == sum(path.stat().st_size for path in paths)
    assert Memory(inner, task, 3, images, config).ids == memory.ids


def test_a_memory_shows_every_class_before_it_repeats_one(things: Path) -> None:
    task = load_task(CONTENT)
    inner, config = open_things(things, task)
    memory = Memory(inner, task, 4, 17, config)
    assert set().union(*shown_of(memory)) == set(range(1, 18)), "17 old classes, 17 images"
    shown = shown_of(Memory(inner, task, 2, 14, config))
    assert min(sum(c in classes for classes in shown) for c in range(1, 8)) >= 2, "14 images of 7 classes"


def test_a_memory_never_goes_back_to_images_that_are_gone(things: Path) -> None:
    task = load_task(CONTENT)
    inner, config = open_things(things, task)
    for seed in range(3):
        two, three, four = (Memory(inner, task, step, 5, config, seed=seed) for step in (2, 3, 4))
        assert set(three.ids) <= {*two.ids, *StepImages(inner, task, 2, config).ids}
        assert set(four.ids) <= {*three.ids, *StepImages(inner, task, 3, config).ids}
        steps = dict(zip(three.ids, three.steps, strict=True))
        assert all(steps.get(i, s) == s for i, s in zip(four.ids, four.steps, strict=True))


def test_a_memory_is_counted_beside_the_whole_labels(things: Path, read: list[str]) -> None:
    task = load_task(CONTENT)
    inner, config = open_things(things, task)
    whole = class_pixels(inner, config).tolist()
    memory = Memory(inner, task, 3, 6, config)
    by_hand = [[int((memory.read_label(i) == c).sum()) for c in range(len(memory.space))] for i in range(len(memory))]
    assert class_pixels(memory, config).tolist() == by_hand
    read.clear()
    assert class_pixels(memory, config).tolist() == by_hand and class_pixels(inner, config).tolist() == whole
    assert not read, "neither pushes the other out of the cache"


def test_the_first_step_has_no_memory(things: Path) -> None:
    task = load_task(CONTENT)
    inner, config = open_things(things, task)
    for step in (1, None):
        with pytest.raises(DataError, match=r"step (1|None) of task 'content' has no step before it"):
            Memory(inner, task, step, 5, config)
    with pytest.raises(DataError, match="at least 1 image, not 0"):
        Memory(inner, task, 2, 0, config)
