"""What came back, image by image: which pixels are new answers, which contradict earlier ones, which were not asked.

A label answers the round that it says it is of (or the chosen one); regions of the group's other rounds only where they
are still open and it covers them wholly, so that a stroke over the border is no answer. Pixels asked by no round are
dropped and counted.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from segue.acquire.state import COMPLETE, U16, VOID, Round
from segue.data.label_folder import LabelFolder
from segue.errors import UserError
from segue.labelling.items import Item, Target
from segue.labelling.job import LabellingError, answered, guess
from segue.labels import IGNORE, U8

Policy = Literal["error", "keep", "replace", "void"]
POLICIES: tuple[Policy, ...] = ("error", "keep", "replace", "void")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """The new answers of one image in one round, packed: a whole job is checked before any of it is written."""

    round: int
    image: str
    size: tuple[int, int]
    data: bytes

    @property
    def label(self) -> U8:
        """(H, W) answers."""
        return np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.size)


@dataclass
class Merged:
    """What checking found."""

    changes: list[Change] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    outside_px: int = 0
    """Pixels that no round asked for, or that this label cannot answer."""
    conflict_px: int = 0
    """Pixels where two answers differed, decided as asked."""
    new_px: Counter[int] = field(default_factory=Counter)
    """Pixels with a new or changed answer, by round."""
    untouched: list[str] = field(default_factory=list)
    known: int = 0
    """Images whose labels were there already."""
    surprising: list[str] = field(default_factory=list)
    """Regions whose answer has nothing of what the model predicted throughout."""


class Merger:
    """Folds labels into the answers of a group's rounds, in memory."""

    def __init__(self, target: Target, chosen: int, policy: Policy, accept_untouched: bool) -> None:
        self._target, self._chosen, self._policy = target, chosen, policy
        self._accept_untouched = accept_untouched
        self._folders: dict[int, LabelFolder] = {n: r.answers() for n, r in target.rounds.items()}
        self.out = Merged()

    def add(self, image: str, items: Sequence[Item]) -> None:
        """All labels of one image. Faults and conflicts are collected; then nothing of the image counts."""
        given = self._read(image, latest(items))
        states = [self._state(n, image) for n, r in self._target.rounds.items() if image in r.by_image]
        faults = [fault for item, label in given for fault in self._fold(states, item, label)]
        self.out.faults += faults
        if faults or not given:
            return
        changed = [self._keep(state) for state in states]
        if any(changed):
            return
        if any(state.skipped for state in states):
            self.out.untouched.append(image)
        else:
            self.out.known += 1

    def _fold(self, states: Sequence[_State], item: Item, label: U8) -> list[str]:
        used = np.zeros(label.shape, np.bool_)
        faults: list[str] = []
        for state in states:
            fold = _Fold(state, item, label, state.number == (self._chosen if item.round is None else item.round))
            used |= fold.wanted
            if not self._accept_untouched and fold.untouched():
                state.skipped = True
                continue
            faults += fold.apply(self._policy)
            self.out.conflict_px += fold.conflict_px
        self.out.outside_px += int(((label != IGNORE) & ~used).sum())
        return faults

    def _read(self, image: str, items: Sequence[Item]) -> list[tuple[Item, U8]]:
        chosen = next(r for r in self._target.rounds.values() if image in r.by_image)
        size = chosen.asked(image).shape
        found, faults = [], []
        for item in items:
            try:
                label = item.read((size[0], size[1]))
                if label.shape != size:
                    raise LabellingError(f"{item.where} is of size {label.shape}, its image of {size}")
                found.append((item, label))
            except UserError as error:
                faults.append(str(error))
        self.out.faults += faults
        return [] if faults else found

    def _state(self, number: int, image: str) -> _State:
        chosen = self._target.rounds[number]
        asked = chosen.asked(image)
        old = answered(self._folders[number], image, (asked.shape[0], asked.shape[1]))
        rows = chosen.by_image[image]
        open_px = np.bincount(asked[old == IGNORE], minlength=len(rows) + 1)
        open_parts = [r.part for r in rows if open_px[r.part] > (1 - COMPLETE) * r.area_px]
        return _State(number, chosen, image, asked, old, old.copy(), guess(chosen, image, asked), open_parts)

    def _keep(self, state: _State) -> bool:
        changed = state.new != state.old
        if not changed.any():
            return False
        self.out.new_px[state.number] += int(changed.sum())
        self.out.surprising += _surprising(state, changed)
        data = zlib.compress(np.ascontiguousarray(state.new).tobytes(), 1)
        self.out.changes.append(Change(state.number, state.image, (state.new.shape[0], state.new.shape[1]), data))
        return True


def latest(items: Sequence[Item]) -> list[Item]:
    """The last label of each person, in order of time."""
    last: dict[str, Item] = {}
    for item in sorted(items, key=lambda i: i.time):
        last.pop(item.who, None)
        last[item.who] = item
    return list(last.values())


@dataclass
class _State:
    number: int
    round: Round
    image: str
    asked: U16
    old: U8
    new: U8
    guess: U8
    open_parts: list[int]
    skipped: bool = False
    """Whether a label was left out that is as it was proposed."""


class _Fold:
    """One label over one round's answers."""

    def __init__(self, state: _State, item: Item, label: U8, primary: bool) -> None:
        self._state, self._item, self._label = state, item, label
        painted = label != IGNORE
        self.wanted: Mask = painted & (state.asked > 0)
        self._parts = state.open_parts
        if not primary:
            rows = state.round.by_image[state.image]
            counts = np.bincount(state.asked[painted], minlength=len(rows) + 1)
            whole = {r.part for r in rows if counts[r.part] >= COMPLETE * r.area_px}
            self._parts = [part for part in state.open_parts if part in whole]
            self.wanted &= np.isin(state.asked, self._parts)
        self.conflict_px = 0

    def untouched(self) -> bool:
        """Whether the label has nothing that a person painted: all is as predicted, or has been answered so before."""
        state, label, wanted = self._state, self._label, self.wanted
        if self._item.looked or (label == state.old)[wanted].all():
            return False
        proposed = (label == state.guess) | (label == state.old)
        return bool(proposed[wanted].all() and wanted[np.isin(state.asked, self._parts)].all())

    def apply(self, policy: Policy) -> list[str]:
        """Take what is new, decide what differs; the conflicts, when they are errors."""
        new, label = self._state.new, self._label
        differs = self.wanted & (new != IGNORE) & (new != label)
        self.conflict_px = int(differs.sum())
        if self.conflict_px and policy == "error":
            return [self._conflict(differs)]
        taken = self.wanted & ~differs if policy in ("keep", "void") else self.wanted
        new[taken] = label[taken]
        if policy == "void":
            new[differs] = VOID
        return []

    def _conflict(self, differs: Mask) -> str:
        state = self._state
        parts = ", ".join(map(str, np.unique(state.asked[differs])[:6].tolist()))
        earlier = bool((state.old[differs] != IGNORE).any())
        other = "an answer imported before" if earlier else "another label in this import"
        return (
            f"{self._item.where}: differs from {other} in {int(differs.sum())} pixels of {state.image!r} "
            f"(round {state.number}, regions {parts})"
        )


def _surprising(state: _State, changed: Mask) -> Iterator[str]:
    asked = state.asked > 0
    parts = state.asked[asked].astype(np.int64)
    predicted, given = _classes(parts, state.guess[asked]), _classes(parts, state.new[asked])
    names = state.round.labels.classes
    for part in np.unique(state.asked[changed]).tolist():
        answers = [names[x] for x in given[part] if x < len(names)]
        only = predicted[part]
        if len(only) == 1 and only[0] < len(names) and answers and names[only[0]] not in answers:
            said = names[only[0]]
            yield f"round {state.number}, {state.image}, region {part}: {', '.join(answers)}; the model said {said}"


def _classes(parts: npt.NDArray[np.int64], label: U8) -> dict[int, list[int]]:
    """Values that occur in each part."""
    out: dict[int, list[int]] = {}
    for pair in np.unique(parts << 8 | label).tolist():
        out.setdefault(pair >> 8, []).append(pair & 255)
    return out
