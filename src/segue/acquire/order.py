"""Orders of rows: best first, and groups in turn. Ties always go to the earlier row: image, then region."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from segue.acquire.table import I64


def best_first(score: npt.NDArray[np.floating], expected: int) -> Iterator[int]:
    """Rows by falling score (N,), equal ones by row; only about ``expected`` of them are sorted at once."""
    rest = np.arange(len(score))
    if 0 < expected < len(score) // 4:
        bound = np.partition(score, len(score) - expected)[len(score) - expected]
        yield from _falling(score, np.flatnonzero(score >= bound))
        rest = np.flatnonzero(score < bound)
    yield from _falling(score, rest)


def places(group: npt.NDArray[np.integer], key: npt.NDArray[np.floating]) -> I64:
    """(N,) place 0, 1, … of each row within its group, by rising ``key``, equal ones by row."""
    order = np.lexsort((key, group))
    sorted_group = group[order]
    start = np.maximum.accumulate(np.where(np.diff(sorted_group, prepend=-1) != 0, np.arange(len(order)), 0))
    out = np.empty(len(order), np.int64)
    out[order] = np.arange(len(order)) - start
    return out


def round_robin(group: npt.NDArray[np.integer], place: I64, weight: npt.NDArray[np.floating]) -> I64:
    """All rows, group after group in turn, each giving its next ``weight[group]`` rows by ``place``.

    ``group`` holds 0 … G-1, ``weight`` (G,) is cut to whole numbers; any below 1 and NaN count as 1, so every turn
    takes something from every group that has rows and the order ends. (Zero never ended in the published code.)
    """
    most = max(len(group), 1)
    take = np.clip(np.nan_to_num(weight, nan=1, posinf=most, neginf=1), 1, most).astype(np.int64)
    return np.lexsort((place, group, place // take[group]))


def _falling(score: npt.NDArray[np.floating], rows: I64) -> Iterator[int]:
    yield from rows[np.argsort(-score[rows], kind="stable")].tolist()
