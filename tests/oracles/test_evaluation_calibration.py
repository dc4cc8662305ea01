"""Calibration error against torchmetrics and plain loops, temperature against scipy's minimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.toys import SPACE, Pictures, Toy
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.models.classify import to_input
from segue.scoring import score
from segue.scoring.calibration import BINS, Sample, fit_temperature
from segue.scoring.protocols import NATIVE
from segue.scoring.score import Measure

DATA = Pictures((96, 160), (70, 90), seed=2)


class Sharp(Toy):
    """Logits times eight: too sure of itself."""

    def decode(self, x):  # type: ignore[no-untyped-def]
        return super().decode(8 * x)


def _pixels(model: Toy, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n,C) and classes (n,) of every labelled pixel, the whole data set at once."""
    rows, classes = [], []
    for image, label in zip(DATA.images, DATA.labels, strict=True):
        with torch.inference_mode():
            output = model(to_input([image], torch.device("cpu")))
            full = (output.upsample(output.logits, label.shape)[0] / temperature).softmax(0)
        seen = label != 255
        rows.append(full.numpy()[:, seen].T)
        classes.append(label[seen])
    return np.concatenate(rows), np.concatenate(classes).astype(np.int64)


def _nll(model: Toy) -> float:
    """Cross-entropy of torch in float64, which no probability underflows."""
    total, number = 0.0, 0
    for image, label in zip(DATA.images, DATA.labels, strict=True):
        with torch.inference_mode():
            output = model(to_input([image], torch.device("cpu")))
            full = output.upsample(output.logits, label.shape).double()
            truth = torch.from_numpy(label).long()[None]
            total += float(torch.nn.functional.cross_entropy(full, truth, ignore_index=255, reduction="sum"))
        number += int((label != 255).sum())
    return total / number


def _error(probability: np.ndarray, truth: np.ndarray) -> float:
    largest, winner = probability.max(1), probability.argmax(1)
    out = 0.0
    for b in range(BINS):
        inside = (largest > b / BINS) & (largest <= (b + 1) / BINS)
        if inside.any():
            out += inside.mean() * abs((winner == truth)[inside].mean() - largest[inside].mean())
    return out


@pytest.mark.parametrize("model", [Toy(1), Sharp(1)])
def test_calibration_error(model: Toy) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    model.eval()
    found = score.measure_models([model], DATA, SPACE, Measure(calibration=True))[0].to_dict()["calibration"]
    probability, truth = _pixels(model)
    winner = probability.argmax(1)
    assert found["ece"] == pytest.approx(_error(probability, truth), abs=1e-6)
    theirs = multiclass_calibration_error(torch.from_numpy(probability), torch.from_numpy(truth), 5, BINS, "l1")
    assert found["ece"] == pytest.approx(float(theirs), abs=1e-5)
    for c, name in enumerate(SPACE.classes):
        own = winner == c
        assert found["ece_by_class"][name] == pytest.approx(_error(probability[own], truth[own]), abs=1e-6)
    assert found["nll"] == pytest.approx(_nll(model), rel=1e-5)
    assert found["pixels"] == len(truth)


def test_the_lowest_bins_are_apart() -> None:
    """Thirty classes: right where the confidence is below 1/15, wrong above it."""
    model = Toy(1, classes=30).eval()
    model.weight.data *= 0.12
    space = LabelSpace("many", tuple(map(str, range(30))), ((0, 0, 0),) * 30, tuple(range(30)))
    data = Pictures((96, 160), seed=2)
    with torch.inference_mode():
        output = model(to_input(data.images, torch.device("cpu")))
        largest, winner = (x.numpy() for x in output.upsample(output.logits)[0].softmax(0).max(0))
    sure = largest > 1 / BINS
    assert 0.01 < sure.mean() < 0.99
    data.labels[0] = np.where(sure, (winner + 1) % 30, winner).astype(np.uint8)
    found = score.measure_models([model], data, space, Measure(calibration=True))[0].to_dict()["calibration"]
    expected = sure.mean() * largest[sure].mean() + (1 - sure.mean()) * (1 - largest[~sure].mean())
    assert found["ece"] == pytest.approx(expected, abs=1e-5)


def test_averaged_probabilities_are_calibrated_as_they_are() -> None:
    models = [Toy(0).eval(), Toy(1).eval()]
    found = score.measure_models(models, DATA, SPACE, Measure(calibration=True))[0].to_dict()["calibration"]
    (one, truth), (two, _) = (_pixels(m) for m in models)
    assert found["ece"] == pytest.approx(_error((one + two) / 2, truth), abs=1e-6)


def test_temperature_is_the_minimum_of_the_likelihood() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3000, 7)) * 6
    truth = np.where(rng.random(3000) < 0.6, z.argmax(1), rng.integers(0, 7, 3000))

    def nll(temperature: float) -> float:
        s = z / temperature
        s = s - s.max(1, keepdims=True)
        return float((np.log(np.exp(s).sum(1)) - s[np.arange(len(z)), truth]).mean())

    found = fit_temperature(torch.from_numpy(z), truth)
    best = optimize.minimize_scalar(nll, bounds=(0.1, 100), method="bounded", options={"xatol": 1e-10})
    assert found.temperature == pytest.approx(best.x, rel=1e-5)
    assert (found.nll_before, found.nll_after) == (pytest.approx(nll(1)), pytest.approx(best.fun))
    assert fit_temperature(torch.from_numpy(z + 1e4), truth).temperature == pytest.approx(found.temperature, rel=1e-6)


def test_temperature_mends_a_network_that_is_too_sure() -> None:
    model = Sharp(1).eval()
    fit = score.fit_temperature([model], DATA, SPACE, Measure())
    found = score.measure_models([model], DATA, SPACE, Measure(calibration=True, temperature=fit))[0]
    told = found.to_dict()["calibration"]
    assert fit.temperature > 1.5
    assert told["after"]["ece"] < told["ece"] and told["after"]["nll"] < told["nll"]
    assert told["after"]["nll"] == pytest.approx(fit.nll_after, rel=1e-5) == told["fit"]["nll_after"]
    assert told["after"]["ece"] == pytest.approx(_error(*_pixels(model, fit.temperature)), abs=1e-6)
    gentle = score.fit_temperature([Toy(1).eval()], DATA, SPACE, Measure())
    assert fit.temperature == pytest.approx(8 * gentle.temperature, rel=1e-4)


def test_a_sample_is_evenly_spaced_and_bounded() -> None:
    from segue.scoring.inference import ask

    model = Toy().eval()
    sample = Sample((0, 1, 2, 3, 4), 2, limit=500)
    with torch.inference_mode():
        for image, label in zip(DATA.images, DATA.labels, strict=True):
            sample.add(label, ask(model, [image], NATIVE, label.shape)[0])
    assert sample.fit().pixels == 500
    blank = Sample((0, 1), 1)
    blank.add(np.full(DATA.labels[0].shape, 255, np.uint8), ask(model, DATA.images[:1], NATIVE, (96, 160))[0])
    with pytest.raises(UserError, match="no labelled pixel"):
        blank.fit()


def test_without_pixels_there_is_no_error() -> None:
    data = Pictures((64, 96))
    data.labels[0][:] = 255
    found = score.measure_models([Toy().eval()], data, SPACE, Measure(calibration=True, boundary=True))[0].to_dict()
    assert found["calibration"]["ece"] is None and found["calibration"]["nll"] is None
    assert found["boundary"]["mean"] is None
    assert math.isnan(score.evaluate(Toy().eval(), data, SPACE).scores().miou)
