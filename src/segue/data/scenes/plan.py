"""The plan of a street: numbered dice and the cross-section (metres) everything else is placed by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.data.scenes.domains import Domain

END = 330.0
"""Where the street ends, metres."""
Numbers = list[list[float]]


class Dice:
    """Random numbers in named streams, so that adding one thing never moves another."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def table(self, stream: int, rows: int, columns: int = 8) -> Numbers:
        """`rows` x `columns` numbers in 0..1 of one stream."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x5CE1E, self.seed, stream])))
        numbers: Numbers = rng.random((rows, columns)).tolist()
        return numbers


@dataclass
class Street:
    """Cross-section and the crossing of one street (metres)."""

    left: float
    right: float
    lane: float
    lanes: int
    walk: tuple[float, float]
    yard: tuple[float, float]
    green: tuple[bool, bool]
    parking: tuple[bool, bool]
    cross: tuple[float, float] | None

    def edge(self, s: float) -> float:
        """|x| of the kerb on side `s`."""
        return self.right if s > 0 else -self.left

    def front(self, s: float) -> float:
        """|x| where the sidewalk ends."""
        return self.edge(s) + self.walk[s > 0]

    def facade(self, s: float) -> float:
        """|x| of the building line."""
        return self.front(s) + self.yard[s > 0]

    def crossing(self, z0: float, z1: float) -> bool:
        """Whether `z0`..`z1` touches the cross street."""
        return self.cross is not None and z1 > self.cross[0] and z0 < self.cross[1]


def section(d: Domain, u: Sequence[float], v: Sequence[float]) -> Street:
    """The cross-section of the street: lanes, parking, sidewalks, yards."""
    lay = d.layout
    lane = lay.lane_m * (0.94 + 0.12 * u[0])
    lanes = 2 if u[1] < lay.second_lane_p else 1
    shift = (u[2] - 0.5) * 0.6
    parking = (lanes == 1 and v[5] < lay.parking_p, lanes == 1 and v[6] < lay.parking_p)
    right = lane * (lanes - 0.5) + (lay.parking_m if parking[1] else 0.35) + shift
    left = -lane * (lanes + 0.5) - (lay.parking_m if parking[0] else 0.35) + shift
    walk = (lay.sidewalk_m * (0.65 + 0.8 * u[3]), lay.sidewalk_m * (0.65 + 0.8 * u[4]))
    yard = (lay.yard_m * 2.6 * max(0.0, u[5] - 0.35), lay.yard_m * 2.6 * max(0.0, u[6] - 0.35))
    near = 12.0 + 45.0 * v[1] * v[1]
    cross = (near, near + 8.0 + 4.0 * v[2]) if v[0] < lay.cross_p else None
    return Street(left, right, lane, lanes, walk, yard, (v[3] < lay.green_p, v[4] < lay.green_p), parking, cross)
