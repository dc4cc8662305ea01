"""Images and labels of the steps of incremental learning: views of a data set that a task (``segue.tasks``) describes.

The data set is opened in the task's full label space, whose train ids of old classes are those of every step. Which
images a step has by what they show comes from the class pixels of the whole data set, which are counted once
(``segue.data.statistics``), whatever the number of steps.

What a step stores for later ones is :class:`Memory`: chosen as it would be where old data is gone, from the memory
before it and the images of the step itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import blake2b

import cv2
import numpy as np
import numpy.typing as npt

from segue.config import DatasetConfig
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.listing import select
from segue.data.statistics import class_pixels
from segue.data.view import View
from segue.labels import IGNORE, U8, UNKNOWN, Coverage, LabelMap, LabelSpace, build_map
from segue.tasks import ImageGroup, Step, Task

Shown = npt.NDArray[np.bool_]
"""(images, classes): whether a label of the full space shows a class."""


class _Taught(View):
    """All labels changed by the same table: ``taught`` keeps its ids."""

    def __init__(self, inner: Dataset, task: Task, step: Step, places: Sequence[int], taught: Sequence[int]) -> None:
        _check_space(inner, task)
        super().__init__(inner, places, task.space(step))
        self._only = _table_of(task, taught)
        if inner.coverage is not None:
            self.coverage = _coverage(inner.coverage, task, self.space, taught)
        if inner.label_map is not None:
            # The numbers in the files stay as they are, so what was counted of them serves every step.
            table = self._only[inner.label_map.table]
            self.label_map = LabelMap(self.space, table, self.coverage or inner.label_map.coverage)

    def _changed(self, label: U8, index: int) -> U8:
        return np.asarray(cv2.LUT(label, self._only), np.uint8)


class StepImages(_Taught):
    """The images of a step, labelled with what is taught in it; of step ``all`` or None all that are not held out.

    ``inner`` is opened in ``task.space(None)``; ``config`` is what it was opened with, needed where the images follow
    from what they show. ``notes``: images of given groups that are in two steps or in none. ``TaskError`` for a step
    that the task does not have, ``DataError`` for one without images.
    """

    def __init__(self, inner: Dataset, task: Task, step: Step, config: DatasetConfig | None = None) -> None:
        groups = _Groups(inner, task, config)
        super().__init__(inner, task, step, groups.places(step), task.taught(step))
        self.notes = groups.notes(step)


class SeenImages(_Taught):
    """Every image of ``inner``, labelled with all classes up to a step: how a network is scored after it."""

    def __init__(self, inner: Dataset, task: Task, step: Step) -> None:
        super().__init__(inner, task, step, range(len(inner)), range(len(task.space(step))))


class Memory(View):
    """At most ``images`` images of the steps before ``step``, each labelled as in its own step.

    After every step, class for class, beginning with the one that the fewest chosen images show, the next image that
    shows it is chosen, in an order that ``seed`` draws; from the images kept before and those of the step. The network
    is that of ``step``. ``steps``: the step of each image. ``DataError`` where nothing comes before, else as for
    :class:`StepImages`.
    """

    def __init__(
        self, inner: Dataset, task: Task, step: Step, images: int, config: DatasetConfig, *, seed: int = 0
    ) -> None:
        if images < 1:
            raise DataError(f"a memory needs at least 1 image, not {images}")
        last = task.seen(step)
        if step in (None, "all") or last == 1:
            raise DataError(f"step {step} of task {task.name!r} has no step before it, so no memory: begin with step 2")
        groups = _Groups(inner, task, config)
        order = _drawn(inner.ids, range(len(inner)), seed)
        taught = np.stack([_mask(task, task.taught(s)) for s in range(1, last)])
        kept: dict[int, int] = {}
        for earlier in range(1, last):
            kept = {**dict.fromkeys(groups.places(earlier), earlier), **kept}
            places = [p for p in order if p in kept]
            shown = groups.shown[places] & taught[[kept[p] - 1 for p in places]]
            kept = {places[row]: kept[places[row]] for row in _balanced(shown, images)}
        super().__init__(inner, sorted(kept), task.space(step))
        tables = {s: _table_of(task, task.taught(s)) for s in range(1, last)}
        self.steps = [kept[p] for p in self._places]
        self._tables = [tables[s] for s in self.steps]
        self.label_map = build_map(self.space, None, dict(enumerate(self.space.classes)))
        self.coverage = self.label_map.coverage

    @cached_property
    def bytes(self) -> int:
        """Size of the image and label files; decoded where there are no such files."""
        return sum(map(self._bytes_of, range(len(self))))

    def read_file_ids(self, index: int) -> npt.NDArray[np.generic]:
        """(H, W) train ids as in the image's own step."""
        return self.read_label(index)

    def label_stamp(self, index: int) -> tuple[str, str] | None:
        """See :class:`Dataset`: a name of its own for each way in which the classes of a file are kept."""
        stamp = self._inner.label_stamp(self._places[index])
        if stamp is None or self._inner.label_map is None:
            return None
        kept = self._tables[index][self._inner.label_map.table]
        return f"{stamp[0]}|{blake2b(kept.tobytes(), digest_size=8).hexdigest()}", stamp[1]

    def _changed(self, label: U8, index: int) -> U8:
        return np.asarray(cv2.LUT(label, self._tables[index]), np.uint8)

    def _bytes_of(self, index: int) -> int:
        image, label = self.files(index)
        if image is not None and label is not None:
            return image.size() + label.size()
        return self.read_image(index).nbytes + self.read_label(index).nbytes


class _Groups:
    """Which images of a data set belong to which step; nothing is opened before it is asked."""

    def __init__(self, inner: Dataset, task: Task, config: DatasetConfig | None) -> None:
        _check_space(inner, task)
        self._inner = inner
        self._task = task
        self._config = config
        held = set(select(inner.ids, task.holdout, ())) if task.holdout else set()
        self._free = sorted((p for p, i in enumerate(inner.ids) if i not in held), key=inner.ids.__getitem__)

    @cached_property
    def shown(self) -> Shown:
        """What the labels show, counted once and cached."""
        if self._config is None:
            raise ValueError("what images show is counted with the settings of their data set: give 'config'")
        return np.asarray(class_pixels(self._inner, self._config) > 0)

    def places(self, step: Step) -> list[int]:
        """Indices of the images of a step, rising; ``DataError`` when there are none."""
        last = self._task.seen(step)
        if step in (None, "all"):
            found: Iterable[int] = self._free
        else:
            found = self._given[last - 1] if self._task.images else self._by_content(last)
        out = sorted(found)
        if not out:
            raise DataError(self._empty(step))
        return out

    def notes(self, step: Step) -> list[str]:
        """Images of given groups that are in another step, too, or (for all steps) in none."""
        if not self._task.images:
            return []
        steps = [set(group) for group in self._given]
        name, ids = f"task {self._task.name!r}, data set {self._inner.name!r}", self._inner.ids
        if step in (None, "all"):
            none = [p for p in self._free if not any(p in group for group in steps)]
            return [f"{name}: {_some(ids, none)} in no step"] if none else []
        own = steps[self._task.seen(step) - 1]
        shared = {n: sorted(own & group) for n, group in enumerate(steps, 1) if n != step}
        return [f"{name}: {_some(ids, both)} in steps {step} and {n}" for n, both in shared.items() if both]

    @cached_property
    def _given(self) -> list[list[int]]:
        drawn = _drawn(self._inner.ids, self._free, self._task.seed)
        out, before = [], 0.0
        for group in self._task.images:
            if group.share is not None:
                start, before = before, before + group.share
                out.append(drawn[round(start * len(drawn)) : round(before * len(drawn))])
            elif group.part is not None:
                out.append(self._free[group.part[0] :: group.part[1]])
            else:
                chosen = set(self._named(group))
                out.append([p for p in self._free if self._inner.ids[p] in chosen])
        return out

    def _named(self, group: ImageGroup) -> list[str]:
        if group.list is None:
            return select(self._inner.ids, group.include, group.exclude)
        try:
            return [line.strip() for line in group.list.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read the list of images {group.list} of task {self._task.name!r}: {error}"
            ) from error

    def _by_content(self, step: int) -> list[int]:
        if not self._inner.labelled:
            raise DataError(
                f"data set {self._inner.name!r} has no labels, but task {self._task.name!r} chooses images by what "
                f"they show: name the images of each step under 'images', with protocol partitioned"
            )
        current = _mask(self._task, _new(self._task, step))
        later = range(len(self._task.space(step)), self.shown.shape[1])
        barred = _mask(self._task, () if self._task.protocol == "overlapped" else later)
        return [p for p in self._free if (self.shown[p] & current).any() and not (self.shown[p] & barred).any()]

    def _empty(self, step: Step) -> str:
        ids, task = self._inner.ids, self._task
        start = f"step {step} of task {task.name!r} has no image of data set {self._inner.name!r} ({self._inner.split})"
        example = f"{len(ids)} images, such as {ids[0]!r}" if ids else "no image at all"
        if not self._free:
            return f"{start}: it has {example}, and all are held out by {', '.join(task.holdout)}"
        if task.images:
            rule = task.images[task.seen(step) - 1].model_dump(exclude_defaults=True, mode="json")
            return f"{start}: none of its {example}, is chosen by {rule}; name images of this split, or take another"
        names = ", ".join(task.groups[task.seen(step) - 1])
        return f"{start}: no label shows {names} and is in this step by protocol {task.protocol}; take more images"


def _check_space(inner: Dataset, task: Task) -> None:
    full = task.space(None)
    if inner.space.classes != full.classes:
        raise DataError(
            f"data set {inner.name!r} is read in {inner.space.name!r}: for task {task.name!r} open it in the task's "
            f"own label space, {full.name!r}"
        )


def _table_of(task: Task, taught: Sequence[int]) -> U8:
    table = np.full(256, IGNORE if task.background is None else 0, np.uint8)
    table[list(taught)] = taught
    table[IGNORE] = 0 if task.void == "background" else IGNORE
    table[UNKNOWN] = UNKNOWN  # a value outside the map stays one
    return table


def _coverage(inner: Coverage, task: Task, space: LabelSpace, taught: Sequence[int]) -> Coverage:
    names = task.space(None).classes
    kept = {names[t] for t in taught}
    others = tuple(n for n in names if n not in kept and n != task.background and n not in inner.missing)
    merged = {target: of for target, of in inner.merged.items() if target in kept}
    lost = inner.lost
    if task.background is None:
        lost = (*lost, *others)
    elif others:
        merged[task.background] = (*merged.get(task.background, ()), *others)
    missing = (c for c in space.classes if c not in kept or c in inner.missing)
    return Coverage(merged, lost, tuple(c for c in missing if c != task.background))


def _new(task: Task, step: int) -> range:
    """Train ids that a step brings, the background left out."""
    start = len(task.space(step - 1)) if step > 1 else int(task.background is not None)
    return range(start, len(task.space(step)))


def _mask(task: Task, ids: Iterable[int]) -> Shown:
    out = np.zeros(len(task.space(None)), np.bool_)
    out[[i for i in ids if i or task.background is None]] = True
    return out


def _drawn(ids: Sequence[str], places: Iterable[int], seed: int) -> list[int]:
    return sorted(places, key=lambda p: blake2b(f"{seed}/{ids[p]}".encode(), digest_size=8).digest())


def _balanced(shown: Shown, number: int) -> list[int]:
    left = np.ones(len(shown), np.bool_)
    counts = np.zeros(shown.shape[1], np.int64)
    remaining = shown.sum(0)
    chosen: list[int] = []
    while len(chosen) < min(number, len(shown)):
        rarest = int(np.argmin(np.where(remaining > 0, counts, np.iinfo(np.int64).max)))
        row = int(np.argmax(left & shown[:, rarest] if remaining[rarest] else left))
        chosen.append(row)
        left[row] = False
        counts += shown[row]
        remaining -= shown[row]
    return chosen


def _some(ids: Sequence[str], places: Sequence[int]) -> str:
    return f"{len(places)} image{'s are' if len(places) > 1 else ' is'} (the first: {ids[places[0]]})"
