"""Does a folder of predictions hold what a server expects: every file, its size, its kind, its ids.

Files belong to images by the rule of ``segue.scoring.predictions``. Nothing is scored and no label is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.images import PNG, read_ids, read_rgb
from segue.errors import UserError
from segue.labels import IGNORE, U8, LabelSpace
from segue.scoring.predictions import find
from segue.scoring.reading import ahead

_COLOR_TYPES = {0: "grey", 2: "colours", 3: "a palette", 4: "grey with transparency", 6: "colours with transparency"}
SHOWN = 8


class Pictures(Dataset):
    """Image files as a data set without labels."""

    def __init__(self, images: Mapping[str, Path], space: LabelSpace) -> None:
        super().__init__("pictures", space, list(images), None)
        self._paths = list(images.values())

    def describe(self, index: int) -> str:
        """The image's file."""
        return str(self._paths[index])

    def _image(self, index: int) -> U8:
        return read_rgb(self._paths[index])


@dataclass(frozen=True)
class _Seen:
    path: Path
    fault: str
    values: frozenset[int] = frozenset()


def check(
    folder: Path,
    expected: Dataset,
    space: LabelSpace,
    *,
    encoding: str = "labelid",
    progress: Callable[[int, int], object] | None = None,
) -> list[str]:
    """Faults of the predictions below ``folder`` for the images of ``expected``, one sentence each.

    ``encoding``: ``labelid``, or ``trainid`` where a server wants those. ``UserError`` when there is no such folder,
    and when a file could belong to several images or an image has several files.
    """
    found, extra = find(folder, expected)
    faults = [f"no prediction for {expected.describe(i)}" for i in range(len(expected)) if i not in found]
    others = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".png"]
    faults += [f"{folder / name} belongs to no image" for name in extra]
    faults += [f"{path} is no PNG file of a prediction" for path in others]
    seen: list[_Seen] = []
    for done, item in enumerate(ahead(lambda i: _look(found[i], expected, i), sorted(found)), 1):
        seen.append(item)
        if progress is not None:
            progress(done, len(found))
    faults += [item.fault for item in seen if item.fault]
    return faults + _wrong_ids([item for item in seen if not item.fault], space, encoding)


def _look(path: Path, expected: Dataset, index: int) -> _Seen:
    try:
        if kind := _kind(path):
            return _Seen(path, f"{path} holds {kind}, not the ids of one 8-bit channel")
        ids = read_ids(path)
        height, width = expected.read_image(index).shape[:2]
    except DataError as error:
        return _Seen(path, str(error))
    if ids.shape != (height, width):
        return _Seen(path, f"{path} is {ids.shape[1]}x{ids.shape[0]} pixels, the image {width}x{height}")
    return _Seen(path, "", frozenset(np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist()))


def _kind(path: Path) -> str:
    """What a PNG holds instead of 8-bit numbers, "" when it does hold these."""
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(PNG) or len(head) < 26:
        return ""  # the reader has the better word for it
    bits, color = head[24], _COLOR_TYPES.get(head[25], "an unknown kind of colours")
    if color in ("grey", "a palette"):
        return "" if bits == 8 else f"{bits}-bit numbers"
    return color


def _wrong_ids(seen: list[_Seen], space: LabelSpace, encoding: str) -> list[str]:
    train = {*range(len(space)), IGNORE}
    label = set(space.to_label_ids(np.array([[*range(len(space)), IGNORE]], np.uint8)).ravel().tolist())
    wanted, other = (train, label) if encoding == "trainid" else (label, train)
    wrong = [item for item in seen if not item.values <= wanted]
    if wrong and all(item.values <= other for item in seen):
        if encoding == "trainid":
            return [f"the files hold label ids, train ids are wanted (for example {_shown(wrong[0], wanted)})"]
        return [
            f"these are train ids, the server wants label ids (for example {_shown(wrong[0], wanted)}): predict again "
            f"with --format cityscapes or labelid"
        ]
    return [f"{_shown(item, wanted)}: no {encoding} of {space.name!r}" for item in wrong]


def _shown(item: _Seen, wanted: set[int]) -> str:
    values = sorted(item.values - wanted)
    return f"{item.path} holds {', '.join(map(str, values[:SHOWN]))}{', …' if len(values) > SHOWN else ''}"


def require(faults: list[str], folder: Path) -> None:
    """``UserError`` that names every fault."""
    if faults:
        told = f"{len(faults)} faults in {folder}" if len(faults) > 1 else f"a fault in {folder}"
        raise UserError("\n".join([told, *faults]))
