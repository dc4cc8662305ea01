"""Evaluation of a model: scored at the label's size, deterministic, modes restored, samples stored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segue.data.errors import DataError
from segue.errors import UserError
from segue.files import file_of, id_of
from segue.labels import IGNORE, LabelSpace
from segue.models.base import ModelConfig, Output, SegModel
from segue.models.classify import classify
from segue.scoring import score
from segue.scoring.bootstrap import paired_interval, read_per_image

SPACE = LabelSpace(
    "four", ("a", "b", "c", "d"), ((9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)), (7, 8, 11, 12), {"ab": ("a", "b")}
)


class Brightness(SegModel):
    """Class = brightness in quarters: logits at stride 4 from the average, a norm layer to watch its mode."""

    multiple = 4

    def __init__(self) -> None:
        super().__init__(ModelConfig(name="brightness"), 4, mean=(0, 0, 0), std=(1, 1, 1))
        self.norm = nn.BatchNorm2d(3)
        self.sizes: list[tuple[int, ...]] = []

    def decode(self, x: Tensor) -> Output:
        assert not self.training and not self.norm.training
        self.sizes.append(tuple(x.shape))
        level = torch.nn.functional.avg_pool2d(x, 4).mean(1, keepdim=True)
        centers = torch.tensor([0.125, 0.375, 0.625, 0.875]).view(1, 4, 1, 1)
        logits = -((level - centers) ** 2)
        return Output(logits, logits)

    def classifiers(self) -> dict[str, nn.Conv2d]:
        return {}


@dataclass
class Scenes:
    """Images whose label is known from their brightness; the last is larger, one is badly labelled."""

    name: str = "scenes"
    ids: list[str] = field(default_factory=lambda: [f"drive/{i:02d}" for i in range(7)])
    unlabelled_ids: list[str] = field(default_factory=list)
    labelled: bool = True
    label_scale: int = 2

    def read_label(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        size = (12, 10) if index == 6 else (10, 9)
        blocks = rng.integers(0, 4, size).astype(np.uint8)
        label = np.kron(blocks, np.ones((8, 8), np.uint8))
        if index == 3:
            label = (label + 1) % 4
        label[:4] = IGNORE
        return label[:: 3 - self.label_scale, :: 3 - self.label_scale]

    def read_image(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        size = (12, 10) if index == 6 else (10, 9)
        blocks = rng.integers(0, 4, size).astype(np.uint8)
        gray = np.kron(blocks * 64 + 32, np.ones((4, 4), np.uint8)).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, 2)

    def read_scored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.read_image(index), self.read_label(index)


def test_scores_at_the_resolution_of_the_label_and_finds_the_bad_image() -> None:
    model = Brightness()
    result = score.evaluate(model, Scenes(), SPACE, batch_size=4, views=("ab", "all"))
    labels = [Scenes().read_label(i) for i in range(7)]
    assert result.confusion.counts.sum() == sum(int((x != IGNORE).sum()) for x in labels)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["view"] == "ab" and set(data["views"]) == {"ab", "all"} and data["num_images"] == 7
    assert data["worst"][0]["id"] == "drive/03" and data["worst"][0]["miou"] < 0.3 < data["worst"][1]["miou"]
    assert model.sizes == [(4, 3, 40, 36), (2, 3, 40, 36), (1, 3, 48, 40)]
    assert result.per_image.ids == tuple(Scenes().ids)


def test_prediction_is_the_argmax_of_upsampled_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    for align, size in ((True, (40, 56)), (False, (40, 56)), (False, (13, 17)), (False, (5, 7))):
        logits = torch.randn(3, 9, 5, 7, generator=generator)
        logits[:, 4] -= 6  # never wins: is not interpolated
        output = Output(logits, logits, size=(38, 50), padded=(40, 56), align_corners=align, num_classes=8)
        expected = output.upsample(output.to_classes(), size).argmax(1)
        assert torch.equal(classify(output, size).long(), expected)
    flat = torch.zeros(1, 5, 4, 4)
    flat[:, 2:] = 1  # a tie everywhere: the lower id wins
    output = Output(flat, flat, size=(16, 16), padded=(16, 16), num_classes=5)
    assert (classify(output, (16, 16)) == 2).all()


def test_modes_come_back_one_by_one_and_results_are_deterministic() -> None:
    model = Brightness().train()
    model.norm.eval()
    first = score.evaluate(model, Scenes(), SPACE, batch_size=2)
    assert model.training and not model.norm.training
    again = score.evaluate(model, Scenes(), SPACE, batch_size=2)
    assert np.array_equal(first.confusion.counts, again.confusion.counts)
    assert first.to_dict() == again.to_dict()


def test_images_without_label_are_left_out_and_counted() -> None:
    result = score.evaluate(Brightness(), Scenes(unlabelled_ids=["drive/03", "drive/05"]), SPACE)
    assert result.to_dict()["num_images"] == 5 and result.to_dict()["without_label"] == 2
    with pytest.raises(UserError, match="no labels"):
        score.evaluate(Brightness(), Scenes(labelled=False), SPACE)


def test_wrong_settings_and_labels_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'native'"):
        score.evaluate(Brightness(), Scenes(), SPACE, protocol="nativ")
    with pytest.raises(ValueError, match="no view"):
        score.evaluate(Brightness(), Scenes(), SPACE, views=("abc",))
    three = LabelSpace("three", SPACE.classes[:3], SPACE.colors[:3], SPACE.ids[:3])
    with pytest.raises(UserError, match="4 classes"):
        score.evaluate(Brightness(), Scenes(), three)

    class Broken(Scenes):
        def read_image(self, index: int) -> np.ndarray:
            if index == 2:
                raise DataError("drive/02.png is damaged")
            return super().read_image(index)

        def read_label(self, index: int) -> np.ndarray:
            return super().read_label(index) if index != 1 else np.full((80, 72), 9, np.uint8)

    model = Brightness().train()
    with pytest.raises(UserError, match=r"'drive/01'.*\[9\]"):
        score.evaluate(model, Broken(), SPACE)
    with pytest.raises(DataError, match="damaged"):
        score.evaluate(model, Broken(unlabelled_ids=["drive/01"]), SPACE)
    assert model.training


def test_save_and_paired_bootstrap(tmp_path: Path) -> None:
    result = score.evaluate(Brightness(), Scenes(), SPACE)
    assert score.save(result, tmp_path, "scenes:val") == result.to_dict()
    stored = read_per_image(tmp_path / "per_image_scenes_val.npz")
    assert stored.miou(np.ones((1, 7)))[0] == pytest.approx(result.scores().miou)
    same = paired_interval(result.per_image, result.per_image)
    assert same.value == same.low == same.high == 0.0


def test_samples_are_thumbnails_shared_and_per_stage(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "0_s"
    ids = score.save_samples([Brightness()], Scenes(), SPACE, tmp_path, stage, "scenes:val", count=2, ids=["drive/03"])
    assert ids == ["drive/01", "drive/05", "drive/03"]
    name = file_of("drive/03")
    assert sorted(p.name for p in (tmp_path / "samples" / "scenes_val").iterdir())[0] == "drive%2F01_image.jpg"
    with Image.open(stage / "images" / "scenes_val" / f"{name}.png") as image:
        assert image.mode == "P" and image.size == (72, 80)
        predicted = np.asarray(image)
    assert set(np.unique(predicted)) <= {0, 1, 2, 3}
    without = Scenes(labelled=False)
    score.save_samples([Brightness()], without, SPACE, tmp_path / "b", tmp_path / "b/s", "t", count=1)
    assert [p.suffix for p in (tmp_path / "b" / "samples" / "t").glob("*e*.[jp]*g")] == [".jpg"]


def test_ids_as_file_names_are_unique_and_reversible() -> None:
    for image_id in ("a/b", "a_b", "ü ñ", "x:y", "..", "a%2Fb"):
        assert "/" not in file_of(image_id) and id_of(file_of(image_id)) == image_id
    long = ["x" * 200 + end for end in "ab"]
    assert file_of(long[0]) != file_of(long[1]) and len(file_of(long[0])) < 200
