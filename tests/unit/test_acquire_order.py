"""Orders and budgets: ties, turns that always end, one region over at most, shares of a round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.region_tables import table
from segue.acquire import ACQUISITIONS, Acquisition, AcquisitionError, RegionTable, build_acquisition, walk
from segue.acquire.density import class_weights
from segue.acquire.mixed import HalfDecay
from segue.acquire.order import best_first, places, round_robin
from segue.errors import UserError

EMPTY = table(4).take([])
ODD = [0.0, -1.0, -np.inf, np.inf, np.nan, 0.3, 1.0, 2.9, 1e300, -0.0]


@given(
    st.lists(st.integers(0, 4), max_size=40),
    st.lists(st.sampled_from(ODD) | st.floats(), min_size=5, max_size=5),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_turns_end_for_every_weight(groups: list[int], weights: list[float], random: Any) -> None:
    """Against a loop over lists, with weights made safe one by one."""
    group = np.array(groups, np.int64)
    key = np.array([random.random() for _ in groups])
    safe = [1 if np.isnan(w) or w < 1 else len(groups) if w > len(groups) else int(w) for w in weights]
    lists = [sorted(np.flatnonzero(group == g).tolist(), key=lambda row: key[row]) for g in range(5)]
    expected: list[int] = []
    while any(lists):
        for g in range(5):
            expected += lists[g][: safe[g]]
            lists[g] = lists[g][safe[g] :]
    assert round_robin(group, places(group, key), np.array(weights)).tolist() == expected


def test_class_weights_are_digits_and_never_below_one() -> None:
    kl = np.array([5000, 100, 99.9, 9, 0.5, 0, -300, np.nan])
    assert class_weights(kl).tolist() == [3, 2, 1, 1, 1, 1, 1, 1]


@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_best_first_is_one_sort_however_much_is_expected(scores: list[int], expected: int) -> None:
    found = list(best_first(np.array(scores, np.float32), expected))
    assert found == sorted(range(len(scores)), key=lambda row: (-scores[row], row))


def test_rows_are_asked_for_one_by_one() -> None:
    def order() -> Any:
        yield from (3, 1)
        raise AssertionError("asked for more than the budget pays")

    pool = table(10, seed=1)
    cost = pool.cost_px
    bought = walk(order(), pool, int(cost[3]) + 1)
    assert bought.rows.tolist() == [3, 1]
    assert (bought.labelled_px, bought.ignored_px) == (cost[3] + cost[1], pool.ignored_px[[3, 1]].sum())
    assert bought.missing_px == 0
    assert bought.records(pool)[0] == {
        "image": pool.images[pool.image[3]],
        "region": pool.region[3],
        "area_px": pool.area_px[3],
        "ignored_px": pool.ignored_px[3],
        "predicted": pool.predicted[3],
    }


def test_a_budget_that_is_met_exactly_buys_no_more() -> None:
    pool = table(10)
    assert walk(range(10), pool, int(pool.cost_px[:3].sum())).rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("budget_px", [0, -5])
def test_no_budget_buys_nothing_and_asks_nothing(budget_px: int) -> None:
    bought = walk(iter([99]), table(10), budget_px)
    assert (bought.rows.tolist(), bought.labelled_px, bought.missing_px) == ([], 0, 0)


def test_a_short_order_is_told() -> None:
    pool = table(10)
    assert walk([4], pool, 10_000).missing_px == 10_000 - pool.cost_px[4]


@pytest.mark.parametrize(("rows", "words"), [([1, 1], "row 1 a second time"), ([10], "row 10 of a pool of 10")])
def test_a_faulty_order_is_told(rows: list[int], words: str) -> None:
    with pytest.raises(AcquisitionError, match=words):
        walk(rows, table(10), 10_000)


def test_half_decay_of_the_paper() -> None:
    """Golden: 1, 1/2, 1/4, 1/8, 1/16 of the budget from round 1 on, never outside 0 … 1."""
    assert [HalfDecay().shares(n)[0] for n in range(1, 6)] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert [sum(HalfDecay(alpha=0.3, beta=0.7).shares(n)) for n in range(1, 6)] == [1] * 5
    assert [HalfDecay(alpha=2).shares(n)[0] for n in range(1, 4)] == [1, 1, 0.5]
    assert [HalfDecay(alpha=0.5, beta=-1).shares(n)[0] for n in range(1, 4)] == [0.5, 1, 1]


@pytest.mark.parametrize("round_number", range(1, 6))
def test_members_buy_their_parts_and_one_region_more_together(round_number: int) -> None:
    pool, budget_px = table(400), 9000
    mixed = build_acquisition({"name": "mixed"}, round_number)
    bought = walk(mixed.rank(pool, EMPTY, EMPTY, budget_px, np.random.default_rng(0)), pool, budget_px)
    cost = pool.cost_px
    assert 0 <= bought.labelled_px - budget_px < cost[bought.rows[-1]]
    density = list(build_acquisition({"name": "density"}).rank(pool, EMPTY, EMPTY, 1, np.random.default_rng(0)))
    first = walk(density, pool, int(budget_px / 2 ** (round_number - 1))).rows
    assert bought.rows[: len(first)].tolist() == first.tolist()
    rest = [row for row in np.argsort(-pool.statistic("entropy"), kind="stable") if row not in first]
    assert bought.rows[len(first) :].tolist() == rest[: len(bought.rows) - len(first)]


def test_five_rounds_stay_in_the_whole_budget() -> None:
    pool, budget_px, total = table(600), 5000, 0
    labelled = np.zeros(len(pool), bool)
    for n in range(1, 6):
        left = np.flatnonzero(~labelled)
        ranked = build_acquisition({"name": "mixed"}, n).rank(
            pool.take(left), pool.take(labelled), EMPTY, budget_px, np.random.default_rng(n)
        )
        bought = walk(ranked, pool.take(left), budget_px)
        assert not labelled[left[bought.rows]].any()
        labelled[left[bought.rows]] = True
        total += bought.labelled_px
    assert total == pool.cost_px[labelled].sum()
    assert 5 * budget_px <= total < 5 * (budget_px + pool.cost_px.max())


def test_a_member_without_a_share_needs_nothing() -> None:
    pool = table(60, entropy=None)
    mixed = build_acquisition({"name": "mixed"}, 1)
    assert mixed.needs == ("source_log_density", "target_log_density")
    assert len(list(mixed.rank(pool, EMPTY, EMPTY, 100, np.random.default_rng(0)))) == 60
    assert build_acquisition({"name": "mixed"}, 2).needs == ("source_log_density", "target_log_density", "entropy")


def test_shares_by_round_and_the_last_for_later_ones() -> None:
    block = {"name": "mixed", "members": [{"name": "core_set"}, {"name": "entropy"}], "shares": [[0.3, 0.7], [1, 0]]}
    assert [build_acquisition(block, n).shares for n in (1, 2, 3)] == [(0.3, 0.7), (1, 0), (1, 0)]  # type: ignore[attr-defined]
    assert build_acquisition(block, 3).reads == ("pool", "labelled", "source")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({}, "needs a name"),
        ({"name": "entropi"}, "did you mean 'entropy'"),
        ({"name": "clue", "temperatur": 2}, "temperature"),
        ({"name": "clue", "temperature": 0}, "acquisition.temperature"),
        ({"name": "mixed", "shares": [[0.5, 0.6]]}, "add up to 1"),
        ({"name": "mixed", "shares": [[1.0]]}, "one share for each of the 2 members"),
        ({"name": "mixed", "shares": []}, "one share for each"),
        ({"name": "mixed", "shares": {"alpha": -1}}, "alpha"),
        ({"name": "mixed", "members": [{"name": "densiti"}, {"name": "entropy"}]}, "density"),
        ({"name": "mixed", "members": [{}, {"name": "entropy"}]}, "members.0 needs a name"),
    ],
)
def test_faulty_settings_are_named(block: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_acquisition(block)


def test_a_score_that_is_not_a_number_is_told() -> None:
    class Broken(Acquisition):
        def score(self, pool: RegionTable) -> Any:
            return np.where(np.arange(len(pool)) == 2, np.nan, 0)

    pool = table(8)
    with pytest.raises(AcquisitionError, match=rf"'broken' has no score for 1 of 8 .*region {pool.region[2]}"):
        Broken(Acquisition.Config(name="broken")).rank(pool, EMPTY, EMPTY, 1, np.random.default_rng(0))


def test_the_named_acquisitions_are_there() -> None:
    issue = "random entropy margin confidence density aada_image aada_region redal badge clue core_set diversity"
    assert {*issue.split(), "ripu_region", "ripu_pixel", "mixed"} <= set(ACQUISITIONS.names())
