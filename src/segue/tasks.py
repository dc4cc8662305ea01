"""Tasks of incremental learning as data: which classes and which images come in which step, and what is labelled.

A task orders the classes of a label space in groups. A network that has seen steps 1 … k has one output for each class
of groups 1 … k, in this order, so a class keeps its train id for ever. A step's labels hold the classes of its own
group (protocol ``sequential``: all classes so far); what else an image shows is unlabelled, and a task treats that in
one declared way: without ``background`` it is ignored (255), with it it becomes class 0.

Which images a step has: ``images`` names them, or they follow from what the labels show (Cermelli et al., "MiB", CVPR
2020, section 4.1; ``segue.data.steps`` does it). A task without class groups has domain steps: new images, the same
classes. The tasks that come with Segue are the YAML files in ``segue/data/tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from segue.errors import UserError
from segue.labels import LabelSpace, load_space, nearest
from segue.settings import Settings, explain

Step = int | Literal["all"] | None
"""A step counted from 1; ``all`` or None: every class and every image that is not held out."""

_BLACK = (0, 0, 0)


class TaskError(UserError):
    """A task that cannot be used; the message names the key, class or step and the way out."""


class ImageGroup(Settings):
    """The images of one step, chosen in one of four ways among those that are not held out."""

    include: tuple[str, ...] = ()
    """Shell patterns on image ids, as for data sets (``aachen/*``)."""
    exclude: tuple[str, ...] = ()
    """Shell patterns on image ids that ``include`` does not mean."""
    list: Path | None = None
    """Text file with an image id in each line. In a task's file it is relative to that file."""
    part: tuple[NonNegativeInt, PositiveInt] | None = None
    """[k, n]: the images whose position in the sorted list, counted from 0, leaves the rest k when divided by n."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the images in an order that ``seed`` draws; the shares of a task follow one another."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum((bool(self.include), self.list is not None, self.part is not None, self.share is not None)) != 1:
            raise ValueError("images: each step needs one of include, list, part and share")
        if self.exclude and not self.include:
            raise ValueError("images: exclude narrows include, so give include, too ('*' is every image)")
        if self.part is not None and self.part[0] >= self.part[1]:
            raise ValueError(f"images: part: {list(self.part)} has no image, give [k, n] with k from 0 to n - 1")
        return self


class Task(Settings):
    """A task: the block under ``task`` of a recipe, or a YAML file; :func:`load_task` reads one."""

    name: str = Field(min_length=1)
    labels: str
    """Label space (``segue list spaces``) whose classes the steps share out."""
    classes: tuple[tuple[str, ...], ...] = ()
    """New classes of each step. Give this, or ``sizes``, or neither: then every step has all classes."""
    sizes: tuple[PositiveInt, ...] = ()
    """Instead: how many new classes each step has, in the order of the space and without the background."""
    background: str | None = None
    """Name of a class 0 that takes in whatever a step does not label; it need not be a class of the space. Default:
    there is none, and such pixels are ignored."""
    void: Literal["ignore", "background"] = "ignore"
    """What pixels become that carry no class in the data set itself."""
    protocol: Literal["disjoint", "overlapped", "sequential", "partitioned"]
    """``partitioned``: the images are given. ``overlapped``: images that show a class of the step; ``disjoint``: and no
    class of a later one; ``sequential``: images as given or as in ``disjoint``, and old classes are labelled, too."""
    images: tuple[ImageGroup, ...] = ()
    """Images of each step."""
    holdout: tuple[str, ...] = ()
    """Shell patterns on image ids that belong to no step: kept for choosing settings."""
    seed: NonNegativeInt = 0
    """Of the order that ``share`` cuts."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.classes and self.sizes:
            raise ValueError("give either 'classes' (names of each step) or 'sizes' (how many each step has)")
        if self.void == "background" and self.background is None:
            raise ValueError("void: background needs the name of that class under 'background'")
        if self.protocol == "partitioned" and not self.images:
            raise ValueError("protocol partitioned needs 'images', one entry a step (include, list, part or share)")
        if self.protocol in ("disjoint", "overlapped") and self.images:
            raise ValueError(
                f"protocol {self.protocol} chooses images by what they show: leave 'images' out, or choose partitioned"
            )
        if self.domains and not self.images:
            raise ValueError("give the classes of each step ('classes' or 'sizes'), or 'images' for domain steps")
        if self.images and not self.domains and len(self.images) != len(self.groups):
            raise ValueError(
                f"images: {len(self.images)} entries for {len(self.groups)} groups of classes: give each step one"
            )
        if sum(group.share or 0 for group in self.images) > 1 + 1e-9:
            raise ValueError("images: the shares add up to more than 1: every image belongs to one step only")
        self.space(None)
        return self

    @property
    def domains(self) -> bool:
        """Whether steps bring new images of the same classes."""
        return not self.classes and not self.sizes

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.images) if self.domains else len(self.classes or self.sizes)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """New classes of each step, the background first of all; ``TaskError`` names classes that do not fit."""
        foreground = tuple(c for c in load_space(self.labels).classes if c != self.background)
        if self.domains:
            groups: tuple[tuple[str, ...], ...] = (foreground, *((),) * (self.steps - 1))
        else:
            groups = _cut(foreground, self.sizes, self.labels) if self.sizes else self.classes
            _check_groups(groups, foreground, self.labels, self.background)
        return groups if self.background is None else ((self.background, *groups[0]), *groups[1:])

    def space(self, step: Step) -> LabelSpace:
        """The label space of a network after ``step``: the classes of all steps up to it; ``TaskError`` without one.

        Of the full space it keeps colours, ids, maps, and the views whose classes it has.
        """
        base = load_space(self.labels)
        names = tuple(name for group in self.groups[: self.seen(step)] for name in group)
        rows = {n: (c, i) for n, c, i in zip(base.classes, base.colors, base.ids, strict=True)}
        if self.background is not None and self.background not in rows:
            rows[self.background] = (_BLACK, _free_id(base))
        return LabelSpace(
            name=self.name if step in (None, "all") else f"{self.name}/{step}",
            classes=names,
            colors=tuple(rows[n][0] for n in names),
            ids=tuple(rows[n][1] for n in names),
            views={view: members for view, members in base.views.items() if set(members) <= set(names)},
            maps=base.maps,
            background=self.background,
        )

    def taught(self, step: Step) -> tuple[int, ...]:
        """Train ids that are labelled in a step. Where there is a background, it counts to step 1."""
        last = self.seen(step)
        whole = step in (None, "all") or self.protocol == "sequential" or self.domains
        start = 0 if whole else sum(map(len, self.groups[: last - 1]))
        return tuple(range(start, sum(map(len, self.groups[:last]))))

    def tasks(self, step: Step) -> dict[str, tuple[str, ...]]:
        """Classes that are scored by themselves after a step: ``1``, ``2``, ``1+2``, ``3``, …; none in domain steps."""
        out: dict[str, tuple[str, ...]] = {}
        if self.domains:
            return out
        for last in range(1, self.seen(step) + 1):
            out[str(last)] = self.groups[last - 1]
            out["+".join(map(str, range(1, last + 1)))] = tuple(c for group in self.groups[:last] for c in group)
        return out

    def seen(self, step: Step) -> int:
        """Number of the last step that belongs to ``step``; ``TaskError`` for one that the task does not have."""
        if step is None or step == "all":
            return self.steps
        if not 1 <= step <= self.steps:
            raise TaskError(f"task {self.name!r} has no step {step}: it has 1 to {self.steps}, and 'all'")
        return step


def task_names() -> list[str]:
    """Names of the tasks that come with Segue."""
    folder = resources.files("segue.data").joinpath("tasks")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_task(given: str | Path | Mapping[str, Any]) -> Task:
    """A task by its name, its YAML file or its keys; with ``extends``, another task under these keys.

    ``TaskError`` names the file and every fault.
    """
    where = "task" if isinstance(given, Mapping) else str(given)
    data = _read(given, Path(), ())
    try:
        return Task.model_validate(data)
    except ValidationError as error:
        raise TaskError("\n".join(f"{where}: {line}" for line in explain(error, Task))) from error


def _read(given: Any, folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    """Keys of a task as plain containers, what it extends filled in, its list files relative to ``folder`` no more."""
    if isinstance(given, Mapping):
        data = dict(given)
    else:
        given, data, folder = _open(str(given), folder)
    data = _with_lists(data, folder)
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if isinstance(base, Mapping) or str(base) in above:
        raise TaskError(f"extends: {base!r} must be the name or the file of another task")
    under = _read(base, folder, (*above, str(base)))
    if data.get("classes") or data.get("sizes"):
        under = {key: value for key, value in under.items() if key not in ("classes", "sizes")}
    return {**under, **data}


def _open(name: str, folder: Path) -> tuple[str, dict[str, Any], Path]:
    known = task_names()
    path = folder / Path(name).expanduser()
    try:
        if name in known:
            text = resources.files("segue.data").joinpath("tasks").joinpath(f"{name}.yaml").read_text("utf-8")
        elif path.suffix in (".yaml", ".yml") or path.is_file():
            text = path.read_text("utf-8")
        else:
            raise TaskError(f"unknown task {name!r}{nearest(name, known)}; for a task of your own give its YAML file")
        data = yaml.safe_load(text)
    except OSError as error:
        raise TaskError(f"cannot read task {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"task {path} is not a text file (UTF-8)") from error
    except yaml.YAMLError as error:
        raise TaskError(f"task {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise TaskError(f"task {path} must hold keys such as labels, classes and protocol, not {type(data).__name__}")
    return name, {"name": path.stem, **data}, path.parent


def _with_lists(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    rows = data.get("images")
    if not isinstance(rows, list | tuple):
        return data
    return {
        **data,
        "images": [
            {**row, "list": folder / Path(row["list"]).expanduser()}
            if isinstance(row, Mapping) and isinstance(row.get("list"), str | Path)
            else row
            for row in rows
        ],
    }


def _cut(names: Sequence[str], sizes: Sequence[int], space: str) -> tuple[tuple[str, ...], ...]:
    if sum(sizes) != len(names):
        raise TaskError(
            f"sizes: {' + '.join(map(str, sizes))} is {sum(sizes)}, label space {space!r} has {len(names)} classes "
            f"(without the background): make them add up, or name the classes under 'classes'"
        )
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return tuple(tuple(names[end - size : end]) for end, size in zip(ends, sizes, strict=True))


def _check_groups(
    groups: Sequence[Sequence[str]], foreground: Sequence[str], space: str, background: str | None
) -> None:
    step_of: dict[str, int] = {}
    for step, group in enumerate(groups, 1):
        if not group:
            raise TaskError(f"classes: step {step} has no class: give it one, or leave the step out")
        for name in group:
            if name == background:
                raise TaskError(f"classes: {name!r} is the background and there from the first step on: leave it out")
            if name not in foreground:
                raise TaskError(f"classes: label space {space!r} has no class {name!r}{nearest(name, foreground)}")
            if name in step_of:
                raise TaskError(f"classes: {name!r} is in step {step_of[name]} and in step {step}: leave one out")
            step_of[name] = step
    missing = [name for name in foreground if name not in step_of]
    if missing:
        raise TaskError(f"classes: no step has {', '.join(missing)} of label space {space!r}: add them to a step")


def _free_id(space: LabelSpace) -> int:
    if 0 in space.ids:
        raise TaskError(
            f"background: label space {space.name!r} has no class of this name, and its id 0 is {space.classes[0]!r}: "
            f"name one of its classes, or leave 'background' out"
        )
    return 0
