"""Whole images for a single round: those that stand for many hard ones.

Facility location by lazy greedy steps (Minoux, 1978): chosen images S maximise sum over images i of difficulty_i times
max over S of similarity(i, S). An image is described by the mean embedding of each predicted class weighted by the
class's share, all classes side by side; similarity is the cosine, at least 0; difficulty the mean entropy outside
``easy_classes``. Labelled images count as chosen. An image's regions are bought together, in order of id.

Memory is images x classes x dimensions, and no images x images matrix: similarities are computed as they are asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig
from segue.acquire.table import F32, RegionTable

BLOCK = 512


class OneShotConfig(AcquisitionConfig):
    """Settings of ``one_shot``."""

    easy_classes: tuple[int, ...] = ()
    """Train ids whose entropy says nothing of an image's difficulty, such as sky."""


@ACQUISITIONS.register("one_shot")
class OneShot(Acquisition):
    """Images by what they add to the cover of the pool."""

    Config = OneShotConfig
    config: OneShotConfig
    needs = ("embedding", "entropy")
    reads = ("pool", "labelled")

    def rank(
        self, pool: RegionTable, labelled: RegionTable, source: RegionTable, budget_px: int, rng: np.random.Generator
    ) -> Iterator[int]:
        """All regions of one image after the other."""
        images, member = np.unique(pool.image, return_inverse=True)
        x, known = descriptors(pool), descriptors(labelled)
        covered = np.zeros(len(x), np.float32)
        for start in range(0, len(known), BLOCK):
            covered = np.maximum(covered, (x @ known[start : start + BLOCK].T).max(1))
        start_of = np.searchsorted(member, np.arange(len(images) + 1))
        for k in facilities(x, self.difficulty(pool, member), covered):
            yield from range(start_of[k], start_of[k + 1])

    def difficulty(self, pool: RegionTable, member: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> F32:
        """(I,) mean entropy of each image's pixels that are not of an easy class; 0 if all are."""
        area = np.where(np.isin(pool.predicted, self.config.easy_classes), 0, pool.area_px)
        total = np.bincount(member, area * pool.statistic("entropy"))
        return (total / np.maximum(np.bincount(member, area), 1)).astype(np.float32)


def descriptors(table: RegionTable) -> F32:
    """(I, C D) unit vectors of the images that have rows: mean embedding per predicted class, weighted by share."""
    images, member = np.unique(table.image, return_inverse=True)
    cell = member * table.num_classes + table.predicted
    cells = len(images) * table.num_classes
    z = table.statistic("embedding")
    sums = np.stack([np.bincount(cell, table.area_px * column, cells) for column in z.T], 1).astype(np.float32)
    flat = sums.reshape(len(images), table.num_classes * z.shape[1])
    unit: F32 = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit


def facilities(x: F32, difficulty: F32, covered: F32) -> Iterator[int]:
    """All rows of unit vectors ``x`` (I, K) by greedy gain; ``covered`` (I,): largest similarity to what is chosen."""
    gains = np.concatenate(
        [
            difficulty @ np.maximum(x @ x[start : start + BLOCK].T - covered[:, None], 0)
            for start in range(0, len(x), BLOCK)
        ]
        or [np.empty(0)]
    )
    heap = [(-float(gain), k) for k, gain in enumerate(gains)]
    heapq.heapify(heap)
    while heap:
        _, k = heapq.heappop(heap)
        similar = x @ x[k]
        now = (-float(difficulty @ np.maximum(similar - covered, 0)), k)
        if heap and now > heap[0]:  # gains only fall, so one that is still the best needs no other to be looked at
            heapq.heappush(heap, now)
            continue
        covered = np.maximum(covered, similar)
        yield k
