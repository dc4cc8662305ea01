"""Predictions of pictures, files and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segue.errors import UserError
from segue.labels import LabelSpace
from segue.models.base import ModelConfig, Output, SegModel
from segue.predict import Network, predict_folder

SPACE = LabelSpace("two", ("dark", "bright"), ((10, 20, 30), (200, 100, 50)), (4, 9))


class Threshold(SegModel):
    """Bright or dark, at full resolution."""

    multiple = 8

    def __init__(self) -> None:
        super().__init__(ModelConfig(name="threshold"), 2, mean=(0, 0, 0), std=(1, 1, 1))
        self.seen: list[tuple[int, ...]] = []

    def decode(self, x: Tensor) -> Output:
        self.seen.append(tuple(x.shape[-2:]))
        level = x.mean(1, keepdim=True) - 0.5
        logits = torch.cat([-level, level], 1)
        return Output(logits, logits)

    def classifiers(self) -> dict[str, nn.Conv2d]:
        return {}


def _picture(height: int = 41, width: int = 50) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    return picture


def test_prediction_has_the_size_of_the_picture_whatever_the_network_sees() -> None:
    model = Threshold().train()
    for size in (None, (32, 40)):
        ids = Network((model,), size=size).predict(_picture())
        assert ids.shape == (41, 50) and ids.dtype == np.uint8
        assert (ids[:, :20] == 0).all() and (ids[:, 30:] == 1).all()
    assert model.seen == [(48, 56), (32, 40)] and model.training


@pytest.mark.parametrize(
    "bad", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8)]
)
def test_wrong_arrays_are_named(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match="RGB array"):
        Network((Threshold(),)).predict(bad)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"note\.png"):
        Network((Threshold(),)).predict(tmp_path / "note.png")
    with pytest.raises(ValueError, match=r"missing\.png"):
        Network((Threshold(),)).predict(str(tmp_path / "missing.png"))


@pytest.mark.parametrize(
    ("format", "dark", "bright"),
    [
        ("trainid", 0, 1),
        ("labelid", 4, 9),
        ("color", [10, 20, 30], [200, 100, 50]),
        ("overlay", [5, 10, 15], [228, 178, 152]),
    ],
)
def test_folder_keeps_names_and_writes_the_format(tmp_path: Path, format: str, dark: object, bright: object) -> None:
    for name in ("in/a.png", "in/deep/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture()).save(tmp_path / name, quality=100)
    calls: list[tuple[int, int]] = []
    out = tmp_path / "in" / "out"  # below the input: must not be read back
    for _ in range(2):
        written = predict_folder(
            Threshold(), SPACE, tmp_path / "in", out, format=format, progress=lambda d, t: calls.append((d, t))
        ).written
    assert [p.relative_to(out).as_posix() for p in written] == ["a.png", "deep/b.png"]
    assert calls == [(0, 2), (1, 2), (2, 2)] * 2
    pixels = np.asarray(Image.open(written[0]))
    assert np.allclose(pixels[5, 5], dark, atol=1) and np.allclose(pixels[5, 45], bright, atol=1)
    assert not [p for p in out.rglob("*") if p.is_file() and p not in written]


def test_folder_refuses_what_would_lose_files(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(_picture()).save(tmp_path / name)
    model = Threshold()
    with pytest.raises(UserError, match="both be written"):
        predict_folder(model, SPACE, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="another output folder"):
        predict_folder(model, SPACE, tmp_path, tmp_path)
    with pytest.raises(UserError, match="replace"):
        predict_folder(model, SPACE, tmp_path / "a.png", tmp_path)
    with pytest.raises(UserError, match="did you mean 'color'"):
        predict_folder(model, SPACE, tmp_path, tmp_path / "out", format="colour")
    with pytest.raises(UserError, match="no image"):
        predict_folder(model, SPACE, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image below"):
        predict_folder(model, SPACE, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_above_the_input_may_be_the_output(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(_picture()).save(tmp_path / "in" / "a.png")
    assert predict_folder(Threshold(), SPACE, tmp_path / "in", tmp_path).written == [tmp_path / "a.png"]
