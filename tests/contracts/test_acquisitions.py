"""What every registered acquisition must do; a new file in ``segue/acquire`` is picked up by itself."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.region_tables import table
from segue.acquire import ACQUISITIONS, RegionTable, TableError, build_acquisition, walk

pytestmark = pytest.mark.parametrize("name", ACQUISITIONS.names())


def order(
    name: str,
    pool: RegionTable,
    budget_px: int,
    tables: tuple[RegionTable, RegionTable] | None = None,
) -> list[int]:
    return list(lazily(name, pool, budget_px, tables))


def lazily(
    name: str, pool: RegionTable, budget_px: int, tables: tuple[RegionTable, RegionTable] | None = None
) -> Iterator[int]:
    labelled, source = tables or (table(12, 1), table(40, 2, prefix="game"))
    return build_acquisition({"name": name}).rank(pool, labelled, source, budget_px, np.random.default_rng(3))


@pytest.mark.parametrize("share", [0, 0.3, 5])
def test_every_row_comes_once_whatever_the_budget(name: str, share: float) -> None:
    pool = table(150)
    assert sorted(order(name, pool, int(share * pool.cost_px.sum()))) == list(range(150))


def test_only_the_generator_draws(name: str) -> None:
    pool = table(90)
    first = order(name, pool, 2000)
    np.random.seed(5)
    assert order(name, pool, 2000) == first


def test_one_region(name: str) -> None:
    assert order(name, table(1), 100) == [0]


def test_an_empty_pool_has_an_empty_order(name: str) -> None:
    assert order(name, table(4).take([]), 100) == []


def test_the_first_round_has_no_labels_and_may_have_no_source(name: str) -> None:
    pool = table(30)
    assert sorted(order(name, pool, 500, tables=(pool.take([]), pool.take([])))) == list(range(30))


def test_equal_regions(name: str) -> None:
    n, classes = 60, 5
    flat = dict.fromkeys(("entropy", "margin", "confidence", "impurity", "edge", "domain_prob"), np.full(n, 0.5))
    pool = table(
        n,
        **flat,
        embedding=np.ones((n, 8)),
        prob=np.full((n, classes), 1 / classes),
        source_log_density=np.zeros(n),
        target_log_density=np.zeros(n),
    )
    ranked = order(name, pool, 3000)
    assert sorted(ranked) == list(range(n))
    assert order(name, pool, 3000) == ranked


def test_extreme_statistics_leave_no_hole(name: str) -> None:
    pool = table(
        40,
        domain_prob=np.ones(40),
        prob=np.eye(5)[np.arange(40) % 5],
        embedding=np.full((40, 8), 60000.0),
        source_log_density=np.where(np.arange(40) % 3, -np.inf, np.nan),
        target_log_density=np.full(40, -1e6),
    )
    assert sorted(order(name, pool, 1000)) == list(range(40))


def test_stored_and_mapped_statistics_give_the_same_order(name: str, tmp_path: Path) -> None:
    pool = table(80)
    pool.save(tmp_path / "pool")
    assert order(name, RegionTable.load(tmp_path / "pool"), 2000) == order(name, pool, 2000)


def test_a_selection_is_ranked_as_a_table_of_its_own(name: str, tmp_path: Path) -> None:
    pool = table(80).take(np.arange(0, 80, 2))
    pool.save(tmp_path / "pool")
    assert order(name, RegionTable.load(tmp_path / "pool"), 2000) == order(name, pool, 2000)


@pytest.mark.parametrize("budget_px", [0, 1, 777, 3000, 10**9])
def test_a_round_is_over_its_budget_by_less_than_one_region(name: str, budget_px: int) -> None:
    pool = table(120)
    bought = walk(lazily(name, pool, budget_px), pool, budget_px)
    assert bought.labelled_px == pool.cost_px[bought.rows].sum()
    assert bought.labelled_px - (pool.cost_px[bought.rows[-1]] if len(bought.rows) else 0) < max(budget_px, 1)
    assert bought.labelled_px + bought.missing_px >= budget_px
    assert len(bought.rows) == 0 if budget_px == 0 else len(bought.rows) > 0


def test_it_reads_what_it_says(name: str) -> None:
    needs = build_acquisition({"name": name}).needs
    assert sorted(
        order(name, keep(table(30), needs), 500, tables=(keep(table(8, 1), needs), keep(table(20, 2), needs)))
    )
    for missing in needs:
        with pytest.raises(TableError, match=f"no statistic '{missing}'"):
            order(name, keep(table(30), tuple(set(needs) - {missing})), 500)


def test_it_reads_the_tables_that_it_says(name: str) -> None:
    reads = build_acquisition({"name": name}).reads
    bare = keep(table(10, 4), ())
    tables = [table(12, 1) if "labelled" in reads else bare, table(40, 2) if "source" in reads else bare]
    assert len(order(name, table(30), 500, tables=(tables[0], tables[1]))) == 30


def test_memory_grows_with_the_pool_and_not_with_its_square(name: str) -> None:
    pool, tables = table(6000, dims=16), (table(10, 1, dims=16), table(2000, 2, dims=16))
    budget_px = int(0.003 * pool.cost_px.sum())
    tracemalloc.start()
    bought = walk(lazily(name, pool, budget_px, tables), pool, budget_px)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bought.rows) > 5
    assert peak < 6000 * 6000 * 4 / 3


def keep(full: RegionTable, names: tuple[str, ...]) -> RegionTable:
    """The same regions with these statistics only."""
    keys = {n: getattr(full, n) for n in ("image", "region", "area_px", "ignored_px", "predicted")}
    return RegionTable.build(full.images, full.num_classes, **keys, statistics={n: full.statistic(n) for n in names})
