"""Where a sample's pixels lie in their picture, margins as shares of it, and how far a teacher's labels are trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from helpers.memory import batch, in_place
from segue.config import TransformConfig
from segue.data.batch import Meta
from segue.data.places import places
from segue.data.transforms import Item, Window, apply, draws
from segue.labels import U8
from segue.methods.trust import Margin, TrustConfig, trusted

FILE = (120, 200)
DAFORMER = Margin(top=15 / 512, bottom=120 / 512)
HRDA = Margin(top=30 / 1024, bottom=240 / 1024, left=30 / 2048, right=30 / 2048)
SAMPLES: dict[str, dict[str, Any]] = {
    "whole": {"flip": 0},
    "flipped": {"flip": 1},
    "cropped": {"crop": (70, 90), "scale": (0.8, 1.9)},
    "higher than the picture": {"crop": (150, 90), "scale": (0.5, 1.2)},
    "wider than the picture": {"crop": (64, 320), "flip": 1},
    "rotated": {"crop": (100, 110), "augment": {"steps": [{"name": "rotation", "range": (-90, 90)}], "probability": 1}},
    "perspective": {
        "crop": (100, 240),
        "flip": 1,
        "augment": {"steps": [{"name": "perspective", "range": (0.4, 0.6)}, {"name": "flip"}], "probability": 1},
    },
}


def coded(config: TransformConfig, size: tuple[int, int] | None, uid: int) -> tuple[Item, U8, U8]:
    """A sample, and the file's row and column under each of its pixels, carried there as a label."""
    image = np.zeros((*FILE, 3), np.uint8)
    row = np.repeat(np.arange(FILE[0], dtype=np.uint8)[:, None], FILE[1], 1)
    column = np.repeat(np.arange(FILE[1], dtype=np.uint8)[None], FILE[0], 0)
    items = [apply(image, code, size, config, draws("places", uid)) for code in (row, column)]
    assert items[0].label is not None and items[1].label is not None
    return items[0], items[0].label, items[1].label


def meta(item: Item | Window) -> Meta:
    geometry = item.to_dict() if isinstance(item, Window) else item.geometry()
    return Meta(0, "0", "memory", FILE, geometry)


@pytest.mark.parametrize("size", [None, (60, 100), (96, 131)])
@pytest.mark.parametrize("name", SAMPLES)
def test_places_are_those_to_which_real_transforms_take_a_files_pixels(name: str, size: tuple[int, int] | None) -> None:
    config = TransformConfig.model_validate(SAMPLES[name])
    for uid in range(6):
        item, row, column = coded(config, size, uid)
        y, x = (p.expand(row.shape).numpy() for p in places(meta(item), row.shape))
        shown = np.ones(row.shape, bool) if item.pixel is None else item.pixel
        # The nearest pixel of the window may be half a pixel off under a warp, and OpenCV rounds it to 1/32.
        off = (
            0.0 if item.warp is None else 0.55 * max(FILE[0] / item.window.resized[0], FILE[1] / item.window.resized[1])
        )
        for share, code, length in ((y, row, FILE[0]), (x, column, FILE[1])):
            inside = share[shown] * length
            assert (inside >= code[shown] - off - 1e-9).all() and (inside < code[shown] + 1 + off + 1e-9).all()
        assert shown.any()


@pytest.mark.parametrize("name", ["higher than the picture", "wider than the picture"])
def test_padding_lies_outside_the_picture(name: str) -> None:
    for uid in range(6):
        item, row, _ = coded(TransformConfig.model_validate(SAMPLES[name]), None, uid)
        y, x = (p.expand(row.shape) for p in places(meta(item), row.shape))
        outside = (y < 0) | (y >= 1) | (x < 0) | (x >= 1)
        assert item.pixel is not None and not item.pixel.all()
        assert np.array_equal(outside.numpy(), ~item.pixel)


def keeps(margin: Margin, window: Window, size: tuple[int, int]) -> Tensor:
    found = margin.keeps([meta(window)], size)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("margin", [DAFORMER, Margin(top=0.0293, bottom=0.2344)])
def test_daformers_rows_at_its_own_size(margin: Margin) -> None:
    """1024x512, crop 512x512: the first 15 and the last 120 rows."""
    for left in (0, 131, 512):
        kept = keeps(margin, Window((1024, 2048), (512, 1024), 0, left, 512, 512, flip=left == 131), (512, 512))
        assert kept.any(1).nonzero().flatten().tolist() == list(range(15, 392))
        assert bool((kept.all(1) == kept.any(1)).all())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1024), (0, 517), (0, 15)])
def test_hrdas_mask_after_crop_and_flip(flip: bool, corner: tuple[int, int]) -> None:
    """2048x1024, crop 1024x1024: 30 rows above, 240 below, 30 columns on both sides of the file."""
    mask = np.zeros((1024, 2048), bool)
    mask[30 : 1024 - 240, 30 : 2048 - 30] = True
    crop = mask[corner[0] : corner[0] + 1024, corner[1] : corner[1] + 1024]
    kept = keeps(HRDA, Window((1024, 2048), (1024, 2048), *corner, 1024, 1024, flip), (1024, 1024))
    assert np.array_equal(kept.numpy(), crop[:, ::-1] if flip else crop)


sides = st.integers(0, 60)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([32, 64, 96, 128, 200]), st.sampled_from([64, 100, 256]), st.data())
def test_any_crop_drops_the_same_part_of_the_picture(
    top: int, bottom: int, left: int, right: int, height: int, width: int, data: st.DataObject
) -> None:
    file = (64, 128)
    y, x = (data.draw(st.integers(0, side // 2)) for side in (height, width))
    shown = [data.draw(st.integers(side // 4, side - corner)) for side, corner in ((height, y), (width, x))]
    window = Window(file, (height, width), y, x, shown[0], shown[1], data.draw(st.booleans()))
    whole = (height, width) == (y + shown[0], x + shown[1])  # only then is there padding
    size = (shown[0] + whole * data.draw(st.integers(0, 9)), shown[1] + whole * data.draw(st.integers(0, 9)))
    mask = np.zeros(file, bool)
    mask[top : 64 - bottom, left : 128 - right] = True
    expected = np.zeros(size, bool)  # padding is outside every margin
    expected[: window.height, : window.width] = mask[window.rows()][:, window.columns()]
    margin = Margin(top=top / 64, bottom=bottom / 64, left=left / 128, right=right / 128)
    found = margin.keeps([meta(window)], size)
    if found is None:
        assert not (top or bottom or left or right)
        return
    assert np.array_equal(found[0].numpy(), expected)


def probability(shares: list[float], size: tuple[int, int] = (64, 96)) -> Tensor:
    """Softmax of logits: the first ``shares[i]`` of image i have p = 0.98 for class 2, the other pixels 0.9 for 1."""
    sure, classes = torch.zeros(len(shares), *size), 7
    for i, share in enumerate(shares):
        sure[i].view(-1)[: round(share * sure[i].numel())] = 1
    logits = torch.zeros(len(shares), classes, *size, dtype=torch.float64)
    for chosen, p, c in ((sure == 1, 0.98, 2), (sure == 0, 0.9, 1)):
        logits[:, c][chosen] = np.log(p / (1 - p) * (classes - 1))
    return logits.softmax(1)


def weights(**config: Any) -> Tensor:
    target, _ = trusted(batch(0), probability([0.25, 0.75]), TrustConfig.model_validate(config))
    assert target.weight is not None and target.weight.shape == target.label.shape
    assert all(len(image.unique()) == 1 for image in target.weight)
    return target.weight[:, 0, 0]


def test_weight_is_the_share_of_sure_pixels_of_an_image_or_as_published_of_the_batch() -> None:
    assert weights().tolist() == pytest.approx([0.25, 0.75])
    assert weights(confidence="batch").tolist() == pytest.approx([0.5, 0.5])
    assert weights(confidence="none").tolist() == [1, 1]
    assert weights(threshold=0.95).tolist() == pytest.approx([0.25, 0.75])
    assert weights(threshold=0.99).tolist() == [0, 0]
    assert weights(threshold=0.9 - 1e-6).tolist() == [1, 1]


def test_labels_and_what_the_report_shows() -> None:
    target, logs = trusted(batch(0), probability([0.25, 0.75]), TrustConfig())
    assert [(image == 2).float().mean().item() for image in target.label] == [0.25, 0.75]
    assert float(logs["share_kept"]) == pytest.approx(0.5)
    assert logs["pseudo_histogram"].tolist() == pytest.approx([0, 0.5, 0.5, 0, 0, 0, 0])
    assert torch.equal(target.image, batch(0).image), "the images are left alone"


@pytest.mark.parametrize("unit", ["image", "batch"])
def test_padding_counts_neither_as_sure_nor_as_unsure(unit: str) -> None:
    given = batch(0)
    given.pixel[0, 32:] = False  # the sure quarter of image 0 lies in its upper half
    given.pixel[1] = False
    target, logs = trusted(given, probability([0.25, 0.875]), TrustConfig.model_validate({"confidence": unit}))
    assert target.weight is not None
    expected = [0.5, 0.0] if unit == "image" else [0.5, 0.5]
    assert target.weight[:, 0, 0].tolist() == pytest.approx(expected)
    assert float(logs["share_kept"]) == pytest.approx(0.5)
    assert logs["pseudo_histogram"].tolist() == pytest.approx([0, 0.5, 0.5, 0, 0, 0, 0])


def test_margins_only_lower_a_weight_and_the_share_counts_all_of_the_picture() -> None:
    given = in_place(batch(0))
    config = TrustConfig(margin=Margin(top=0.5, right=1 / 96))
    target, _ = trusted(given, probability([0.25, 0.75]), config)
    assert target.weight is not None
    expected = torch.tensor([0.25, 0.75]).view(2, 1, 1).repeat(1, 64, 96)
    expected[:, :32] = 0
    expected[:, :, 95] = 0
    torch.testing.assert_close(target.weight, expected.to(target.weight))


@pytest.mark.parametrize("unit", ["image", "batch", "none"])
def test_a_padded_crop_never_weighs_more_than_its_confidence(unit: str) -> None:
    """HRDA pads its mask with 255 and multiplies by it."""
    given = batch(0)
    given.pixel[:, 40:] = False
    geometry = {"resized": (40, 128), "window": (0, 20, 40, 96), "flip": True}
    given = replace(given, meta=tuple(replace(m, geometry=geometry) for m in given.meta))
    config = TrustConfig.model_validate({"confidence": unit, "margin": HRDA.model_dump(), "threshold": 0.5})
    target, _ = trusted(given, probability([0.25, 0.75]), config)
    assert target.weight is not None
    assert set(target.weight.unique().tolist()) == {0.0, 1.0}
    assert not target.weight[:, 40:].any()


@pytest.mark.parametrize("wrong", [{"top": 1.5}, {"left": -0.1}, {"ignore_top_px": 15}])
def test_margins_are_shares(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Margin.model_validate(wrong)
