"""Which label belongs to which image, and what its numbers mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.toys import SPACE
from segue.errors import UserError
from segue.labels import load_space
from segue.predict.truth import Truth

CITY = load_space("cityscapes19")


def _save(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def test_official_layout_beside_its_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "gtFine/val"
    for suffix, values in {"labelIds": [[7, 4, 33]], "color": [[1, 2, 3]], "instanceIds": [[26, 7, 0]]}.items():
        _save(folder / f"ulm/ulm_000000_000019_gtFine_{suffix}.png", values)
    name = "ulm/ulm_000000_000019_leftImg8bit"
    for prefix in ("", "val/", "leftImg8bit/val/"):
        assert np.array_equal(Truth(folder, [prefix + name], CITY).read(prefix + name), [[0, 255, 18]])
    _save(folder / "ulm/ulm_000000_000019_gtFine_labelTrainIds.png", [[1, 255, 2]])
    assert np.array_equal(Truth(folder, [name], CITY).read(name), [[1, 255, 2]])


def test_night_layout_and_images_without_label(tmp_path: Path) -> None:
    _save(tmp_path / "GP1/a_gt_labelTrainIds.png", [[5, 255]])
    truth = Truth(tmp_path, ["GP1/a_rgb_anon", "GP1/b_rgb_anon"], CITY)
    assert np.array_equal(truth.read("GP1/a_rgb_anon"), [[5, 255]])
    assert truth.without == ["GP1/b_rgb_anon"] and truth.read("GP1/b_rgb_anon") is None


def test_equal_names_mean_what_explains_all_files(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", [[7, 8]])
    _save(tmp_path / "b.png", [[13, 0]])  # of SPACE: label ids 7, 8, 11, 12, 13
    truth = Truth(tmp_path, ["in/a", "b"], SPACE)
    assert np.array_equal(truth.read("in/a"), [[0, 1]]) and np.array_equal(truth.read("b"), [[4, 255]])
    _save(tmp_path / "b.png", [[3, 0]])
    with pytest.raises(UserError, match=r"b\.png.*0, 3, 7, 8 are neither train ids nor label ids"):
        Truth(tmp_path, ["a", "b"], SPACE)
    for values, words in (([[7, 8]], ""), ([[2, 3]], ""), ([[255, 0]], "--encoding")):
        _save(tmp_path / "c/x.png", values)
        if words:
            with pytest.raises(UserError, match=words):
                Truth(tmp_path / "c", ["x"], SPACE)
            assert np.array_equal(Truth(tmp_path / "c", ["x"], SPACE, "trainid").read("x"), [[255, 0]])
            assert np.array_equal(Truth(tmp_path / "c", ["x"], SPACE, "labelid").read("x"), [[255, 255]])
        else:
            Truth(tmp_path / "c", ["x"], SPACE)


def test_label_ids_with_the_void_ids_of_their_data_set(tmp_path: Path) -> None:
    _save(tmp_path / "x.png", [[7, 4, 20, 33, 0]])
    assert np.array_equal(Truth(tmp_path, ["x"], CITY).read("x"), [[0, 255, 7, 18, 255]])


def test_the_label_file_of_one_image(tmp_path: Path) -> None:
    official, own = tmp_path / "ulm_000019_gtFine_labelIds.png", tmp_path / "gt_123.png"
    _save(official, [[7, 4, 33]])
    _save(own, [[0, 255, 18]])
    for path, encoding in ((official, ""), (own, "trainid")):
        truth = Truth(path, ["in/ulm_000019_leftImg8bit"], CITY, encoding)
        assert np.array_equal(truth.read("in/ulm_000019_leftImg8bit"), [[0, 255, 18]]) and not truth.without
    assert np.array_equal(Truth(official, ["other"], CITY, "labelid").read("other"), [[0, 255, 18]])
    with pytest.raises(UserError, match=r"gt_123\.png is the label of one image, not of 2"):
        Truth(own, ["a", "b"], CITY)


def test_what_cannot_be_matched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        Truth(tmp_path / "none", ["a"], SPACE)
    for folder in "xy":
        _save(tmp_path / folder / "a.png", [[0, 1]])
    with pytest.raises(UserError, match="could both be the label of a"):
        Truth(tmp_path, ["a"], SPACE)
    assert Truth(tmp_path, ["x/a", "y/a"], SPACE, "trainid").without == []
    with pytest.raises(UserError, match="no PNG below"):
        Truth(tmp_path, ["b"], SPACE)
    with pytest.raises(UserError, match="did you mean 'trainid'"):
        Truth(tmp_path, ["x/a"], SPACE, "trainids")
