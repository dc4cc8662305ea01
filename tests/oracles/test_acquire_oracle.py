"""Acquisitions against their formulas, written out in float64 the slow way, and against scikit-learn and scipy."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import entropy as shannon
from sklearn.cluster import KMeans

from helpers.region_tables import table
from segue.acquire import RegionTable, Windows, build_acquisition
from segue.acquire.clusters import kmeans
from segue.acquire.ripu import window_maps
from segue.acquire.spread import distance_to

EMPTY = table(4).take([])


def ranked(
    name: str, pool: RegionTable, labelled: Any = EMPTY, source: Any = EMPTY, px: int = 1000, **more: Any
) -> Any:
    rng = np.random.default_rng(7)
    return list(build_acquisition({"name": name, **more}).rank(pool, labelled, source, px, rng))


def column(pool: RegionTable, name: str) -> np.ndarray:
    return pool.statistic(name).astype(np.float64)


def falling(score: np.ndarray) -> list[int]:
    return sorted(range(len(score)), key=lambda row: (-score[row], row))


PLAIN = {
    "entropy": lambda t: column(t, "entropy"),
    "margin": lambda t: -column(t, "margin"),
    "confidence": lambda t: -column(t, "confidence"),
    "aada_region": lambda t: column(t, "domain_prob"),
    "aada_image": lambda t: column(t, "domain_prob") / (1 - column(t, "domain_prob")) * column(t, "entropy"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_scores(name: str) -> None:
    pool = table(300)
    assert ranked(name, pool) == falling(PLAIN[name](pool))


def test_density_is_a_weighted_round_robin() -> None:
    """By popping lists, as a person would deal cards."""
    pool, labelled = table(400), table(40, 1)
    d, seen = column(pool, "source_log_density") - column(pool, "target_log_density"), pool.predicted
    both = np.concatenate([d, column(labelled, "source_log_density") - column(labelled, "target_log_density")])
    classes = np.concatenate([seen, labelled.predicted])
    weight = [max(1, int(np.log10(-both[classes == c].mean()))) for c in range(5)]
    assert max(weight) == 2
    lists = [sorted(np.flatnonzero(seen == c), key=lambda row: d[row]) for c in range(5)]
    expected = []
    for first in range(0, 400, 31):
        part = [rows[first : first + 31] for rows in lists]
        while any(part):
            for c in range(5):
                expected += part[c][: weight[c]]
                part[c] = part[c][weight[c] :]
    assert ranked("density", pool, labelled, best_per_class=31) == expected


def test_redal_lowers_what_its_cluster_has_already_given() -> None:
    """One point a cluster and many repeats: which cluster a region is in is known without k-means."""
    kinds = np.arange(60) % 4
    pool = table(60, embedding=np.eye(4, 8)[kinds] * 10)
    score = column(pool, "entropy") * np.log2(5) / 5 + 0.05 * column(pool, "edge")
    weights = np.ones(4)
    for row in falling(score):
        score[row] *= weights[kinds[row]]
        weights[kinds[row]] *= 0.95
    assert ranked("redal", pool, clusters=4) == falling(score)


def drawn(points: np.ndarray, number: int, nearest: np.ndarray | None = None) -> list[int]:
    """k-means++ on explicit points, with the same draws."""
    rng, rows = np.random.default_rng(7), []
    if nearest is None:
        rows.append(int((points**2).sum(1).argmax()))
        nearest = cdist(points, points[rows], "sqeuclidean").min(1)
    while len(rows) < number:
        shares = np.cumsum(nearest / nearest.sum())
        rows.append(int((shares <= rng.random()).sum()))
        nearest = np.minimum(nearest, cdist(points, points[rows[-1:]], "sqeuclidean")[:, 0])
    return rows


def test_badge_is_kmeans_plus_plus_on_the_whole_gradients() -> None:
    pool = table(250)
    p, z = column(pool, "prob"), column(pool, "embedding")
    gradients = ((p - np.eye(5)[p.argmax(1)])[:, :, None] * z[:, None]).reshape(250, -1)
    assert ranked("badge", pool)[:60] == drawn(gradients, 60)


def test_core_set_is_greedy_k_centre() -> None:
    pool, labelled, source = table(200), table(9, 1), table(50, 2)
    z = column(pool, "embedding")
    nearest = cdist(z, np.concatenate([column(labelled, "embedding"), column(source, "embedding")])).min(1)
    expected = []
    for _ in range(40):
        expected.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, cdist(z, z[expected[-1:]])[:, 0])
    assert ranked("core_set", pool, labelled, source)[:40] == expected


def test_diversity_draws_by_distance_to_what_is_known() -> None:
    pool, labelled = table(200), table(9, 1)
    nearest = cdist(column(pool, "embedding"), column(labelled, "embedding"), "sqeuclidean").min(1)
    expected = drawn(column(pool, "embedding"), 30, nearest)
    assert ranked("diversity", pool, labelled)[:30] == expected


def test_distances_in_blocks() -> None:
    points, others = table(3000, dims=4), table(5000, 1, dims=4)
    expected = cdist(column(points, "embedding"), column(others, "embedding"), "sqeuclidean").min(1)
    np.testing.assert_allclose(distance_to(points.statistic("embedding"), others), expected, atol=1e-5)
    assert np.isinf(distance_to(points.statistic("embedding"), others.take([]))).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_as_scikit_learn_does_it(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2500, 6)) + 4 * rng.integers(0, 3, (2500, 1))).astype(np.float32)
    weight = rng.random(2500).astype(np.float32) if weighted else None
    ours, distance = kmeans(x, x[:12], weight, iterations=100)
    theirs = KMeans(12, init=x[:12], n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(x, sample_weight=weight)
    assert (ours == theirs.labels_).mean() > 0.999
    exact = ((x - theirs.cluster_centers_[ours]) ** 2).sum(1)
    np.testing.assert_allclose(distance, exact, atol=1e-2)


def test_clue_takes_the_nearest_of_each_cluster_heavy_ones_first() -> None:
    """Three far groups whose centres and weights are known in closed form."""
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1, 2], [10, 30, 20]))
    pool = table(60, embedding=np.eye(3, 8)[kind] * 100 + rng.standard_normal((60, 8)))
    z, weight = column(pool, "embedding"), shannon(column(pool, "prob"), axis=1)
    mass = [weight[kind == k].sum() for k in range(3)]
    queues = []
    for k in sorted(range(3), key=lambda k: -mass[k]):
        rows = np.flatnonzero(kind == k)
        centre = np.average(z[rows], axis=0, weights=weight[rows])
        queues.append(sorted(rows, key=lambda row: ((z[row] - centre) ** 2).sum()))
    expected = [q[turn] for turn in range(30) for q in queues if turn < len(q)]
    three = int(3 * pool.cost_px.mean())
    assert ranked("clue", pool, px=three) == expected


def test_clue_heats_the_probabilities() -> None:
    pool = table(50)
    logits = np.log(column(pool, "prob").clip(1e-30)) / 3
    expected = shannon(np.exp(logits), axis=1)
    clue: Any = build_acquisition({"name": "clue", "temperature": 3})
    np.testing.assert_allclose(clue.weight(pool), expected, atol=1e-5)


def test_ripu_maps_by_counting_in_each_window() -> None:
    rng = np.random.default_rng(0)
    predicted, u = rng.integers(0, 4, (13, 17)).astype(np.uint8), rng.random((13, 17))
    impurity, uncertainty = window_maps(predicted, u, 4, 2)
    for y in range(13):
        for x in range(17):
            part = np.s_[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            counts = np.bincount(predicted[part].ravel(), minlength=4)
            assert impurity[y, x] == pytest.approx(shannon(counts) / np.log(4), abs=1e-6)
            assert uncertainty[y, x] == pytest.approx(u[part].mean(), abs=1e-6)


@pytest.mark.parametrize(("settings", "label"), [({}, 1), ({"radius_px": 3, "label_px": 0}, 0)])
def test_windows_by_argmax_after_argmax(settings: dict[str, int], label: int) -> None:
    rng = np.random.default_rng(1)
    score = rng.random((90, 80)).round(3)  # with ties
    windows = Windows(**settings)
    reach, expected, left = 2 * windows.radius_px, np.full((90, 80), -1), score.copy()
    while np.isfinite(left).any():
        y, x = divmod(int(left.argmax()), 80)
        expected[max(y - label, 0) : y + label + 1, max(x - label, 0) : x + label + 1] = y * 80 + x
        left[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = -np.inf
    assert (windows.regions((90, 80), score=score) == expected).all()


@pytest.mark.parametrize("name", ["ripu_region", "ripu_pixel"])
def test_ripu_gives_every_image_the_same_number(name: str) -> None:
    pool = table(200)
    score = column(pool, "impurity") * column(pool, "entropy")
    queues = [sorted(np.flatnonzero(pool.image == k), key=lambda row: -score[row]) for k in range(len(pool.images))]
    expected = [q[turn] for turn in range(max(map(len, queues))) for q in queues if turn < len(q)]
    assert ranked(name, pool) == expected
    assert ranked(name, pool, per_image=False) == falling(pool.statistic("impurity") * pool.statistic("entropy"))


def test_random_is_uniform() -> None:
    pool, rng, first = table(10), np.random.default_rng(0), []
    for _ in range(2000):
        first += islice(build_acquisition({"name": "random"}).rank(pool, EMPTY, EMPTY, 1, rng), 1)
    assert abs(np.bincount(first, minlength=10) - 200).max() < 60


def test_scarcity_counts_the_pixels_seen() -> None:
    pool, labelled, source = table(200), table(20, 1), table(60, 2)
    seen = np.zeros(5)
    for seen_table in (labelled, source):
        for c, area in zip(seen_table.predicted, seen_table.area_px, strict=True):
            seen[c] += area
    seen += np.mean([*labelled.area_px, *source.area_px])
    assert ranked("scarcity", pool, labelled, source) == falling(
        column(pool, "entropy") * -np.log(seen / seen.sum())[pool.predicted]
    )


def images(pool: RegionTable) -> tuple[list[int], np.ndarray]:
    """Images with rows, and their descriptors, region by region."""
    present = sorted(set(pool.image.tolist()))
    x = np.zeros((len(present), 5, 8))
    for row, z in enumerate(column(pool, "embedding")):
        x[present.index(pool.image[row]), pool.predicted[row]] += pool.area_px[row] * z
    flat = x.reshape(len(present), -1)
    return present, flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_one_shot_is_plain_greedy_facility_location() -> None:
    pool, labelled = table(160), table(12, 1)
    present, x = images(pool)
    hard = []
    for i in present:
        here = (pool.image == i) & (pool.predicted != 2)
        hard.append(np.average(column(pool, "entropy")[here], weights=pool.area_px[here]) if here.any() else 0)
    assert min(hard) == 0
    best, expected = np.maximum((x @ images(labelled)[1].T).max(1), 0), []
    while len(expected) < len(present):
        gains = np.array(hard) @ np.maximum(x @ x.T - best[:, None], 0)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        best = np.maximum(best, x @ x[expected[-1]])
    rows = ranked("one_shot", pool, labelled, easy_classes=[2])
    chosen = list(dict.fromkeys(present.index(pool.image[row]) for row in rows))
    assert chosen[:20] == expected[:20]
    assert rows == [row for k in chosen for row in np.flatnonzero(pool.image == present[k])]
