"""What a scoring found, and the tally that it grows in. Imports no torch: label maps from files are scored here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segue.errors import UserError
from segue.files import finite
from segue.labels import IGNORE, U8, LabelSpace
from segue.scoring import boundary as contours
from segue.scoring.bootstrap import PerImage
from segue.scoring.boundary import Boundary
from segue.scoring.matrix import I64, Confusion, Scores, count, view_rows
from segue.scoring.protocols import NATIVE, Protocol

Group = tuple[int, ...]

KEEP_WORST = 8
IN_TASK = ("miou", "accuracy", "mean_accuracy", "iou")  # what is told of a task's scores


@dataclass(frozen=True)
class Result:
    """What an evaluation found. ``views[0]`` is the view of the headline numbers, ``per_image`` and ``boundary``.

    ``without_label`` counts images of the data set that have no label file and so no score. ``tasks``: by name the
    classes among which the network had to choose, and its counts on their pixels. ``extras``: more plain containers for
    :meth:`to_dict`.
    """

    labels: LabelSpace
    confusion: Confusion
    per_image: PerImage
    views: tuple[str, ...]
    rule: Protocol
    keep_worst: int = KEEP_WORST
    without_label: int = 0
    boundary: Boundary | None = None
    tasks: Mapping[str, tuple[Group, Confusion]] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.rule.name

    def scores(self, view: str | None = None) -> Scores:
        """Scores of a view, by default the first."""
        return self.confusion.scores(self.labels, view or self.views[0], self.rule.name, self.rule.absent)

    def task_scores(self) -> dict[str, Scores]:
        """Scores of every task: the argmax among its classes, on the pixels of its classes."""
        return {
            name: counts.scores_of(self.labels, rows, name, self.rule.name, self.rule.absent)
            for name, (rows, counts) in self.tasks.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain containers (NaN is None): an entry of ``evaluations`` in stage.json.

        ``miou``, ``accuracy``, ``mean_accuracy``, ``iou``, ``class_accuracy``, ``protocol``, ``view`` of the first
        view; ``num_images``, ``without_label``; ``confusion`` (C lists of C+1 counts, the last for predictions that
        are no class); ``worst`` (id and miou of the lowest-scoring images); ``views``: name -> scores of every view;
        where asked for, ``boundary``, ``calibration`` and ``tasks`` (name -> ``miou``, ``accuracy``, ``mean_accuracy``,
        ``iou``).
        """
        worst = self.per_image.worst(self.keep_worst)
        extras = dict(self.extras)
        if self.boundary is not None:
            extras["boundary"] = contours.to_dict(self.boundary, self.scores().iou, self.labels.classes)
        if self.tasks:
            told = {name: scores.to_dict() for name, scores in self.task_scores().items()}
            extras["tasks"] = {name: {key: own[key] for key in IN_TASK} for name, own in told.items()}
        return self.scores().to_dict() | {
            "num_images": len(self.per_image.ids),
            "without_label": self.without_label,
            "confusion": self.confusion.counts.tolist(),
            "worst": [{"id": name, "miou": miou} for name, miou in worst],
            "views": {view: self.scores(view).to_dict() for view in self.views},
            **finite(extras),
        }


class Tally:
    """Counts of one predictor over the images of a data set."""

    def __init__(
        self,
        labels: LabelSpace,
        views: Sequence[str],
        rule: Protocol = NATIVE,
        *,
        boundary: bool = False,
        tasks: Mapping[str, Group] | None = None,
    ) -> None:
        check_views(labels, views)
        self.labels, self.views, self.rule = labels, tuple(views), rule
        self.rows, self.lenient = view_rows(labels, self.views[0])
        self.total = Confusion(len(labels))
        self.boundary = Boundary(len(labels)) if boundary else None
        self.tasks = {name: (group, Confusion(len(labels))) for name, group in (tasks or {}).items()}
        self._names: list[str] = []
        self._sums: list[tuple[I64, I64, I64]] = []

    def add(self, name: str, label: U8, prediction: U8) -> None:
        """Count one image (train ids of equal shape); ``ValueError`` for labels outside the space or unequal shapes."""
        self.add_counts(name, count(label, prediction, len(self.labels)))
        if self.boundary is not None:
            self.boundary.add(self.scored(label), prediction)

    def add_tasks(self, label: U8, predictions: Sequence[U8]) -> None:
        """Count what was predicted among the classes of each task, on their pixels; after :meth:`add`."""
        for (group, total), prediction in zip(self.tasks.values(), predictions, strict=True):
            total.counts[list(group)] += count(label, prediction, len(self.labels))[list(group)]

    def add_counts(self, name: str, counts: I64) -> None:
        """Count one image by its (C, C+1) counts."""
        own = Confusion(len(self.labels), counts)
        self.total += own
        self._names.append(name)
        self._sums.append((own.only(self.rows) if self.lenient else own).sums())

    def scored(self, label: U8) -> U8:
        """The label as the headline view sees it: other classes are ignored when it is lenient."""
        if not self.lenient:
            return label
        table = np.full(IGNORE + 1, IGNORE, np.uint8)
        table[self.rows] = self.rows
        return np.asarray(table[label], np.uint8)

    def result(
        self, without_label: int = 0, keep_worst: int = KEEP_WORST, extras: Mapping[str, Any] | None = None
    ) -> Result:
        """What was counted so far."""
        right, truth, predicted = (np.stack(rows).astype(np.uint32) for rows in zip(*self._sums, strict=True))
        per_image = PerImage(tuple(self._names), self.labels.classes, right, truth, predicted, tuple(self.rows))
        return Result(
            labels=self.labels,
            confusion=self.total,
            per_image=per_image,
            views=self.views,
            rule=self.rule,
            keep_worst=keep_worst,
            without_label=without_label,
            boundary=self.boundary,
            tasks=self.tasks,
            extras=extras or {},
        )


def check_views(labels: LabelSpace, views: Sequence[str]) -> None:
    """``LabelError`` unless every view exists; ``UserError`` without any."""
    if not views:
        raise UserError("scoring needs at least one view ('all' is every class)")
    for view in views:
        view_rows(labels, view)


def labelled_indices(dataset: Any) -> list[int]:
    """Images of a data set that have a label; ``UserError`` when none has."""
    without = set(getattr(dataset, "unlabelled_ids", ()))
    indices = [i for i, name in enumerate(dataset.ids) if name not in without]
    if not indices or not getattr(dataset, "labelled", True):
        raise UserError(f"data set {dataset.name!r} has no labels to score against")
    return indices
