"""What rounds of buying chose: how much, of which classes, how large, and whether two choices overlap.

Pixels of predicted classes are whole regions without their ignored pixels; pixels of answered classes are counted in
the answers. Two rounds of one group must not share a pixel: what they do share is counted and told.

The class weights that a choice induced are, with n_c the answered and m_c all labelled pixels of class c in the pool,
w_c = (n_c / sum n) / (m_c / sum m), scaled to mean 1 over the classes that the pool shows. Training on all labels with
these weights is the control of a choice: does it help by *which* pixels, or only by how often it shows each class?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np

from segue.acquire.forecast import MIN_ROUNDS, Forecast, expected_gain, sentence
from segue.acquire.state import VOID, Round
from segue.acquire.table import I64
from segue.data.statistics import histogram
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.report.read import read_run

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
IMAGES = 30
"""Whole images that the forecast holds against another round."""


class AnalysisError(UserError):
    """Choices that cannot be held against each other, or labels that are not there."""


@dataclass(frozen=True, eq=False)
class Bought:
    """What one round bought, or all of them together; arrays by class are (C,)."""

    regions: int
    images: int
    labelled_px: int
    ignored_px: int
    clicks: int
    minutes: float
    predicted_px: I64
    """By the class that the model predicted for the region."""
    answered_px: I64
    void_px: int
    """Answered: of no class."""
    area_px: I64
    """(N,) in the order of buying."""
    region_px: I64
    """(N,) of them without ignored ones."""
    region_clicks: I64


@dataclass(frozen=True, eq=False)
class Analysis:
    """One group of rounds."""

    group: str
    labels: LabelSpace
    pool_px: int
    rounds: Mapping[int, Bought]
    total: Bought
    several: int
    """Images that more than one round chose from."""
    overlap_px: Mapping[tuple[int, int], int]
    """Pixels that two rounds both bought, where there are any."""
    truth_px: I64 | None = None
    """(C,) labelled pixels of the whole pool."""
    pool_images: int | None = None
    miou: Mapping[int, float] = field(default_factory=dict)
    """Percent after each round that was scored."""
    scored_on: str = ""

    @property
    def shares(self) -> dict[int, float]:
        """Of the pool that has been bought after each round."""
        spent = np.cumsum([r.labelled_px for r in self.rounds.values()])
        return {n: float(s) / self.pool_px for n, s in zip(self.rounds, spent, strict=True)}

    @property
    def weights(self) -> list[float] | None:
        """Class weights that the choice induced; None without truth or without answers."""
        if self.truth_px is None or not self.total.answered_px.any():
            return None
        return induced_weights(self.total.answered_px, self.truth_px)

    def forecasts(self) -> list[tuple[str, float, Forecast]]:
        """Of the next round and of whole images: name, share of the pool then, gain; [] without enough scores."""
        shares = self.shares
        scored = [n for n, bought in self.rounds.items() if n in self.miou and bought.labelled_px]
        if len(scored) < MIN_ROUNDS or scored[-1] != max(self.rounds):
            return []
        done, step = shares[scored[-1]], self.rounds[scored[-1]].labelled_px / self.pool_px
        wanted = [(f"round {scored[-1] + 1}", done + step)]
        if self.pool_images is not None:
            wanted.append((f"{IMAGES} whole images instead", done + IMAGES / self.pool_images))
        budgets, scores = [shares[n] for n in scored], [self.miou[n] for n in scored]
        full = [1.0, None]  # said once
        return [
            (name, b, expected_gain(budgets, scores, b, all_of_it))
            for (name, b), all_of_it in zip(wanted, full, strict=False)
            if done < b <= 1
        ]

    def forecast_lines(self) -> list[str]:
        """A sentence for each forecast."""
        return [sentence(found, name, share) for name, share, found in self.forecasts()]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        classes = self.labels.classes
        return {
            "group": self.group,
            "classes": list(classes),
            "pool_px": self.pool_px,
            "rounds": {str(n): self._numbers(b) | {"miou": self.miou.get(n)} for n, b in self.rounds.items()},
            "total": self._numbers(self.total),
            "images_of_several_rounds": self.several,
            "overlap_px": {f"{a}, {b}": px for (a, b), px in self.overlap_px.items()},
            "truth_px": None if self.truth_px is None else self.truth_px.tolist(),
            "class_weights": self.weights,
            "scored_on": self.scored_on,
            "forecasts": [
                {"what": n, "share": s, "gain": f.gain, "low": f.low, "high": f.high, "full": f.full}
                | {"a": f.curve.a, "c": f.curve.c, "k": f.curve.k, "unit": f.curve.unit}
                for n, s, f in self.forecasts()
            ],
        }

    def _numbers(self, bought: Bought) -> dict[str, Any]:
        return {
            "regions": bought.regions,
            "images": bought.images,
            "labelled_px": bought.labelled_px,
            "ignored_px": bought.ignored_px,
            "share": bought.labelled_px / self.pool_px,
            "clicks": bought.clicks,
            "minutes": bought.minutes,
            "predicted_px": bought.predicted_px.tolist(),
            "answered_px": bought.answered_px.tolist(),
            "void_px": bought.void_px,
            "area_px": dict(zip(map(str, QUANTILES), quantiles(bought.area_px), strict=True)),
        }


@dataclass(frozen=True)
class Against:
    """Two choices: |both| / |either| of their pixels, and of their regions (None where they were cut differently)."""

    pixels: float
    regions: float | None
    both_px: int
    images: int
    """Chosen from by both."""


def analyse(
    rounds: Sequence[Round],
    *,
    truth: I64 | None = None,
    scores: tuple[str, Mapping[int, float]] = ("", {}),
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Analysis:
    """Count the rounds of one group. ``truth`` (images, C): labelled pixels of each class in each image of the pool.

    ``scores``: validation set, and mIoU in percent by round. ``DataError`` for damaged files.
    """
    first, done = rounds[0].info, count(1)
    todo = sum(len(r.by_image) for r in rounds)
    found = {r.info.round: _bought(r, lambda: progress(next(done), todo)) for r in rounds}
    several = _several(rounds)
    return Analysis(
        group=first.group,
        labels=rounds[0].labels,
        pool_px=first.pool_px,
        rounds=found,
        total=_sum(list(found.values()), len({i for r in rounds for i in r.by_image})),
        several=len(several),
        overlap_px=_overlaps(several),
        truth_px=None if truth is None else truth.sum(0, dtype=np.int64),
        pool_images=None if truth is None else len(truth),
        miou=scores[1],
        scored_on=scores[0],
    )


def against(one: Sequence[Round], other: Sequence[Round]) -> Against:
    """Hold all that two groups bought against each other; ``AnalysisError`` when they are of different images."""
    mine, theirs = _by_image(one), _by_image(other)
    both_px, images = 0, sorted(mine.keys() & theirs.keys())
    for image in images:
        masks = [np.logical_or.reduce([r.asked(image) > 0 for r in group[image]]) for group in (mine, theirs)]
        if masks[0].shape != masks[1].shape:
            raise AnalysisError(
                f"image {image!r} is of size {masks[0].shape} in one run and {masks[1].shape} in the other"
            )
        both_px += int(np.logical_and(*masks).sum())
    area = [sum(row.area_px for r in group for row in r.rows) for group in (one, other)]
    regions = [{(row.image, row.region) for r in group for row in r.rows} for group in (one, other)]
    same = len({repr(r.info.partition) for r in (*one, *other)}) == 1
    return Against(
        pixels=both_px / max(sum(area) - both_px, 1),
        regions=len(regions[0] & regions[1]) / max(len(regions[0] | regions[1]), 1) if same else None,
        both_px=both_px,
        images=len(images),
    )


def induced_weights(answered_px: I64, truth_px: I64) -> list[float]:
    """(C,) class weights of mean 1 over the classes with truth, see the module; 1 for a class that has none."""
    present = truth_px > 0
    ratio = np.divide(answered_px, truth_px, out=np.zeros(len(truth_px)), where=present)
    mean = float(ratio[present].mean())
    if mean == 0:
        raise AnalysisError("no answer is of a class that the pool's own labels show: they are of different data")
    return [float(w) for w in np.where(present, ratio / mean, 1.0)]


def scores_by_round(run: Path, group: str, rounds: Sequence[int]) -> tuple[str, dict[int, float]]:
    """Validation set, and mIoU in percent of the stage that followed each round (``GROUP_<n>``, or ``GROUP`` alone).

    Empty for a folder without a readable ``run.json``: a run that has only just begun.
    """
    if not (run / "run.json").is_file():
        return "", {}
    found = read_run(run)
    stages = {s.name: 100 * found.score(s) for s in found.stages}
    named = {n: stages.get(f"{group}_{n}", math.nan) for n in rounds}
    if group in stages and rounds:
        named[max(rounds)] = stages[group]  # one training: what it bought last is what its score is of
    return found.target or "", {n: v for n, v in named.items() if not math.isnan(v)}


def quantiles(area_px: I64) -> list[float]:
    """Areas at ``QUANTILES``."""
    return [float(q) for q in np.quantile(area_px, QUANTILES)] if len(area_px) else [math.nan] * len(QUANTILES)


def _bought(one: Round, tick: Callable[[], object]) -> Bought:
    """The numbers of one round."""
    info, classes = one.info, len(one.labels)
    answers = one.answers()
    held, answered = set(answers.ids), np.zeros(256, np.int64)
    for image in one.by_image:
        if image in held:
            answered += histogram(answers.read(image))
        tick()
    columns = np.array([(r.area_px, r.area_px - r.ignored_px, r.clicks, r.predicted) for r in one.rows], np.int64)
    area, region_px, clicks, predicted = columns.reshape(-1, 4).T
    return Bought(
        regions=info.regions,
        images=len(one.by_image),
        labelled_px=info.labelled_px,
        ignored_px=info.ignored_px,
        clicks=info.clicks,
        minutes=info.minutes,
        predicted_px=np.bincount(predicted, region_px, minlength=256)[:classes].astype(np.int64),
        answered_px=answered[:classes],
        void_px=int(answered[VOID]),
        area_px=area,
        region_px=region_px,
        region_clicks=clicks,
    )


def _sum(rounds: Sequence[Bought], images: int) -> Bought:
    """All rounds as one; ``images`` counts each once."""
    numbers = {f.name: [getattr(r, f.name) for r in rounds] for f in fields(Bought)}
    joined = {k: np.concatenate(numbers.pop(k)) for k in ("area_px", "region_px", "region_clicks")}
    return Bought(**{k: sum(v) for k, v in numbers.items()} | joined | {"images": images})


def _by_image(rounds: Sequence[Round]) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {}
    for one in rounds:
        for image in one.by_image:
            found.setdefault(image, []).append(one)
    return found


def _several(rounds: Sequence[Round]) -> dict[str, list[Round]]:
    return {image: chosen for image, chosen in _by_image(rounds).items() if len(chosen) > 1}


def _overlaps(several: Mapping[str, list[Round]]) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for image, rounds in several.items():
        masks = [(r.info.round, r.asked(image) > 0) for r in rounds]
        for (a, mine), (b, theirs) in combinations(masks, 2):
            if px := int((mine & theirs).sum()):
                found[a, b] = found.get((a, b), 0) + px
    return found
