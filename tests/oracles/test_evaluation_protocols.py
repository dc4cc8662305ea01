"""Every named protocol against a plain restatement of its published rule on a toy network, in torch and numpy loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers.toys import SPACE, Pictures, Toy
from segue.errors import UserError
from segue.scoring import score
from segue.scoring.protocols import NATIVE, PROTOCOLS, Protocol, Window, protocol_of
from segue.scoring.score import Measure

DATA = Pictures((180, 360), (130, 301))
Predict = Callable[[Toy, np.ndarray, tuple[int, int]], np.ndarray]


def _normal(picture: np.ndarray) -> Tensor:
    """(H,W,3) bytes to (1,3,H,W), ImageNet mean and deviation."""
    x = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def _net(model: Toy, x: Tensor, align: bool) -> Tensor:
    """A published network: padded with the mean colour to its multiple, logits resized to its input."""
    height, width = x.shape[-2:]
    m = model.multiple
    padded = F.pad(x, (0, -width % m, 0, -height % m))
    out = F.interpolate(model.decode(padded).logits, padded.shape[-2:], mode="bilinear", align_corners=align)
    return out[..., :height, :width]


def _native(model: Toy, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return _net(model, _normal(picture), model.align_corners)[0].argmax(0).numpy()


def _mmseg(model: Toy, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = min(1024 / max(height, width), 512 / min(height, width))
    seen = cv2.resize(picture, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)
    logits = _net(model, _normal(seen), model.align_corners)
    logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=model.align_corners)
    return logits.softmax(1)[0].argmax(0).numpy()


def _mmseg_augmented(model: Toy, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Windows of 256x256 every 128x128, at two scales, mirrored and not; probabilities added at the picture's size."""
    height, width = picture.shape[:2]
    total = torch.zeros(1, 5, height, width)
    for ratio in (0.5, 0.75):
        factor = min(int(1024 * ratio) / max(height, width), int(512 * ratio) / min(height, width))
        resized = int(width * factor + 0.5), int(height * factor + 0.5)
        seen = cv2.resize(picture, resized, interpolation=cv2.INTER_LINEAR)
        for flip in (False, True):
            x = _normal(seen[:, ::-1].copy() if flip else seen)
            logits, count = torch.zeros(1, 5, *x.shape[-2:]), torch.zeros(x.shape[-2:])
            for i in range(max(x.shape[2] - 256 + 127, 0) // 128 + 1):
                for j in range(max(x.shape[3] - 256 + 127, 0) // 128 + 1):
                    y2, x2 = min(128 * i + 256, x.shape[2]), min(128 * j + 256, x.shape[3])
                    y1, x1 = max(y2 - 256, 0), max(x2 - 256, 0)
                    logits[..., y1:y2, x1:x2] += _net(model, x[..., y1:y2, x1:x2], model.align_corners)
                    count[y1:y2, x1:x2] += 1
            logits = F.interpolate(logits / count, (height, width), mode="bilinear", align_corners=model.align_corners)
            probability = logits.softmax(1)
            total += probability.flip(3) if flip else probability
    return total[0].argmax(0).numpy()


def _d2ada(model: Toy, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    seen = np.asarray(Image.fromarray(picture).resize((2048, 1024), Image.Resampling.BILINEAR))
    return _net(model, _normal(seen), model.align_corners)[0].argmax(0).numpy()


def _stdc(scale: float) -> Predict:
    def predict(model: Toy, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        x = _normal(picture)
        x = F.interpolate(x, [int(x.shape[2] * scale), int(x.shape[3] * scale)], mode="bilinear", align_corners=True)
        logits = F.interpolate(_net(model, x, True), size, mode="bilinear", align_corners=True)
        return logits.softmax(1)[0].argmax(0).numpy()

    return predict


def _cil(model: Toy, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    seen = np.asarray(Image.fromarray(picture).resize((1024, 512), Image.Resampling.BILINEAR))
    logits = F.interpolate(model.decode(_normal(seen)).logits, size, mode="nearest")
    return logits[0].argmax(0).numpy()


VARIED = PROTOCOLS["mmseg"].varied(scales=(0.5, 0.75), flip=True, window=Window((256, 256), (128, 128)))
RULES: dict[str, tuple[Protocol, Predict]] = {
    "native": (NATIVE, _native),
    "mmseg": (PROTOCOLS["mmseg"], _mmseg),
    "mmseg augmented": (VARIED, _mmseg_augmented),
    "d2ada": (PROTOCOLS["d2ada"], _d2ada),
    "stdc": (PROTOCOLS["stdc"], _stdc(0.5)),
    "stdc75": (PROTOCOLS["stdc75"], _stdc(0.75)),
    "cil": (PROTOCOLS["cil"], _cil),
}


def _counts(model: Toy, predict: Predict, label_size: tuple[int, int] | None) -> np.ndarray:
    counts = np.zeros((5, 5), np.int64)
    for picture, label in zip(DATA.images, DATA.labels, strict=True):
        if label_size is not None:
            height, width = label_size
            label = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
        prediction = predict(model, picture, label.shape)
        seen = label != 255
        np.add.at(counts, (label[seen], prediction[seen]), 1)
    return counts


def _iou(counts: np.ndarray, absent: float | None) -> list[float]:
    out = []
    for c in range(len(counts)):
        union = counts[c].sum() + counts[:, c].sum() - counts[c, c]
        if counts[c].sum() == 0 and absent is not None:
            out.append(absent)
        else:
            out.append(counts[c, c] / union if union else math.nan)
    return out


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("name", RULES)
@torch.inference_mode()
def test_protocol_is_its_published_rule(name: str, align: bool) -> None:
    rule, predict = RULES[name]
    model = Toy(3, stride=8, multiple=8, align_corners=align).eval()
    (found,) = score.measure_models([model], DATA, SPACE, Measure(protocol=rule))
    expected = _counts(model, predict, rule.label_size)
    assert found.confusion.counts.sum() == expected.sum()
    # the two best classes of a pixel may tie to the last bits of a float
    moved = np.abs(found.confusion.matrix - expected).sum() / expected.sum()
    assert moved < 2e-5
    assert list(found.scores().iou.values()) == pytest.approx(_iou(expected, rule.absent), abs=1e-4, nan_ok=True)
    assert found.scores().protocol == rule.name
    others = [_counts(model, p, r.label_size) for r, p in RULES.values() if p is not predict and not r.label_size]
    if not rule.label_size:
        assert all(np.abs(o - expected).sum() / expected.sum() > 1e-3 for o in others), "rules can be told apart"


@torch.inference_mode()
def test_cil_chooses_among_the_task_and_ignores_other_pixels() -> None:
    model = Toy(3, stride=8).eval()
    task = (1, 2, 4)
    space = type(SPACE)(SPACE.name, SPACE.classes, SPACE.colors, SPACE.ids, {"task": ("b", "c", "e")})
    measure = Measure(("task-lenient",), PROTOCOLS["cil"], ("b", "c", "e"))
    (found,) = score.measure_models([model], DATA, space, measure)
    counts = np.zeros((3, 3), np.int64)
    for picture, label in zip(DATA.images, DATA.labels, strict=True):
        seen = np.asarray(Image.fromarray(picture).resize((1024, 512), Image.Resampling.BILINEAR))
        logits = F.interpolate(model.decode(_normal(seen)).logits[:, list(task)], label.shape, mode="nearest")
        for row, truth in enumerate(task):
            values, number = np.unique(logits[0].argmax(0).numpy()[label == truth], return_counts=True)
            counts[row, values] += number
    assert list(found.scores().iou.values()) == pytest.approx(_iou(counts, None), abs=1e-4)
    assert found.scores().accuracy == pytest.approx(np.diag(counts).sum() / counts.sum(), abs=1e-4)


def test_absent_classes() -> None:
    data = Pictures((64, 96))
    data.labels[0][data.labels[0] == 2] = 255
    found = score.measure_models([Toy().eval()], data, SPACE, Measure(protocol=PROTOCOLS["d2ada"]))[0].scores()
    assert found.iou["c"] == 1.0
    assert found.miou == pytest.approx(sum(found.iou.values()) / 5)
    found = score.measure_models([Toy().eval()], data, SPACE, Measure())[0].scores()
    assert found.iou["c"] == 0.0, "predicted without ground truth"


def test_names_tell_what_was_changed() -> None:
    assert VARIED.name == "mmseg+scales=0.5,0.75+flip+slide=256x256/128x128"
    assert PROTOCOLS["mmseg"].varied(size=(1024, 2048)).name == "mmseg+size=1024x2048"
    assert NATIVE.varied(scales=(1.0,)) == NATIVE
    assert all(p.source and p.name == key for key, p in PROTOCOLS.items())
    with pytest.raises(UserError, match="did you mean 'mmseg'"):
        protocol_of("mmsge")
