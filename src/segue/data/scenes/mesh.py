"""Gathering the surfaces of all things into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segue.data.scenes import trees
from segue.data.scenes.build import CORNERS, WIDTH, Thing

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]


@dataclass(eq=False)
class Mesh:
    """Surfaces of all things as arrays; `rows` in painting order, corners in an order of their own."""

    rows: F64
    panes: F32
    first: Index
    surface: Index
    counts: Index
    corners: F64


def gather(things: Sequence[Thing]) -> Mesh:
    """Gather the surfaces of `things`."""
    numbers, corners, discs, planted = bytearray(), bytearray(), bytearray(), bytearray()
    panes: list[tuple[float, ...]] = []
    starts, total, is_tree = [0], 0, [thing.tree is not None for thing in things]
    for thing in things:
        if thing.tree is not None:
            planted += thing.tree
        else:
            numbers += thing.numbers
            corners += thing.corners
            discs += thing.discs
            for pane in thing.panes:
                panes.append((total + pane[0], *pane[1:]))
        total += thing.count
        starts.append(total)
    first, grown = np.array(starts), np.array(is_tree)
    surface = np.flatnonzero(np.repeat(~grown, np.diff(first)))
    rows = np.empty((total, WIDTH))
    rows[surface] = np.frombuffer(numbers).reshape(-1, WIDTH)
    corner_counts = rows[surface, CORNERS].astype(np.intp)
    blocks, surfaces = [np.frombuffer(corners).reshape(-1, 3)], [surface[corner_counts > 0]]
    counts = [corner_counts[corner_counts > 0]]
    shapes: list[tuple[Index, F64]] = []
    if discs:
        shapes.append((surface[corner_counts == 0], trees.discs(np.frombuffer(discs).reshape(-1, 9))))
    if planted:
        own = np.frombuffer(planted).reshape(-1, trees.NUMBERS)
        shapes += trees.plant(own, first[:-1][grown], rows)
    for which, polygons in shapes:
        blocks.append(polygons.reshape(-1, 3))
        surfaces.append(which)
        counts.append(np.full(len(which), polygons.shape[1]))
    windows = np.zeros((total, 4), np.float32)
    if panes:
        table = np.array(panes)
        windows[table[:, 0].astype(np.intp)] = table[:, 1:]
    return Mesh(rows, windows, first, np.concatenate(surfaces), np.concatenate(counts), np.concatenate(blocks))
