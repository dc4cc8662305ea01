"""Boundary IoU against masks eroded one by one (scipy), class by class and image by image."""

from __future__ import annotations

import numpy as np
import pytest

from segue.labels import IGNORE
from segue.scoring.boundary import RATIO, Boundary, contour, to_dict

ndimage = pytest.importorskip("scipy.ndimage")
NAMES = tuple("abcde")


def _blobs(rng: np.random.Generator, size: tuple[int, int], ids: list[int]) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal((len(ids), *size)), (0, 4, 4))
    return np.array(ids, np.uint8)[noise.argmax(0)]


def _edge(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask's pixels that ``distance`` erosions by 3x3 take away; outside the image there is no mask."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def _expected(images: list[tuple[np.ndarray, np.ndarray]], ratio: float) -> tuple[np.ndarray, np.ndarray]:
    both, either = np.zeros(5), np.zeros(5)
    for label, prediction in images:
        distance = max(1, round(ratio * np.sqrt(label.shape[0] ** 2 + label.shape[1] ** 2)))
        for c in range(5):
            truth, guess = (_edge(m, distance) for m in (label == c, (prediction == c) & (label != IGNORE)))
            both[c] += (truth & guess).sum()
            either[c] += (truth | guess).sum()
    return both, either


@pytest.mark.parametrize("ratio", [RATIO, 0.05, 1e-6])
def test_boundary_iou_equals_eroded_masks(ratio: float) -> None:
    rng = np.random.default_rng(0)
    images = []
    for size in ((60, 90), (81, 50), (64, 64)):
        label = _blobs(rng, size, [0, 1, 2, 3, IGNORE])
        prediction = np.where(rng.random(size) < 0.02, 4, np.roll(label, 2, 1)).astype(np.uint8)
        prediction[prediction == IGNORE] = 1
        images.append((label, prediction))
    images[2][1][:20] = 200  # an id that is no class
    found = Boundary(5, ratio)
    for label, prediction in images:
        found.add(label, prediction)
    both, either = _expected(images, ratio)
    assert np.array_equal(found.right, both)
    assert found.iou() == pytest.approx(both / either)


def test_a_class_that_is_nowhere_is_absent() -> None:
    found = Boundary(5)
    label = np.zeros((30, 40), np.uint8)
    label[:, 20:] = 1
    found.add(label, label)
    told = to_dict(found, {"a": 1.0, "b": 0.5, "c": float("nan")}, NAMES)
    assert told["iou"]["a"] == told["iou"]["b"] == 1.0 and np.isnan(told["iou"]["c"])
    assert told["mean"] == 1.0 and told["mean_smaller"] == 0.75


def test_the_inside_does_not_count_and_the_border_of_the_image_does() -> None:
    label = np.zeros((100, 100), np.uint8)
    distance = round(RATIO * np.hypot(100, 100))
    edge = contour(label, distance)
    assert (edge[distance:-distance, distance:-distance] == IGNORE).all()
    assert (edge == 0).sum() == 100 * 100 - (100 - 2 * distance) ** 2
    prediction = label.copy()
    prediction[40:60, 40:60] = 1
    found = Boundary(5)
    found.add(label, prediction)
    assert found.right[0] == (edge == 0).sum(), "the hole's edge is the prediction's alone"
