"""Columns of a survey against everything upsampled in float64 and loops over regions and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.held import Held, Small
from segue.acquire import Partition, RegionTable, Superpixels, WholeImage, Windows
from segue.data.images import resize_image
from segue.data.regions import Regions, SuperpixelConfig, make
from segue.labels import IGNORE
from segue.models.base import Output
from segue.ops import upsampling
from segue.survey import Look, survey
from segue.survey.run import COLUMNS

MEANS = ("prob", "margin", "confidence", "domain_prob", "embedding", "edge")
HALF = {"rtol": 2**-11, "atol": 1e-5}  # a float16's rounding, beside that of float32 sums
LNC = np.log(5)

NETWORKS = pytest.mark.parametrize(
    ("multiple", "align_corners", "size"),
    [(4, False, (44, 64)), (16, False, None), (16, True, None), (32, True, (36, 50)), (32, False, (90, 140))],
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many in each image, cut anywhere."""
    monkeypatch.setattr(upsampling, "CACHED_VALUES", 5 * 13 * 13)


def domain(output: Output) -> Tensor:
    """Logits on a coarse grid that covers the image without its margin."""
    picture = output.upsample(output.to_classes())
    return F.adaptive_avg_pool2d(picture[:, :1] - picture[:, 1:2], (3, 4))


def asked(dataset: Held, folder: Path, network: dict[str, Any], partition: Partition, columns: Any) -> RegionTable:
    regions = None
    if isinstance(partition, Superpixels):
        regions = make(dataset, folder / "regions", SuperpixelConfig(number=12))
    look = Look(tuple(columns), partition, regions, domain=domain)
    return survey(Small(**network), dataset, folder / "table", look, device="cpu", identity={})


def maps(dataset: Held, index: int, network: dict[str, Any]) -> dict[str, np.ndarray]:
    """Everything of an image at the size of its file: (H,W) or (K,H,W) float64."""
    image = dataset.images[index]
    height, width = image.shape[:2]
    picture = image if dataset.size is None else resize_image(image, dataset.size)
    model = Small(**network).eval()
    align_corners, multiple = network["align_corners"], network["multiple"]
    with torch.no_grad():
        output = model(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].contiguous().float() / 255)
        told = torch.sigmoid(domain(output).double())
    seen = picture.shape[:2]
    padded = [-(-side // multiple) * multiple for side in seen]
    whole = (round(padded[0] * height / seen[0]), round(padded[1] * width / seen[1]))

    def up(values: Tensor) -> Tensor:
        larger = F.interpolate(values.double(), whole, mode="bilinear", align_corners=align_corners)
        return larger[0, :, :height, :width]

    p = up(output.logits).softmax(0).numpy()
    ordered = np.sort(p, 0)
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    return {
        "prob": p,
        "entropy": -(p * np.log(p)).sum(0) / LNC,
        "margin": ordered[-1] - ordered[-2],
        "confidence": ordered[-1],
        "embedding": up(output.embedding).numpy(),
        "domain_prob": F.interpolate(told, (height, width), mode="bilinear")[0, 0].numpy(),
        "edge": (cv2.Canny(grey, 50, 150) > 0).astype(float),
        "predicted": p.argmax(0),
    }


def disorder(predicted: np.ndarray) -> float:
    share = np.array([(predicted == c).mean() for c in range(5)])
    return float(-sum(s * np.log(s) for s in share if s > 0) / LNC)


def compare(table: RegionTable, row: int, full: dict[str, np.ndarray], mask: np.ndarray, label: np.ndarray) -> None:
    assert table.area_px[row] == mask.sum()
    assert table.ignored_px[row] == (mask & (label == IGNORE)).sum()
    means = {name: full[name][..., mask].mean(-1) for name in MEANS}
    assert table.predicted[row] == means["prob"].argmax()
    for name in MEANS:
        np.testing.assert_allclose(table.statistic(name)[row], means[name], **HALF, err_msg=name)


@NETWORKS
@pytest.mark.parametrize("partition", [Superpixels(), WholeImage()])
def test_statistics_of_regions(
    partition: Partition, multiple: int, align_corners: bool, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    dataset, network = Held(size=size), {"multiple": multiple, "align_corners": align_corners}
    table = asked(dataset, tmp_path, network, partition, COLUMNS)
    assert table.images == tuple(dataset.ids)
    assert table.names == sorted(COLUMNS)
    row = 0
    for index, image_id in enumerate(dataset.ids):
        full = maps(dataset, index, network)
        regions = np.zeros(dataset.labels[index].shape, int)
        if isinstance(partition, Superpixels):
            regions = Regions(tmp_path / "regions").read(image_id)
        for region in range(regions.max() + 1):
            mask = regions == region
            assert (table.image[row], table.region[row]) == (index, region)
            compare(table, row, full, mask, dataset.labels[index])
            np.testing.assert_allclose(table.statistic("entropy")[row], full["entropy"][mask].mean(), **HALF)
            np.testing.assert_allclose(table.statistic("impurity")[row], disorder(full["predicted"][mask]), **HALF)
            row += 1
    assert row == len(table) > 2


@NETWORKS
@pytest.mark.parametrize("partition", [Windows(radius_px=1), Windows(radius_px=4, label_px=0, most=30)])
def test_statistics_of_windows(
    partition: Windows, multiple: int, align_corners: bool, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    """Squares are what the ids say; impurity and entropy are of the window that is scored."""
    dataset, network = Held((45, 70), (52, 61), size=size), {"multiple": multiple, "align_corners": align_corners}
    table = asked(dataset, tmp_path, network, partition, COLUMNS)
    k, label_px = partition.radius_px, partition.radius_px if partition.label_px is None else partition.label_px
    for index in range(2):
        full, mine = maps(dataset, index, network), np.flatnonzero(table.image == index)
        shape = full["predicted"].shape
        scores = {}
        for y, x in np.ndindex(shape):
            window = slice(max(y - k, 0), y + k + 1), slice(max(x - k, 0), x + k + 1)
            scores[y * shape[1] + x] = disorder(full["predicted"][window]), full["entropy"][window].mean()
        for row in mine:
            y, x = divmod(int(table.region[row]), shape[1])
            mask = np.zeros(shape, bool)
            mask[max(y - label_px, 0) : y + label_px + 1, max(x - label_px, 0) : x + label_px + 1] = True
            compare(table, int(row), full, mask, dataset.labels[index])
            impurity, entropy = scores[int(table.region[row])]
            np.testing.assert_allclose(table.statistic("impurity")[row], impurity, **HALF)
            np.testing.assert_allclose(table.statistic("entropy")[row], entropy, **HALF)
        best = max(scores, key=lambda centre: scores[centre][0] * scores[centre][1])
        assert best in table.region[mine]


def test_only_what_is_asked_is_stored_and_nothing_depends_on_the_rest(tmp_path: Path) -> None:
    network = {"multiple": 16, "align_corners": False}
    whole = asked(Held(), tmp_path / "all", network, Superpixels(), COLUMNS)
    for name in COLUMNS:
        alone = asked(Held(), tmp_path / name, network, Superpixels(), (name,))
        assert alone.names == [name]
        np.testing.assert_array_equal(alone.statistic(name), whole.statistic(name))
        np.testing.assert_array_equal(alone.predicted, whole.predicted)
