"""IoU against cityscapesscripts and torchmetrics on random label maps with ignored pixels and absent classes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segue.labels import IGNORE, LabelSpace, load_space
from segue.scoring.matrix import Confusion

cityscapes = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


def _maps(seed: int, present: list[int], predicted: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice([*present, IGNORE], (3, 20, 31)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.5, label, rng.choice(predicted, label.shape)).astype(np.uint8)
    prediction[prediction == IGNORE] = predicted[0]
    return label, prediction


CASES = {
    "all classes": (list(range(19)), list(range(19))),
    "absent from both": ([0, 1, 2, 10, 13], [0, 1, 2, 10, 13]),
    "predicted without ground truth": ([0, 1, 10], [0, 1, 10, 16, 17]),
    "never predicted": (list(range(19)), [0, 2, 4]),
}


def _official(space: LabelSpace, label: np.ndarray, prediction: np.ndarray, tmp_path: Path) -> dict[str, float]:
    from cityscapesscripts.helpers.labels import name2label

    ids = np.zeros(256, np.uint8)
    ids[: len(space)] = [name2label[c.replace("_", " ")].id for c in space.classes]
    args = cityscapes.args
    args.evalLabels = [label.id for label in cityscapes.labels if label.id >= 0]
    args.evalInstLevelScore = False
    args.evalPixelAccuracy = False
    matrix = cityscapes.generateMatrix(args)
    for number, (truth, guess) in enumerate(zip(label, prediction, strict=True)):
        paths = [tmp_path / f"{number}_{kind}.png" for kind in ("truth", "guess")]
        for path, array in zip(paths, (truth, guess), strict=True):
            Image.fromarray(ids[array]).save(path)
        cityscapes.evaluatePair(str(paths[1]), str(paths[0]), matrix, SimpleNamespace(), {}, args)
    return {c: cityscapes.getIouScoreForLabel(int(ids[t]), matrix, args) for t, c in enumerate(space.classes)}


@pytest.mark.parametrize("case", CASES)
def test_iou_equals_cityscapesscripts(case: str, tmp_path: Path) -> None:
    space = load_space("cityscapes19")
    label, prediction = _maps(3, *CASES[case])
    confusion = Confusion(19)
    for truth, guess in zip(label, prediction, strict=True):
        confusion.add(truth, guess)
    ours, theirs = confusion.scores(space), _official(space, label, prediction, tmp_path)
    assert list(ours.iou.values()) == pytest.approx(list(theirs.values()), abs=1e-12, nan_ok=True)
    assert ours.miou == pytest.approx(cityscapes.getScoreAverage(theirs, cityscapes.args), abs=1e-12)
    assert any(map(math.isnan, ours.iou.values())) == (case in ("absent from both", "predicted without ground truth"))


@pytest.mark.parametrize("case", CASES)
def test_matrix_and_accuracy_equal_torchmetrics(case: str) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

    label, prediction = _maps(5, *CASES[case])
    confusion = Confusion(19)
    confusion.add(torch.from_numpy(label).long(), torch.from_numpy(prediction).long())
    truth, guess = torch.from_numpy(label).long(), torch.from_numpy(prediction).long()
    expected = multiclass_confusion_matrix(guess, truth, 19, ignore_index=IGNORE)
    assert np.array_equal(confusion.matrix, expected.numpy())
    accuracy = multiclass_accuracy(guess, truth, 19, average="micro", ignore_index=IGNORE)
    scores = confusion.scores(load_space("cityscapes19"))
    assert scores.accuracy == pytest.approx(float(accuracy), abs=1e-6)
    by_class = multiclass_accuracy(guess, truth, 19, average="none", ignore_index=IGNORE).numpy()
    present = np.isin(np.arange(19), label)
    ours = np.array(list(scores.class_accuracy.values()))
    assert ours[present] == pytest.approx(by_class[present], abs=1e-6)
    assert np.isnan(ours[~present]).all()


def test_jaccard_equals_torchmetrics_when_every_class_is_present() -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    label, prediction = _maps(7, *CASES["all classes"])
    confusion = Confusion(19)
    confusion.add(label, prediction)
    truth, guess = torch.from_numpy(label).long(), torch.from_numpy(prediction).long()
    expected = multiclass_jaccard_index(guess, truth, 19, ignore_index=IGNORE)
    assert confusion.scores(load_space("cityscapes19")).miou == pytest.approx(float(expected), abs=1e-6)
