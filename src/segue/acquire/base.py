"""What an acquisition is: the order in which regions of the pool are bought.

The shortest one is a score in ten lines (``entropy.py``); whatever looks at more than one row overrides ``rank``. It
yields row after row and is asked for no more than the budget pays, so that a greedy method does no needless work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ValidationError

from segue.acquire.order import best_first
from segue.acquire.table import F32, RegionTable
from segue.errors import UserError
from segue.registry import Registry
from segue.settings import Settings, explain


class AcquisitionError(UserError):
    """An acquisition gave no usable order."""


class AcquisitionConfig(Settings):
    """Base of the settings of an acquisition."""

    name: str


class Acquisition:
    """Base of all acquisitions; ``round_number`` counts from 1."""

    Config: ClassVar[type[AcquisitionConfig]] = AcquisitionConfig
    needs: tuple[str, ...] = ()
    """Statistics that it reads."""
    reads: tuple[str, ...] = ("pool",)
    """Tables that it reads, of pool, labelled and source: a source that no one reads need not be computed."""
    partition: Literal["superpixels", "image", "windows"] = "superpixels"
    """Regions that it was published for; it ranks any."""

    def __init__(self, config: AcquisitionConfig, round_number: int = 1) -> None:
        self.config = config
        self.round_number = round_number

    def score(self, pool: RegionTable) -> F32:
        """(N,) how much each region is wanted, higher first."""
        raise NotImplementedError(f"{type(self).__name__} has neither a score nor an order of its own")

    def rank(
        self,
        pool: RegionTable,
        labelled: RegionTable,
        source: RegionTable,
        budget_px: int,
        rng: np.random.Generator,
    ) -> Iterator[int]:
        """Rows of ``pool`` in the order to buy, each once; all of them if asked for. ``budget_px`` is only a hint."""
        score = self.score(pool)
        wrong = np.flatnonzero(np.isnan(score))
        if len(wrong):
            at = f"image {pool.images[pool.image[wrong[0]]]!r}, region {pool.region[wrong[0]]}"
            raise AcquisitionError(
                f"acquisition {self.config.name!r} has no score for {len(wrong)} of {len(pool)} regions (first: {at}):"
                " compute the table of regions again"
            )
        return best_first(score, 2 * regions_for(pool, budget_px))


ACQUISITIONS: Registry[Acquisition] = Registry("acquisition", "segue.acquire")


def regions_for(pool: RegionTable, budget_px: int) -> int:
    """About how many regions a budget buys, 0 … N."""
    total_px = int(pool.cost_px.sum())
    return 0 if not total_px else min(len(pool), math.ceil(max(budget_px, 0) * len(pool) / total_px))


def build_acquisition(config: Mapping[str, Any], round_number: int = 1, where: str = "acquisition") -> Acquisition:
    """The acquisition that a block of settings describes, for one round; ``UserError`` lists every fault."""
    if "name" not in config:
        raise UserError(f"{where} needs a name (known: {', '.join(ACQUISITIONS.names())})")
    cls = ACQUISITIONS.get(str(config["name"]))
    try:
        return cls(cls.Config.model_validate(dict(config)), round_number)
    except ValidationError as error:
        raise UserError("\n".join(explain(error, cls.Config, where))) from error
