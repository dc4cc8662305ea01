"""The official Cityscapes evaluator on a generated submission, and on the rows of a scoring view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import segue
from helpers.stored import stage
from segue.labels import load_space
from segue.scoring.matrix import Confusion

cityscapes = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
SPACE = load_space("cityscapes19")


def _official(root: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    args = cityscapes.args
    settings = {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False, "predictionPath": str(predictions)}
    for key, value in {**settings, "predictionWalk": None, "evalPixelAccuracy": False}.items():
        monkeypatch.setattr(args, key, value)
    truth = sorted(map(str, root.glob("gtFine/val/*/*_gtFine_labelIds.png")))
    assert len(truth) == 6
    found: dict[str, Any] = cityscapes.evaluateImgLists([cityscapes.getPrediction(args, t) for t in truth], truth, args)
    return found


@pytest.mark.parametrize("flat", [False, True])
def test_a_submission_scores_as_evaluate(
    scene_data: Path, tmp_path: Path, flat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = scene_data / "city"
    predictor = segue.load(stage(tmp_path / "stage", 1), device="cpu")
    written = predictor.predict_folder(city / "leftImg8bit/val", tmp_path / "submission", format="labelid")
    if flat:
        for path in written:
            path.rename(tmp_path / "submission" / path.name)
    official = _official(city, tmp_path / "submission", monkeypatch)
    stored = segue.evaluate((), "cityscapes:val", root=city, predictions=tmp_path / "submission")
    direct = segue.evaluate(predictor, "cityscapes:val", root=city)
    assert stored["encoding"] == "labelid" and stored["protocol"] == "native"
    assert stored["confusion"] == direct["confusion"]
    names = {name: name.replace("_", " ") for name in SPACE.classes}
    ours = [np.nan if stored["iou"][name] is None else stored["iou"][name] for name in names]
    theirs = [official["classScores"][other] for other in names.values()]
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert stored["miou"] == pytest.approx(official["averageScoreClasses"], abs=1e-12)
    assert sum(value is not None and value > 0 for value in stored["iou"].values()) >= 2


@pytest.mark.parametrize("view", ["16", "13"])
def test_views_are_rows_of_the_official_matrix(view: str, tmp_path: Path) -> None:
    """Strict: the official matrix of all classes. Lenient: the other classes' pixels are void in the ground truth."""
    rng = np.random.default_rng(0)
    label = rng.choice([*range(19), 255], (80, 90)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.5, label, rng.integers(0, 19, label.shape)).astype(np.uint8)
    prediction[prediction == 255] = 0
    rows = list(SPACE.view(view))
    confusion = Confusion(19)
    confusion.add(label, prediction)
    void = np.where(np.isin(label, rows), label, 255).astype(np.uint8)
    for name, truth in ((view, label), (f"{view}-lenient", void)):
        expected = _scores(truth, prediction, tmp_path)
        found = confusion.scores(SPACE, name)
        assert list(found.iou.values()) == pytest.approx([expected[r] for r in rows], abs=1e-12)
        assert found.miou == pytest.approx(np.mean([expected[r] for r in rows]), abs=1e-12)
        assert found.accuracy == pytest.approx((truth == prediction)[np.isin(truth, rows)].mean(), abs=1e-12)
    assert confusion.scores(SPACE, f"{view}-lenient").miou > confusion.scores(SPACE, view).miou + 0.01


def _scores(label: np.ndarray, prediction: np.ndarray, folder: Path) -> list[float]:
    from types import SimpleNamespace

    paths = [folder / "truth.png", folder / "guess.png"]
    for path, ids in zip(paths, (label, prediction), strict=True):
        cv2.imwrite(str(path), SPACE.to_label_ids(ids))
    args = SimpleNamespace(**vars(cityscapes.args))
    args.evalInstLevelScore, args.evalPixelAccuracy = False, False
    matrix = cityscapes.generateMatrix(args)
    cityscapes.evaluatePair(str(paths[1]), str(paths[0]), matrix, {}, {}, args)
    return [cityscapes.getIouScoreForLabel(number, matrix, args) for number in SPACE.ids]


def test_view_of_16_is_19_over_16_when_three_classes_score_zero(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 19, (60, 60)).astype(np.uint8)
    prediction = rng.integers(0, 19, (60, 60)).astype(np.uint8)
    prediction[np.isin(prediction, [9, 14, 16])] = 0
    confusion = Confusion(19)
    confusion.add(label, prediction)
    full, part, lenient = (confusion.scores(SPACE, view).miou for view in ("19", "16", "16-lenient"))
    assert part == pytest.approx(full * 19 / 16, rel=1e-12)
    assert lenient > part, "the lenient form breaks the rule: false positives on left-out classes are forgiven"
