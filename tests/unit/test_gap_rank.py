"""Images ordered by their distance to a reference, as a file that published ones are read like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segue.config import DatasetConfig
from segue.data.buckets import read_ranking
from segue.data.dataset import open_dataset
from segue.gap.between import ImageSet, fingerprint_of
from segue.gap.distances import emd
from segue.gap.errors import GapError
from segue.gap.fingerprint import Histogram, count
from segue.gap.networks import Extractor, open_network
from segue.gap.rank import rank_images


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return open_network("timm:test_resnet@random", layers=[r"layer[13]\.0"])


def images(root: Path, name: str, split: str = "train", **settings: object) -> ImageSet:
    config = DatasetConfig.model_validate({"root": root, **settings})
    return ImageSet(open_dataset(name, config, split), (64, 96), batch_size=4)


@pytest.fixture(scope="module")
def reference(extractor: Extractor, scene_data: Path) -> Histogram:
    found = fingerprint_of(extractor, images(scene_data / "game", "gta5"), bins=100)
    assert isinstance(found, Histogram)
    return found


def test_a_ranking_holds_the_distances_of_one_image_fingerprints(
    extractor: Extractor, reference: Histogram, scene_data: Path, tmp_path: Path
) -> None:
    city = images(scene_data / "city", "cityscapes", "val")
    rank_images(extractor, reference, city).write(tmp_path / "rank.json")
    ranking = read_ranking(tmp_path / "rank.json")
    assert sorted(ranking.images) == [city.dataset.files(i)[0].path for i in range(6)]  # type: ignore[union-attr]
    assert not ranking.validation.any()
    assert set(ranking.values) == {"gap", "gap_layer1.0", "gap_layer3.0"}
    assert (np.diff(ranking.values["gap"]) >= 0).all()
    assert reference.ranges is not None
    by_path = dict(zip(ranking.images, range(6), strict=True))
    for index in range(6):
        own = count(
            extractor.probe, reference.ranges, [extractor.batch([city.dataset.read_image(index)], (64, 96))], 100
        )
        expected = emd(own, reference)
        place = by_path[city.dataset.files(index)[0].path]  # type: ignore[union-attr]
        assert ranking.values["gap"][place] == pytest.approx(expected.number, rel=1e-6)
        for layer, value in expected.layers.items():
            assert ranking.values[f"gap_{layer}"][place] == pytest.approx(value, rel=1e-6)


def test_the_sources_own_images_come_first(extractor: Extractor, reference: Histogram, scene_data: Path) -> None:
    own = rank_images(extractor, reference, images(scene_data / "game", "gta5")).distances.numbers
    other = rank_images(extractor, reference, images(scene_data / "city", "cityscapes")).distances.numbers
    assert own.median() < other.median()


def test_equal_images_keep_their_order_and_a_limit_spreads(
    extractor: Extractor, reference: Histogram, scene_data: Path
) -> None:
    city = images(scene_data / "city", "cityscapes")
    ranked = rank_images(extractor, reference, ImageSet(city.dataset, (64, 96), limit=3))
    assert ranked.images == tuple(city.dataset.files(i)[0].path for i in (0, 2, 4))  # type: ignore[union-attr]
    ranked.distances.numbers[:] = torch.tensor([2.0, 1.0, 2.0])
    assert ranked.order == [1, 0, 2]


def test_references_that_images_cannot_be_ranked_by(
    extractor: Extractor, reference: Histogram, scene_data: Path
) -> None:
    city = images(scene_data / "city", "cityscapes")
    with pytest.raises(GapError, match="count it again"):
        rank_images(open_network("timm:test_resnet@random", seed=1), reference, city)
    with pytest.raises(GapError, match="does not tell its ranges"):
        rank_images(extractor, Histogram(reference.network, 6, reference.counts), city)
    with pytest.raises(GapError, match=r"no layer layer2\.0"):
        rank_images(open_network("timm:test_resnet@random"), reference, city)
