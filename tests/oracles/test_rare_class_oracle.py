"""Rare class sampling against the published pixel totals and the probabilities that follow from them.

The totals are those of the statistics files that VFM-UDA++ ships for Cityscapes, SYNTHIA and ACDC (train); the
probabilities are DAFormer's formula at its temperature of 0.01, to the digits given.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.miniatures import make
from segue.config import DatasetConfig, RareClassConfig
from segue.data.dataset import open_dataset
from segue.data.sampling import RareOrder, probabilities
from segue.data.statistics import class_pixels
from segue.labels import load_space

SPACE = load_space("cityscapes19")
TOTALS = {
    "cityscapes": {
        0: 2036416525, 1: 336090793, 2: 1260636120, 3: 36199498, 4: 48454166, 5: 67789506, 6: 11477088, 7: 30448193,
        8: 879783988, 9: 63949536, 10: 221979646, 11: 67326424, 12: 7463162, 13: 386328286, 14: 14772328, 15: 12990290,
        16: 12863955, 17: 5449152, 18: 22861233,
    },
    "synthia": {
        0: 1649822552, 1: 1796774124, 2: 2684148181, 3: 23665508, 4: 24576213, 5: 95487082, 6: 3800553, 7: 9759128,
        8: 950722944, 10: 633876892, 11: 390711925, 12: 43147132, 13: 376979506, 15: 129164165, 17: 18669401,
        18: 19245847,
    },
    "acdc": {
        0: 612383032, 1: 169634678, 2: 546182752, 3: 44721879, 4: 49322963, 5: 31199095, 6: 6173337, 7: 10616987,
        8: 544245151, 9: 46674658, 10: 898950297, 11: 3789095, 12: 632739, 13: 62828688, 14: 9224602, 15: 6814259,
        16: 13620141, 17: 896702, 18: 1752693,
    },
}  # fmt: skip
GOLDEN = {
    "cityscapes": {
        0: 1.21e-17, 1: 2.833e-4, 2: 1.523e-11, 3: 0.06461, 4: 0.05175, 5: 0.03647, 6: 0.1011, 7: 0.0717, 8: 1.504e-8,
        9: 0.03909, 10: 2.236e-3, 11: 0.03678, 12: 0.1087, 13: 1.141e-4, 14: 0.09523, 15: 0.09836, 16: 0.09858,
        17: 0.1127, 18: 0.08226,
    },
    "synthia": {
        0: 1.293e-9, 1: 2.458e-10, 2: 1.087e-14, 3: 0.1234, 4: 0.1221, 5: 0.0548, 6: 0.1544, 7: 0.1443, 8: 3.484e-6,
        10: 1.25e-4, 11: 1.95e-3, 12: 0.09899, 13: 2.278e-3, 15: 0.03745, 17: 0.1305, 18: 0.1297,
    },
}  # fmt: skip


def dense(name: str) -> np.ndarray:
    return np.array([TOTALS[name].get(c, 0) for c in range(19)], np.float64)


@pytest.mark.parametrize("name", GOLDEN)
def test_probabilities_are_the_published_ones(name: str) -> None:
    got = probabilities(dense(name), 0.01)
    assert got.sum() == pytest.approx(1)
    for c in range(19):
        # four digits are given, so half of the last one is the tolerance
        assert got[c] == pytest.approx(GOLDEN[name].get(c, 0), rel=4e-3 if c == 0 else 6e-4), SPACE.classes[c]


@pytest.mark.parametrize("name", TOTALS)
def test_all_classes_alike_at_infinite_temperature(name: str) -> None:
    got = probabilities(dense(name), float("inf"))
    assert got[list(TOTALS[name])].tolist() == [1 / len(TOTALS[name])] * len(TOTALS[name])
    assert got.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", GOLDEN)
def test_an_order_sums_over_images_and_leaves_out_what_does_not_occur(name: str) -> None:
    half = (dense(name) // 2).astype(np.uint32)
    pixels = np.stack([half, dense(name).astype(np.uint32) - half])
    order = RareOrder([pixels], None, RareClassConfig(), SPACE, (0,))
    assert order.classes == list(TOTALS[name]) and order.left_out == []
    assert order.probabilities == pytest.approx(probabilities(dense(name), 0.01)[order.classes])


@pytest.mark.parametrize("name", ["cityscapes", "synthia"])
def test_totals_arrive_through_a_published_file(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    config = DatasetConfig(dataset=name, root=tmp_path)
    dataset = open_dataset(name, config, "train")
    labels = [str(dataset.files(i)[1]) for i in range(len(dataset))]
    names = [label.rsplit(".", 1)[0].removesuffix("_labelIds").removesuffix("_labelTrainIds") for label in labels]
    parts = np.array_split(np.array(list(TOTALS[name].items()), np.int64), len(names))
    rows = [
        {**{str(c): int(n) for c, n in part}, "file": f"{label}_labelTrainIds.png"}
        for part, label in zip(parts, names, strict=True)
    ]
    (tmp_path / "sample_class_stats.json").write_text(json.dumps(rows, indent=2))
    pixels = class_pixels(dataset, config, say=len)
    assert pixels.sum(0, dtype=np.uint64).tolist() == dense(name).astype(np.uint64).tolist()
