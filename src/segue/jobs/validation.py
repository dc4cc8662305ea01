"""Scores while training: every process scores its share of the images, and the counts are added up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from segue.config import EvaluateConfig
from segue.data.dataset import Dataset
from segue.data.subset import Subset
from segue.hardware import Hardware
from segue.labels import LabelSpace
from segue.models.base import SegModel
from segue.scoring import score
from segue.scoring.matrix import Confusion


def validate(
    model: SegModel, datasets: Mapping[str, Dataset], labels: LabelSpace, given: EvaluateConfig, hardware: Hardware
) -> dict[str, float]:
    """mIoU of each data set in the first view, the same on every process."""
    scores = {}
    with _statistics_of_rank_0(model, hardware):
        for text, dataset in datasets.items():
            share = Subset(dataset, hardware.rank, hardware.world)
            counts = Confusion(len(labels)).counts
            if share.ids:
                result = score.evaluate(
                    model,
                    share,
                    labels,
                    device=hardware.device,
                    batch_size=given.batch_size,
                    views=given.views,
                )
                counts = result.confusion.counts
            total = hardware.total(torch.from_numpy(counts)).numpy()
            scores[text] = Confusion(len(labels), total).scores(labels, given.views[0]).miou
    return scores


@contextmanager
def _statistics_of_rank_0(model: SegModel, hardware: Hardware) -> Iterator[None]:
    """Plain batch norm has seen other images on every process; the checkpoint holds the statistics of the first."""
    if hardware.world == 1:
        yield
        return
    own = [buffer.clone() for buffer in model.buffers()]
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    try:
        yield
    finally:
        for buffer, values in zip(model.buffers(), own, strict=True):
            buffer.copy_(values)
