"""How a network is asked: full-size scores from tiles, mirrors, scales, windows, restricted classes, several models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.toys import SPACE, Pictures, Toy
from segue.errors import UserError
from segue.models.base import Output
from segue.models.classify import to_input
from segue.scoring import score
from segue.scoring.inference import Answer, ask, together
from segue.scoring.protocols import NATIVE, PROTOCOLS, Window
from segue.scoring.score import Measure

SIZE = (150, 301)
PICTURES = Pictures(SIZE).images


@pytest.fixture(autouse=True)
def _no_gradient() -> object:
    with torch.inference_mode():
        yield


def _full(answer: Answer, channels: int = 5) -> torch.Tensor:
    out = torch.zeros(channels, *answer.size)
    for tile in answer.tiles():
        out[:, tile.place[0], tile.place[1]] = tile.values
    return out


def _output(model: Toy, flipped: bool = False) -> Output:
    image = to_input(PICTURES, torch.device("cpu"))
    return model(image.flip(-1) if flipped else image)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [SIZE, (75, 150), (333, 411), (40, 40)])
def test_tiles_are_the_upsampled_logits(align: bool, size: tuple[int, int]) -> None:
    model = Toy(multiple=32, align_corners=align).eval()
    (answer,) = ask(model, PICTURES, NATIVE, size)
    output = _output(model)
    expected = output.upsample(output.logits, size)[0]
    assert torch.allclose(_full(answer), expected, rtol=0, atol=2e-5)
    assert np.array_equal(answer.ids(), expected.argmax(0).numpy())


@pytest.mark.parametrize("align", [False, True])
def test_a_mirrored_answer_is_mirrored_back(align: bool) -> None:
    model = Toy(multiple=16, align_corners=align).eval()
    (answer,) = ask(model, PICTURES, NATIVE.varied(flip=True), SIZE)
    parts = [_output(model, flipped) for flipped in (False, True)]
    plain, mirrored = (p.upsample(p.logits).softmax(1)[0] for p in parts)
    assert torch.allclose(_full(answer), (plain + mirrored.flip(-1)) / 2, rtol=0, atol=1e-5)


def test_scales_and_models_average_probabilities() -> None:
    models = [Toy(seed, align_corners=bool(seed)).eval() for seed in range(3)]
    rule = NATIVE.varied(scales=(0.5, 1.0, 1.5))
    answers = [ask(model, PICTURES, rule, SIZE)[0] for model in models]
    expected = torch.zeros(5, *SIZE)
    for model in models:
        for height, width in ((75, 150), SIZE, (225, 452)):
            (one,) = ask(model, PICTURES, replace(NATIVE, size=(height, width)), SIZE)
            expected += _full(one).softmax(0) / 9
    assert rule.input_size(SIZE, 1.5) == (225, 452)
    assert torch.allclose(_full(together(answers)), expected, rtol=0, atol=1e-5)


def test_one_window_is_the_whole_image_and_probabilities_are_another_average() -> None:
    model = Toy(multiple=32).eval()
    (whole,), (one,) = (ask(model, PICTURES, r, SIZE) for r in (NATIVE, NATIVE.varied(window=Window(SIZE, (50, 50)))))
    assert torch.allclose(_full(one), _full(whole), rtol=0, atol=2e-5)
    assert (one.ids() == whole.ids()).mean() > 0.9999
    logits, probabilities = (
        ask(model, PICTURES, NATIVE.varied(window=Window((64, 96), (40, 60), average)), SIZE)[0]
        for average in ("logits", "probabilities")
    )
    assert torch.allclose(_full(probabilities).sum(0), torch.ones(SIZE), atol=1e-5)
    assert not torch.allclose(_full(logits).softmax(0), _full(probabilities), atol=1e-3)


def test_restricted_classes_are_a_restricted_argmax() -> None:
    model = Toy(multiple=32).eval()
    output = _output(model)
    full = output.upsample(output.logits)[0]
    full[[1, 3]] = -torch.inf
    for rule in (NATIVE, NATIVE.varied(flip=True)):
        (answer,) = ask(model, PICTURES, rule, SIZE, (0, 2, 4))
        assert set(np.unique(answer.ids())) <= {0, 2, 4}
    (answer,) = ask(model, PICTURES, NATIVE, SIZE, (0, 2, 4))
    assert np.array_equal(answer.ids(), full.argmax(0).numpy())


class _Largest(TorchDispatchMode):
    """Number of elements of the largest new tensor of at least 3 axes, and how many of at least that of a full map."""

    def __init__(self, full: int) -> None:
        super().__init__()
        self.full, self.storages = full, set[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= 4 * self.full:
                self.storages.add(tensor.untyped_storage().data_ptr())
        return out


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (NATIVE.varied(flip=True, scales=(0.5, 1.0)), 0),
        (PROTOCOLS["stdc75"], 0),
        (NATIVE.varied(window=Window((64, 96), (48, 80))), 1),
    ],
)
def test_no_full_size_scores_are_kept_but_the_sum_of_windows(rule: object, allowed: int) -> None:
    size = (256, 512)
    pictures = Pictures(size).images
    model = Toy(stride=8).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    ask(model, pictures, rule, size)  # the maps of the axes are cached
    with _Largest(5 * size[0] * size[1]) as seen:
        (answer,) = ask(model, pictures, rule, size)
        answer.ids()
        for tile in answer.tiles():
            tile.log_probability(2.0)
    assert len(seen.storages) <= allowed


def test_several_models_are_scored_together_and_alone() -> None:
    data = Pictures((64, 96), (64, 96), (80, 72))
    models = [Toy(seed).eval() for seed in range(2)]
    found = score.measure_models(models, data, SPACE, Measure(boundary=True, calibration=True), batch_size=2)
    assert len(found) == 3
    for model, own in zip(models, found[1:], strict=True):
        alone = score.evaluate(model, data, SPACE)
        assert np.array_equal(alone.confusion.counts, own.confusion.counts)
        assert np.array_equal(alone.per_image.right, own.per_image.right)
        assert "calibration" not in own.to_dict() and "boundary" in own.to_dict()
    assert found[0].to_dict()["calibration"]["pixels"] == found[0].confusion.counts.sum()
    twice = score.measure_models([models[0], models[0]], data, SPACE, Measure())
    assert (twice[0].confusion.counts == twice[1].confusion.counts).mean() > 0.95


def test_models_keep_their_modes_whatever_happens() -> None:
    models = [Toy(0).train(), Toy(1).eval()]
    data = Pictures((64, 96))
    data.labels[0][0, 0] = 9
    with pytest.raises(UserError, match=r"'drive/0'.*\[9\]"):
        score.measure_models(models, data, SPACE, Measure())
    assert models[0].training and not models[1].training


def test_a_lenient_view_ignores_pixels_of_other_classes() -> None:
    data, model = Pictures((64, 96), (64, 96)), Toy().eval()
    strict, lenient = (
        score.measure_models([model], data, SPACE, Measure((view,), boundary=True, calibration=True))[0]
        for view in ("three", "three-lenient")
    )
    other = Pictures((64, 96), (64, 96))
    for label in other.labels:
        label[np.isin(label, [1, 4])] = 255
    ignored = score.measure_models([model], other, SPACE, Measure(("three",), boundary=True, calibration=True))[0]
    ours, theirs = lenient.to_dict(), ignored.to_dict()
    for key in ("miou", "iou", "accuracy", "boundary", "calibration", "worst"):
        assert ours[key] == theirs[key]
    assert np.array_equal(lenient.per_image.predicted[:, [0, 2, 3]], ignored.per_image.predicted[:, [0, 2, 3]])
    assert strict.scores().miou < lenient.scores().miou
    assert strict.scores("three-lenient").miou == lenient.scores().miou
