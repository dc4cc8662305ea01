"""Buying along an order until the budget is spent.

The pixels of a round are those that a person labels: area without ignored pixels, which are counted apart (to count as
the published code does, leave ``ignored_px`` of the table at 0). The walk ends with the region that reaches the budget:
a round is over it by less than one region in total, and takes nothing for a budget of 0 or less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from segue.acquire.base import AcquisitionError
from segue.acquire.table import I64, RegionTable


@dataclass(frozen=True, eq=False)
class Purchase:
    """What one round buys."""

    rows: I64
    """Rows of the pool in the order of buying."""
    budget_px: int
    labelled_px: int
    ignored_px: int

    @property
    def missing_px(self) -> int:
        """What the budget would still have paid when the order ended."""
        return max(self.budget_px - self.labelled_px, 0)

    def records(self, pool: RegionTable) -> list[dict[str, Any]]:
        """One plain dictionary a region, in order, with the image's relative id: what a round's file holds."""
        return [
            {
                "image": pool.images[pool.image[row]],
                "region": int(pool.region[row]),
                "area_px": int(pool.area_px[row]),
                "ignored_px": int(pool.ignored_px[row]),
                "predicted": int(pool.predicted[row]),
            }
            for row in self.rows
        ]


def walk(order: Iterable[int], pool: RegionTable, budget_px: int) -> Purchase:
    """Buy rows of ``pool`` in that order; ``AcquisitionError`` for a row that does not exist or comes twice."""
    cost_px, bought, rows, spent_px = pool.cost_px, np.zeros(len(pool), bool), [], 0
    for row in order if budget_px > 0 else ():
        if not 0 <= row < len(pool) or bought[row]:
            what = "a second time" if 0 <= row < len(pool) else f"of a pool of {len(pool)}"
            raise AcquisitionError(
                f"the acquisition wants row {row} {what}: its rank() must name every row at most once"
            )
        bought[row] = True
        rows.append(row)
        spent_px += int(cost_px[row])
        if spent_px >= budget_px:
            break
    chosen = np.array(rows, np.int64)
    return Purchase(chosen, budget_px, spent_px, int(pool.ignored_px[chosen].sum()))
