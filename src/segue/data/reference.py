"""How a command names data: ``NAME[:SPLIT]``, where NAME is a catalog name, a folder, an archive or a python: class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segue.config import DatasetConfig
from segue.data.catalog import DatasetSpec
from segue.data.dataset import PYTHON, Dataset, describe_source, open_dataset
from segue.data.errors import DataError
from segue.labels import load_space

USUAL = ("train", "val", "test")
PYTHON_SPLIT = "train"
"""A python: class cannot say which splits it has; this one is opened when none is named."""


def parse(text: str) -> tuple[str, str]:
    """``NAME[:SPLIT]`` to its two parts, the split "" when there is none.

    Only the last colon can be the split's: ``python:module:Class:val``, ``/data/a:b/yard:val``; a path keeps its own.
    """
    name, colon, split = text.rpartition(":")
    whole = not split or "/" in split or "\\" in split or (text.startswith(PYTHON) and name.count(":") < 2)
    return (text, "") if not colon or whole or Path(text).expanduser().exists() else (name, split)


def open_splits(
    text: str,
    root: Path | None = None,
    labels: str | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Dataset]:
    """The splits of ``NAME[:SPLIT]`` that have images; ``DataError`` when none has, or the one that is named has none.

    ``labels``: label space to map to (default: the data set's own; a python: class must be given one). ``splits``:
    consider these alone where NAME names none. ``limit``: images of each split.
    """
    name, wanted = parse(text)
    settings = DatasetConfig(dataset=name, root=root, limit=limit)
    space = load_space(labels) if labels else None
    out: dict[str, Dataset] = {}
    faults: list[str] = []
    for split in [wanted] if wanted else splits or splits_of(name, root):
        try:
            out[split] = open_dataset(name, settings, split, space)
        except DataError as error:
            faults.append(str(error))
    if not out:
        raise DataError(faults[0])
    return out


def splits_of(name: str, root: Path | None) -> list[str]:
    """Names of the splits that a data set declares."""
    return [PYTHON_SPLIT] if name.startswith(PYTHON) else list(spec_of(name, root).splits)


def copied_splits(name: str, root: Path | None) -> list[str]:
    """What a copy holds when nobody says: those of train, val and test that there are, or all when there are none.

    Others are mostly parts and unions of these (GTA5's ``fit``, and ``all``, which has labels that do not fit).
    """
    declared = splits_of(parse(name)[0], root)
    return [split for split in declared if split in USUAL] or declared


def spec_of(name: str, root: Path | None) -> DatasetSpec:
    """The description of a data set with files."""
    return describe_source(name, DatasetConfig(root=root))[0]
