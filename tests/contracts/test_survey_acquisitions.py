"""What every registered acquisition reads, a survey of scenes fills; then it ranks, and a round is bought."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.toys import Toy
from segue.acquire import ACQUISITIONS, Partition, Superpixels, WholeImage, Windows, build_acquisition, walk
from segue.acquire.table import LOG_DENSITIES
from segue.config import DatasetConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.regions import SuperpixelConfig, make
from segue.labels import load_space
from segue.survey import DensitiesConfig, Look, fill_densities, survey

SPACE = load_space("street7")
PARTITIONS: dict[str, Partition] = {"superpixels": Superpixels(), "image": WholeImage()}


def opened(name: str, root: Path) -> Dataset:
    dataset = {"game": "gta5", "city": "cityscapes"}[name]
    return open_dataset(name, DatasetConfig(dataset=dataset, root=root / name, limit=4), "train", SPACE)


@pytest.mark.parametrize("name", ACQUISITIONS.names())
def test_a_survey_fills_what_an_acquisition_reads(name: str, scene_data: Path, tmp_path: Path) -> None:
    acquisition = build_acquisition({"name": name})
    windows = Windows(**getattr(acquisition, "windows", Windows()).model_dump(exclude={"most"}), most=12)
    partition = PARTITIONS.get(acquisition.partition, windows)
    dense = bool(set(LOG_DENSITIES) & set(acquisition.needs))
    columns = (*(n for n in acquisition.needs if n not in LOG_DENSITIES), *(["embedding"] if dense else []))
    tables, model = {}, Toy(classes=len(SPACE))
    for data in ("city", "game") if dense or "source" in acquisition.reads else ("city",):
        dataset = opened(data, scene_data)
        regions = None
        if isinstance(partition, Superpixels):
            regions = make(dataset, tmp_path / f"regions_{data}", SuperpixelConfig(number=20))
        look = Look(columns, partition, regions, domain=lambda o: F.avg_pool2d(o.upsample(o.logits)[:, :1], 32))
        tables[data] = survey(model, dataset, tmp_path / data, look, device="cpu", identity={})
    pool = tables["city"]
    if dense:
        config, draws = DensitiesConfig(dimensions=2), torch.Generator().manual_seed(0)
        pool, _ = fill_densities(tmp_path / "city", tables["game"], config, draws)
    assert set(acquisition.needs) <= set(pool.names)
    budget_px = int(pool.cost_px.sum() // 3)
    empty = pool.take([])
    order = acquisition.rank(pool, empty, tables.get("game", empty), budget_px, np.random.default_rng(0))
    bought = walk(order, pool, budget_px)
    assert len(set(bought.rows)) == len(bought.rows) > 0
    assert bought.labelled_px >= budget_px > bought.labelled_px - pool.cost_px[bought.rows[-1]]
