"""RUN, ``--group`` and ``--round`` of the ``segue annotate`` commands: which round of buying, and its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.config import DatasetConfig
from segue.labels import nearest
from segue.recipes import collect, read_yaml, validate

if TYPE_CHECKING:  # every command comes by here, and few need OpenCV
    from segue.acquire.state import Round
    from segue.data.dataset import Dataset

FOLDER = "annotate"
"""Below the run: a folder for each group, in it ``round_1``, ``round_2``, …"""

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
GroupName = Annotated[str, typer.Option("--group", help="Stage that buys, where the run has several.")]
RoundNumber = Annotated[int | None, typer.Option("--round", help="Number of the round; default the newest.")]


@dataclass(frozen=True)
class Group:
    """The rounds of one group, first to last, and the one that was asked for."""

    run: Path
    name: str
    rounds: list[Round]
    round: Round

    def source(self) -> tuple[str, DatasetConfig]:
        """Name and settings of the round's data set in the run's own recipe; ``StateError`` if it has none such."""
        from segue.acquire.state import StateError

        recipe = validate(collect(read_yaml(self.run / "config.yaml"), environment={})[0])
        name = self.round.info.data.partition(":")[0]
        if name not in recipe.data:
            raise StateError(f"{self.run / 'config.yaml'} has no data set {name!r}, whose regions were chosen")
        return name, recipe.data[name].model_copy(update={"size": None})

    def dataset(self) -> Dataset:
        """The images of the round, read at their files' resolution; ``DataError`` if they are gone."""
        from segue.data.dataset import open_dataset

        name, config = self.source()
        return open_dataset(name, config, self.round.info.split, self.round.labels)


def find_group(run: Path, group: str = "", number: int | None = None) -> Group:
    """Open the rounds of ``group`` ("": the only one) and pick one; ``StateError`` tells which there are."""
    from segue.acquire.state import StateError, rounds_of

    found = {p.name: rounds for p in sorted((run / FOLDER).glob("*")) if (rounds := rounds_of(p))}
    if not found:
        raise StateError(f"{run} is not the folder of a run that has chosen regions (nothing in {run / FOLDER})")
    if group and group not in found:
        raise StateError(f"{run} has no group {group!r}{nearest(group, list(found))}")
    if not group and len(found) > 1:
        raise StateError(f"{run} has several groups, {', '.join(found)}: choose one with --group")
    name = group or next(iter(found))
    rounds = found[name]
    numbers = [r.info.round for r in rounds]
    if number is not None and number not in numbers:
        raise StateError(f"group {name!r} of {run} has no round {number}, it has {', '.join(map(str, numbers))}")
    return Group(run, name, rounds, rounds[-1] if number is None else rounds[numbers.index(number)])
