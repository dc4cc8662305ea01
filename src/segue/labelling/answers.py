"""Labels that came back into the answers of a group's rounds; marks of the review page withdraw answers.

All of an import is read and checked before anything is written; each image is written whole, so an import that was
killed is finished by doing it again. The same import twice changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segue.acquire.state import Round, Row
from segue.data.label_folder import LabelFolder
from segue.errors import UserError
from segue.labelling.items import Batch, Item, Target
from segue.labelling.job import LabellingError, answered
from segue.labelling.merge import POLICIES, Merged, Merger, Policy
from segue.labelling.sources import Mark, Marks, open_source
from segue.labels import IGNORE, nearest

SHOWN_FAULTS = 20


@dataclass
class Report:
    """What an import did and what is left to do."""

    round: Round
    merged: Merged
    labels: int = 0
    """Labels that were read."""
    notes: list[str] = field(default_factory=list)
    withdrawn: Counter[int] = field(default_factory=Counter)
    """Regions that marks have opened again, by round."""
    not_answered: int = 0
    """Marks on regions that had no answer."""
    missing: list[Row] = field(default_factory=list)
    """Regions of ``round`` without a whole answer now."""

    @property
    def complete(self) -> bool:
        """Whether training may go on."""
        return not self.missing or self.round.info.closed


def import_answers(
    rounds: Sequence[Round],
    chosen: Round,
    paths: Sequence[Path],
    *,
    tool: str = "auto",
    policy: str = "error",
    skip_faulty: bool = False,
    accept_untouched: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Merge exports of a labelling tool (or marks) into the rounds of one group; labels that name no round are for
    ``chosen``.

    ``policy``: what happens where two answers differ (``error``, ``keep`` the first, ``replace`` it, or ``void``).
    ``skip_faulty``: leave faulty images out instead of refusing all. ``accept_untouched``: labels that came back as
    they were proposed are answers. ``LabellingError`` with every fault, and nothing written.
    """
    target = Target(rounds)
    sources, faults = _open(paths, tool, target)
    marks = [source for source in sources if isinstance(source, Marks)]
    batches = [source for source in sources if not isinstance(source, Marks)]
    if marks and (batches or faults):
        _refuse([*faults, "marks withdraw answers: import them alone, before the labels that replace these"], "")
    if marks:
        return _withdraw(target, chosen, marks)
    merger = Merger(target, chosen.info.round, _policy(policy), accept_untouched)
    items = [item for batch in batches for item in batch.items]
    faults += [fault for batch in batches for fault in batch.faults]
    by_image, strange = _by_image(items, target)
    faults += strange
    for done, (image, given) in enumerate(sorted(by_image.items()), 1):
        merger.add(image, given)
        if progress is not None:
            progress(done, len(by_image))
    faults += merger.out.faults
    if faults and not skip_faulty:
        way = "; where answers differ, --on-conflict keep, replace or void decides" if merger.out.conflict_px else ""
        _refuse(faults, f"mend them, or leave these out with --skip-faulty{way}")
    _write(target, merger.out)
    notes = [note for batch in batches for note in batch.notes] + [f"left out: {fault}" for fault in faults]
    return Report(chosen, merger.out, len(items), notes, missing=chosen.missing())


def _open(paths: Sequence[Path], tool: str, target: Target) -> tuple[list[Batch | Marks], list[str]]:
    sources: list[Batch | Marks] = []
    faults: list[str] = []
    for path in paths:
        try:
            sources.append(open_source(path, tool, target))
        except UserError as error:
            faults.append(str(error))
    return sources, faults


def _policy(text: str) -> Policy:
    for policy in POLICIES:
        if policy == text:
            return policy
    raise LabellingError(f"--on-conflict cannot be {text!r}{nearest(text, list(POLICIES))}")


def _by_image(items: Sequence[Item], target: Target) -> tuple[dict[str, list[Item]], list[str]]:
    out: dict[str, list[Item]] = {}
    faults: list[str] = []
    for item in items:
        try:
            out.setdefault(target.image(item.image, item.where), []).append(item)
        except LabellingError as error:
            faults.append(str(error))
    return out, faults


def _refuse(faults: Sequence[str], way: str) -> None:
    shown = "".join(f"\n- {fault}" for fault in faults[:SHOWN_FAULTS])
    more = f"\n- and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    end = f"\n{way}" if way else ""
    raise LabellingError(f"nothing was imported; faults: {len(faults)}{shown}{more}{end}")


def _write(target: Target, merged: Merged) -> None:
    folders: dict[int, LabelFolder] = {}
    for change in merged.changes:
        if change.round not in folders:
            folders[change.round] = target.rounds[change.round].answers()
        folders[change.round].put(change.image, change.label)
    for folder in folders.values():
        folder.save()


def _withdraw(target: Target, chosen: Round, given: Sequence[Marks]) -> Report:
    wanted: dict[tuple[int, str], set[int]] = {}
    faults = [f"the marks are of group {m.group!r}, not {target.group!r}" for m in given if m.group != target.group]
    for mark in (mark for marks in given for mark in marks.marks):
        if fault := _fault(target, mark):
            faults.append(fault)
        wanted.setdefault((mark.round, mark.image), set()).add(mark.part)
    if faults:
        _refuse(faults, "give the marks of this run's review page")
    report = Report(chosen, Merged())
    folders = {n: target.rounds[n].answers() for n in {n for n, _ in wanted}}
    for (number, image), parts in wanted.items():
        asked = target.rounds[number].asked(image)
        label = answered(folders[number], image, (asked.shape[0], asked.shape[1])).copy()
        inside = np.isin(asked, sorted(parts)) & (label != IGNORE)
        found = int(np.unique(asked[inside]).size)
        report.withdrawn[number] += found
        report.not_answered += len(parts) - found
        if found:
            label[inside] = IGNORE
            folders[number].put(image, label)
    for number, folder in folders.items():
        folder.save()
        if report.withdrawn[number] and target.rounds[number].info.closed:
            target.rounds[number].close(False)  # what was marked is asked again
    report.missing = chosen.missing()
    return report


def _fault(target: Target, mark: Mark) -> str | None:
    chosen = target.rounds.get(mark.round)
    if chosen is None:
        return f"a mark is of round {mark.round}, which is not there"
    rows = chosen.by_image.get(mark.image)
    if rows is None:
        return f"a mark is of image {mark.image!r}, of which round {mark.round} bought nothing"
    if not 1 <= mark.part <= len(rows):
        return f"a mark is of region {mark.part} of {mark.image!r}, round {mark.round} bought {len(rows)} there"
    return None
