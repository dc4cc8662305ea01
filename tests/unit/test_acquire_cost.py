"""Clicks and minutes, and what can be bought in an image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from segue.acquire import CostModel, Superpixels, WholeImage, Windows, boundary_vertices, region_vertices
from segue.errors import UserError


def mask(size: int = 60) -> np.ndarray:
    return np.zeros((size, size), np.uint8)


def test_vertices_of_known_shapes() -> None:
    square, triangle = mask(), mask()
    square[10:50, 10:50] = 1
    cv2.fillPoly(triangle, [np.array([[5, 5], [55, 5], [30, 50]])], 1)
    assert boundary_vertices(square > 0) == 4
    assert boundary_vertices(triangle > 0) == 3
    square[25:35, 25:35] = 0
    assert boundary_vertices(square > 0) == 8
    square[0:4, 0:4] = 1
    assert boundary_vertices(square > 0) == 12
    assert boundary_vertices(mask() > 0) == 0


def test_what_is_smaller_than_the_tolerance_is_not_drawn() -> None:
    notched = mask()
    notched[10:50, 10:50] = 1
    notched[10:12, 20:40:4] = 0
    assert boundary_vertices(notched > 0) == 4
    assert boundary_vertices(notched > 0, tolerance_px=0.5) > 10


def test_vertices_of_a_map_are_those_of_its_masks() -> None:
    rng = np.random.default_rng(0)
    regions = cv2.resize(rng.integers(-1, 6, (8, 9)).astype(np.float32), (70, 50), interpolation=cv2.INTER_NEAREST)
    found = region_vertices(regions.astype(np.int32))
    assert set(found) == set(range(6))
    assert found == {k: boundary_vertices(regions == k) for k in range(6)}


def test_clicks_and_minutes() -> None:
    vertices = np.array([4, 11, 1, 0])
    assert CostModel().clicks(vertices).tolist() == [5, 12, 1, 1]
    assert CostModel().minutes(19, 4) == pytest.approx(19 * 2.4 / 60)
    assert CostModel(seconds_per_click=1, seconds_per_region=3).minutes(19, 4) == pytest.approx((19 + 12) / 60)


def test_superpixels_and_the_whole_image() -> None:
    spx = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert (Superpixels().regions((3, 4), superpixels=spx) == spx).all()
    assert (WholeImage().regions((3, 4)) == 0).all()
    for wrong in (None, spx.T):
        with pytest.raises(UserError, match="segue data regions"):
            Superpixels().regions((3, 4), superpixels=wrong)
    with pytest.raises(UserError, match="need a score"):
        Windows().regions((3, 4))


@pytest.mark.parametrize("windows", [Windows(radius_px=2), Windows(radius_px=4, label_px=0), Windows(suppress_px=0)])
def test_windows_never_overlap_and_keep_away_from_earlier_ones(windows: Windows) -> None:
    rng = np.random.default_rng(0)
    label = windows.radius_px if windows.label_px is None else windows.label_px
    score = rng.random((40, 50))
    first = windows.model_copy(update={"most": 5}).regions((40, 50), score=score)
    again = windows.regions((40, 50), score=score, labelled=first >= 0)
    assert len(np.unique(first)) == 6
    assert not ((first >= 0) & (again >= 0)).any()
    whole = windows.regions((40, 50), score=score)
    assert (np.where(first >= 0, first, again) == whole).all()  # two rounds choose what one would have chosen
    for centre in np.unique(whole[whole >= 0]):
        y, x = divmod(int(centre), 50)
        height, width = (min(c + label, n - 1) - max(c - label, 0) + 1 for c, n in ((y, 40), (x, 50)))
        assert (whole == centre).sum() == height * width


def test_equal_scores_go_in_reading_order() -> None:
    assert np.unique(Windows(most=3).regions((9, 30), score=np.zeros((9, 30)))).tolist() == [-1, 0, 3, 6]
