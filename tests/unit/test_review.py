"""What the review page holds of each region, and that nothing in it can act or reach a network."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.bought import answer, begin_run, buy, city, guess
from segue.acquire.state import VOID, Round, StateError
from segue.cli import annotate_review
from segue.data.dataset import Dataset
from segue.review import gather as gathering
from segue.review.gather import NO_LABEL, cutout_box, gather, outline
from segue.review.page import render

CELLS = [(0, 0), (1, 5), (0, 15), (2, 10)]


@pytest.fixture
def pool(scene_data: Path) -> Dataset:
    return city(scene_data)


@pytest.fixture
def one(tmp_path: Path, scene_data: Path, pool: Dataset) -> Round:
    return buy(begin_run(tmp_path / "run", scene_data), pool, 1, CELLS, scores=[0.5, None, 0.25, 0.75])


def opened(picture: tuple[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture[1])))


def test_regions_come_in_the_order_of_buying_with_their_cost(one: Round, pool: Dataset) -> None:
    album = gather(one, pool)
    assert [(r.order, r.image, r.part) for r in album.regions] == [
        (n, row.image, row.part) for n, row in enumerate(one.rows, 1)
    ]
    assert [r.px for r in album.regions] == [384 - row.ignored_px for row in one.rows]
    assert {r.answered for r in album.regions} == {NO_LABEL} and not any(r.complete for r in album.regions)
    assert list(album.images.values()) == [(64, 96)] * 3
    assert {n for n in album.pictures if n.startswith("image ")} == {f"image {i}" for i in one.by_image}


def test_answers_are_those_of_the_labels(one: Round, pool: Dataset) -> None:
    first = one.rows[0]
    answer(one, pool, but=[(first.image, first.part)])
    for region in gather(one, pool).regions[1:]:
        label = pool.read_label(pool.ids.index(region.image))[one.asked(region.image) == region.part]
        counts = np.bincount(np.where(label == 255, VOID, label), minlength=255)
        assert region.complete and region.answered == counts.argmax()
        assert region.answer_shares == [
            (int(c), pytest.approx(counts[c] / counts.sum(), abs=1e-3)) for c, _ in region.answer_shares
        ]
        assert len(region.answer_shares) == (counts > 0).sum()
    missing = gather(one, pool).regions[0]
    assert (missing.complete, missing.answered) == (False, NO_LABEL)


def test_a_map_is_kept_only_where_classes_differ(one: Round, pool: Dataset) -> None:
    row = one.rows[0]
    ids = np.full((64, 96), 3, np.uint8)
    guess(one, row.image, ids)
    assert gather(one, pool).regions[0].guess == ""
    ids[:16, :12] = 7  # half of the first cell
    guess(one, row.image, ids)
    album = gather(one, pool)
    region = album.regions[0]
    assert region.guess_shares == [(3, 0.5), (7, 0.5)]
    found = opened(album.pictures[region.guess]).convert("RGBA")
    left, top, width, height = region.box
    assert found.size == (width, height)
    colors = one.labels.colors
    assert found.getpixel((0 - left, 0 - top)) == (*colors[7], 255)
    assert found.getpixel((20 - left, 0 - top)) == (*colors[3], 255)
    assert found.getpixel((30 - left, 20 - top))[3] == 0  # not asked


def test_a_cut_out_shows_the_image_below_it(one: Round, pool: Dataset) -> None:
    album = gather(one, pool)
    for region in album.regions:
        left, top, width, height = region.box
        image = pool.read_sample(pool.ids.index(region.image), False).image[top : top + height, left : left + width]
        found = np.asarray(opened(album.pictures[region.cutout]), np.int32)
        assert found.shape == image.shape
        errors = [np.abs(found - np.roll(image, by, (0, 1))).mean() for by in ((0, 0), (3, 0), (0, 3))]
        assert errors[0] < 0.7 * min(errors[1:])  # JPEG's, far below those of another place


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 400), st.data())
def test_a_cut_out_lies_in_the_image_and_holds_its_region(height: int, width: int, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    x, y, w, h = cutout_box((left, top, right - left, bottom - top), (height, width))
    assert 0 <= x <= left and right <= x + w <= width
    assert 0 <= y <= top and bottom <= y + h <= height


def drawn(path: str, size: tuple[int, int], scale: int) -> np.ndarray:
    """The mask that an SVG path fills by the even-odd rule, each pixel of the file as ``scale`` of them."""
    rings = [
        np.array([[float(v) for v in p.split()] for p in ring.rstrip("Z").split("L")]) for ring in path.split("M")[1:]
    ]
    points = [np.round(ring * scale - 0.5).astype(np.int32) for ring in rings]
    canvas = np.zeros((size[0] * scale, size[1] * scale), np.uint8)
    cv2.fillPoly(canvas, points, 1)
    return canvas[scale // 2 :: scale, scale // 2 :: scale]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_an_outline_runs_round_its_region(seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = cv2.resize(rng.random((5, 6)).astype(np.float32), (60, 40), interpolation=cv2.INTER_CUBIC)
    mask = (field > 0.55).astype(np.uint8)
    if mask.any():
        found = drawn(outline(mask), mask.shape, 8)
        assert (found != mask).sum() <= 0.06 * mask.sum() + 3


def test_a_single_pixel_has_an_outline() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[3, 5] = 1
    assert drawn(outline(mask), (9, 9), 8).tolist() == mask.tolist()
    assert len(outline(np.ones((2000, 3000), np.uint8))) < 100


def test_pictures_shrink_until_they_fit(one: Round, pool: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "WHOLE_BYTES", 3 * 0.45 * 32 * 48)
    monkeypatch.setattr(gathering, "WHOLE_PX", (1, 10**6))
    album = gather(one, pool)
    assert opened(album.pictures[f"image {one.rows[0].image}"]).size == (48, 32)
    assert album.images[one.rows[0].image] == (64, 96)  # coordinates stay those of the file


def test_more_regions_than_a_page_takes_are_told(one: Round, pool: Dataset) -> None:
    album = gather(one, pool, most=3)
    assert [r.order for r in album.regions] == [1, 2, 3] and album.left_out == 1
    assert len(album.images) == 2
    assert "This page shows the first 3; 1 more" in re.sub(r"\s+", " ", render(one, album, "run"))


def test_what_does_not_fit_is_told(one: Round, pool: Dataset, scene_data: Path, tmp_path: Path) -> None:
    foreign = buy(tmp_path / "run", pool, 2, [(0, 0)])
    foreign.rows[0] = foreign.rows[0].model_copy(update={"part": 9})
    with pytest.raises(StateError, match="region 9 of image"):
        gather(foreign, pool)
    pool.ids[0] = "renamed"
    with pytest.raises(StateError, match="is not in data set 'city'"):
        gather(one, pool)


def test_text_cannot_act(one: Round, pool: Dataset) -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    one.info = one.info.model_copy(update={"group": bad, "model": bad})
    html = render(one, gather(one, pool), bad)
    assert "<img" not in html and html.count("</script>") == html.count("<script")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert data["marks"]["group"] == bad


def test_the_page_asks_no_network(one: Round, pool: Dataset) -> None:
    html = render(one, gather(one, pool), "run")
    assert re.findall(r"https?://[^\"' ]+", html) == ["http://www.w3.org/2000/svg"]  # a name, never fetched
    assert "default-src 'none'" in html
    assert "@import" not in html and "url(" not in html


def test_marks_of_another_choice_are_not_shown(one: Round, pool: Dataset, tmp_path: Path) -> None:
    def key(of: Round) -> str:
        return str(re.search(r'"key": "([^"]+)"', render(of, gather(of, pool), "run"))[1])  # type: ignore[index]

    again = buy(tmp_path / "again", pool, 1, CELLS, scores=[0.5, None, 0.25, 0.75])
    other = buy(tmp_path / "other", pool, 1, [(3, 3), *CELLS[1:]])
    assert key(one) == key(again) != key(other)


def test_the_command(one: Round, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    annotate_review.review(tmp_path / "run", out, most=3)
    told = capsys.readouterr().out
    assert told.startswith(f"{out}: 3 regions (1 more are left out: --most) of 2 images, ")
    assert "kB a region" in told and out.read_text().startswith("<!doctype html>")


def test_a_round_that_no_model_chose_has_no_prediction(one: Round, pool: Dataset) -> None:
    for rows in one.by_image.values():
        rows[:] = [row.model_copy(update={"predicted": 255}) for row in rows]
    album = gather(one, pool)
    assert {r.predicted for r in album.regions} == {NO_LABEL}
    assert '"-1": {"color"' in render(one, album, "run")
