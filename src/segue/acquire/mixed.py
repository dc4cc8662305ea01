"""Several acquisitions share a round: each buys its part of the budget, a region that two want is bought once.

Wu et al., D2ADA, ECCV 2022: in round n = 1, 2, … density has the share λ_n = α 2^(-β (n-1)), uncertainty the
rest, so 1, 1/2, 1/4, 1/8, 1/16 by default. (The published code counts n from 0: twice the budget in its first round, a
negative rest.) λ_n is held within 0 … 1. A member without a share is not asked, unless all others have run out.

The parts are measured on one running sum: what one member buys too much, the next has less, so a round goes over its
budget by one region at most, however many members there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig, build_acquisition
from segue.acquire.table import RegionTable
from segue.settings import Settings


class HalfDecay(Settings):
    """Share of the first of two members by round."""

    alpha: float = Field(1.0, ge=0)
    """Share in the first round (paper: 1)."""
    beta: float = 1.0
    """Halvings a round (paper: 1); 0 keeps the share."""

    def shares(self, round_number: int) -> tuple[float, ...]:
        """λ_n and the rest; ``round_number`` counts from 1."""
        share = min(self.alpha * 2.0 ** (-self.beta * (round_number - 1)), 1.0)
        return share, 1 - share


class MixedConfig(AcquisitionConfig):
    """Settings of ``mixed``; the defaults are D2ADA."""

    members: tuple[dict[str, Any], ...] = ({"name": "density"}, {"name": "entropy"})
    """Settings of each acquisition."""
    shares: HalfDecay | tuple[tuple[float, ...], ...] = HalfDecay()
    """Half-decay of two members, or a list a round of one share a member; later rounds are as the last."""

    @model_validator(mode="after")
    def _fits(self) -> MixedConfig:
        rounds = [self.shares.shares(1)] if isinstance(self.shares, HalfDecay) else self.shares
        if not rounds or any(len(r) != len(self.members) for r in rounds):
            raise ValueError(
                f"mixed: shares must name one share for each of the {len(self.members)} members (half-decay: 2)"
            )
        if any(min(r) < 0 or abs(sum(r) - 1) > 1e-6 for r in rounds):
            raise ValueError("mixed: the shares of a round are not negative and add up to 1")
        return self


@ACQUISITIONS.register("mixed")
class Mixed(Acquisition):
    """Each member's part, in turn."""

    Config = MixedConfig
    config: MixedConfig

    def __init__(self, config: MixedConfig, round_number: int = 1) -> None:
        super().__init__(config, round_number)
        self.members = [
            build_acquisition(block, round_number, f"members.{k}") for k, block in enumerate(config.members)
        ]
        shares = config.shares
        of_round = shares.shares if isinstance(shares, HalfDecay) else lambda n: shares[min(n, len(shares)) - 1]
        self.shares: tuple[float, ...] = of_round(round_number)
        asked = [m for m, share in zip(self.members, self.shares, strict=True) if share > 0]
        self.needs = tuple(dict.fromkeys(name for m in asked for name in m.needs))
        self.reads = tuple(dict.fromkeys(name for m in asked for name in m.reads))

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """Members by their shares, then what is left of each in the same order."""
        due = np.cumsum(self.shares) * budget_px
        due[-1] = budget_px
        asked = [(m, s, d) for m, s, d in zip(self.members, self.shares, due, strict=True) if s > 0]
        orders = [
            m.rank(pool, labelled, source, round(s * budget_px), child)
            for (m, s, _), child in zip(asked, rng.spawn(len(asked)), strict=True)
        ]
        cost_px, spent_px, bought = pool.cost_px, 0, np.zeros(len(pool), bool)
        for order, limit in [*zip(orders, (d for _, _, d in asked), strict=True), *((o, np.inf) for o in orders)]:
            while spent_px < limit and (row := next(order, None)) is not None:
                if not bought[row]:
                    bought[row] = True
                    spent_px += int(cost_px[row])
                    yield row
