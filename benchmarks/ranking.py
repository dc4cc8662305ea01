"""How much faster a round's regions are ranked and bought from a table of columns than from lists of tuples.

``python benchmarks/ranking.py``: 2,975 images of 40 regions (119,000), one score each; 29 images' worth of pixels
buys about 1,160 of them. One thread, CPU time, in turns. Both sides begin with the scores of all regions and the
areas of all regions, and end with the chosen ones moved from pool to labelled.

The other side does what D2ADA's published code does from there on: a list of (score, "image,label,superpixel",
region), sorted falling; for each region its paths are split, it is counted, put into the labelled lists and taken
from the pool's, an image without regions leaves the list of images. Left out in its favour: one decoded PNG for every
chosen region, which is how the published code finds the area, and the JSON file of all scores. It writes
docs/results/ranking.json.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
from common import cpu, paired, record, verdict

from segue.acquire import RegionTable, build_acquisition, walk

BAR = 20.0
IMAGES, REGIONS, BUDGET_PX = 2975, 40, 29 * 1024 * 2048


class Round:
    """What both sides start from; copies that one side would spoil are made off the clock."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        rows, self.spent = IMAGES * REGIONS, 0.0
        names = [f"train/city{k // 150:02d}/city{k // 150:02d}_{k % 150:06d}_000019" for k in range(IMAGES)]
        area = rng.integers(26_000, 78_000, rows)
        self.pool = RegionTable.build(
            [f"{name}_leftImg8bit.png" for name in names],
            19,
            image=np.repeat(np.arange(IMAGES), REGIONS),
            region=np.tile(np.arange(REGIONS), IMAGES),
            area_px=area,
            predicted=rng.integers(0, 19, rows),
            statistics={"entropy": rng.gamma(2, 0.05, rows)},
        )
        roots = (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"), ("superpixel", "superpixel"))
        self.paths = [[f"/data/Cityscapes/{a}/{name}_{b}.png" for a, b in roots] for name in names]
        self.scores = self.pool.statistic("entropy").reshape(IMAGES, REGIONS).tolist()
        self.areas = {p[2]: a for p, a in zip(self.paths, area.reshape(IMAGES, REGIONS).tolist(), strict=True)}

    def lists(self) -> tuple[Any, Any]:
        """A pool of the published form."""
        start = cpu()
        out = copy.deepcopy(self.paths), {p[2]: list(range(REGIONS)) for p in self.paths}
        self.spent += cpu() - start
        return out

    def clock(self) -> float:
        """CPU-seconds without those of the copies."""
        return cpu() - self.spent


def by_lists(start: Round) -> list[tuple[float, str, int]]:
    """The published form; what was bought."""
    pool_images, pool_regions = start.lists()
    labelled_images: list[list[str]] = []
    labelled_regions: dict[str, list[int]] = {}
    ranked = [
        (score, ",".join(paths), region)
        for paths, row in zip(start.paths, start.scores, strict=True)
        for region, score in enumerate(row)
        if region in pool_regions[paths[2]]
    ]
    ranked.sort(reverse=True)
    total_px, bought = 0, []
    for score, joined, region in ranked:
        paths = joined.split(",")
        total_px += start.areas[paths[2]][region]
        if paths[2] not in labelled_regions:
            labelled_images.append(paths)
            labelled_regions[paths[2]] = []
        labelled_regions[paths[2]].append(region)
        pool_regions[paths[2]].remove(region)
        if not pool_regions[paths[2]]:
            pool_regions.pop(paths[2])
            pool_images.remove(paths)
        bought.append((score, joined, region))
        if total_px > BUDGET_PX:
            break
    return bought


def by_columns(start: Round) -> np.ndarray:
    """Ours; rows of the pool."""
    pool = start.pool
    nothing = pool.take([])
    order = build_acquisition({"name": "entropy"}).rank(pool, nothing, nothing, BUDGET_PX, np.random.default_rng(0))
    bought = walk(order, pool, BUDGET_PX)
    bought.records(pool)
    mask = np.zeros(len(pool), bool)
    mask[bought.rows] = True
    pool.take(mask), pool.take(~mask)
    return bought.rows


def same(lists: list[tuple[float, str, int]], rows: np.ndarray, start: Round) -> bool:
    """Whether both bought the same, apart from regions of equal score at the end, where their ties go other ways."""
    scores = [start.scores[row // REGIONS][row % REGIONS] for row in rows]
    last = max(lists[-1][0], scores[-1])
    ours = {(s, ",".join(start.paths[r // REGIONS]), r % REGIONS) for s, r in zip(scores, rows.tolist(), strict=True)}
    return {x for x in lists if x[0] > last} == {x for x in ours if x[0] > last}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    start = Round()
    a, b = by_lists(start), by_columns(start)
    equal = same(a, b, start)
    row = {
        "against": "lists of tuples, areas known",
        "bar": BAR,
        "regions": len(start.pool),
        "bought": [len(a), len(b)],
        "same_regions": equal,
        **paired(lambda: by_lists(start), lambda: by_columns(start), pairs, start.clock),
    }
    row["verdict"] = verdict(row, BAR, at_most=False)
    print(row)
    record("ranking", BAR, [row], budget_px=BUDGET_PX)
    return 0 if equal and row["verdict"] == "holds" else 1


if __name__ == "__main__":
    raise SystemExit(main())
