"""Buying labels of regions: choose by the model so far, get answers, hand them to the training. One folder a round.

A choice is written as a whole (:mod:`segue.acquire.state`), a survey goes on where it stopped, and what is random is
keyed by (seed, group, round): a run that was killed chooses the same regions, none twice.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from segue import runs
from segue.acquire.forecast import MIN_ROUNDS, ForecastError, expected_gain, sentence
from segue.acquire.state import INFO, Round, rounds_of, write_labels
from segue.config import StageConfig
from segue.data.relabelled import INDEX
from segue.jobs.build import LABELS, Job, round_folder
from segue.jobs.buyer import Buyer
from segue.jobs.purchase import order_of
from segue.models.base import SegModel

SUMMED = ("labelled_px", "ignored_px", "regions", "clicks", "minutes")


def schedule(stage: StageConfig) -> list[tuple[int, int]]:
    """Rounds of a stage, and before which of its iterations each is bought."""
    if stage.annotate is None:
        return []
    return list(enumerate(stage.annotate.at, 1)) or [(stage.annotate.round, 0)]


def bought(job: Job, stage: StageConfig, number: int) -> bool:
    """Whether a round has been chosen and answered: its labels are there."""
    return (round_folder(job, stage, number) / LABELS / INDEX).is_file()


def buy(job: Job, stage: StageConfig, number: int, model: SegModel, name: str) -> None:
    """Buy a round's regions by what ``model`` predicts, and get their labels; what is there already is kept.

    ``name`` says whose predictions they were. ``Interrupted`` while people have not answered.
    """
    buyer = Buyer(job, stage, order_of(stage, number), model, name)
    earlier = buyer.earlier()
    if not (buyer.folder / INFO).is_file():
        buyer.choose(earlier)
    found = Round(buyer.folder)
    buyer.answer(found)
    write_labels([*earlier, found], buyer.folder / LABELS)


def record(job: Job, stage: StageConfig, evaluations: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the stage and the rounds before it bought, and what another round would gain, for stage.json."""
    if stage.annotate is None:
        return None
    last = schedule(stage)[-1][0]
    infos = [r.info for r in rounds_of(round_folder(job, stage, last).parent) if r.info.round <= last]
    newest = {key: getattr(infos[-1], key) for key in ("group", "round", "pool_px", "skipped")}
    found = newest | {key: sum(getattr(info, key) for info in infos) for key in SUMMED}
    return found | {"forecast": _forecast(job, stage, found, evaluations)}


def _forecast(job: Job, stage: StageConfig, found: Mapping[str, Any], evaluations: Mapping[str, Any]) -> str | None:
    """One sentence on the next round, by the first validation set; None while the rounds are too few."""
    assert stage.annotate is not None
    if stage.annotate.at or not evaluations:
        return None
    group = [s for s in job.recipe.stages if s.annotate and (s.annotate.group or s.name) == found["group"]]
    before = [runs.read(job.stage_folder(s) / "stage.json") for s in group[: group.index(stage)]]
    target = next(iter(evaluations))
    shares = [r["labelled_px"] / found["pool_px"] for r in (*(b["annotate"] for b in before), found)]
    scores = [100 * r[target]["miou"] for r in (*(b["evaluations"] for b in before), evaluations)]
    if len(shares) < MIN_ROUNDS or (share := 2 * shares[-1] - shares[-2]) > 1:
        return None
    try:
        told = sentence(expected_gain(shares, scores, share, 1.0), f"round {found['round'] + 1}", share)
    except ForecastError:  # a round of no pixels, or without a score
        return None
    print(f"{found['group']}: {told}", file=sys.stderr)
    return told
