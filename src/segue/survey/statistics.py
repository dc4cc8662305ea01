"""Statistics of the regions of one image from a model's output (their definitions: :mod:`segue.acquire.table`).

Embeddings are averaged on the network's own grid (:mod:`segue.ops.regions`). What is not linear in the logits (softmax,
entropy, …) is computed at the regions' resolution, tile by tile: of the C channels in full size only a tile exists. A
sum is taken over the regions that a tile can hold: with ids in raster order these are few, however many the image has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segue.labels import U8
from segue.models.base import Output
from segue.ops.precision import full
from segue.ops.regions import class_counts, pixel_sums, pooling
from segue.ops.upsampling import Tile, Upsampling, tiles

Size = tuple[int, int]

_OF_PIXELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": lambda p, log_p: -(p * log_p).sum(0) / math.log(len(p)),
    "margin": lambda p, log_p: _margin(p),
    "confidence": lambda p, log_p: p.amax(0),
}
PREDICTED = (*_OF_PIXELS, "prob", "impurity", "domain_prob", "embedding")
"""Statistics that a model is asked for."""


def region_means(
    output: Output, regions: Tensor, number: int, columns: Collection[str], domain: Tensor | None = None
) -> dict[str, Tensor]:
    """Those of :data:`PREDICTED` that ``columns`` names, and ``prob``, of an output for one image: (R,) or (R,K).

    ``regions`` (H,W) int64 on the output's device: ids 0..``number``-1, others are no region. ``domain`` (1,1,h,w):
    probabilities of "target" that cover the image without its margin. float64, an embedding float32; an area of 0
    gives 0.
    """
    names = [name for name in _OF_PIXELS if name in columns]
    classes, inside = output.num_classes, _domain_tile(domain, regions)
    sums = torch.zeros(number, classes + len(names) + (domain is not None), dtype=torch.float64, device=regions.device)
    counts = torch.zeros(number, classes, dtype=torch.int64, device=regions.device)
    for at, logits in upsampled(output, (regions.shape[0], regions.shape[1])):
        part = regions[at.rows, at.columns]
        low, high = int(torch.where(part < 0, number, part).min()), int(part.max())
        if high < 0:
            continue
        log_p = logits.log_softmax(0)
        p = log_p.exp()
        maps = [p, *(_OF_PIXELS[name](p, log_p).unsqueeze(0) for name in names), *inside(at)]
        own = slice(low, high + 1)
        sums[own] += pixel_sums(torch.cat(maps), part - low, high + 1 - low)
        if "impurity" in columns:
            counts[own] += class_counts(_winner(logits), part - low, high + 1 - low, classes)
    area = torch.bincount(regions.flatten().clamp(min=-1) + 1, minlength=number + 1)[1:]
    means = sums / area.clamp(min=1).unsqueeze(1)
    found = {"prob": means[:, :classes], **{name: means[:, classes + k] for k, name in enumerate(names)}}
    if domain is not None:
        found["domain_prob"] = means[:, -1]
    if "impurity" in columns:
        found["impurity"] = _disorder(counts)
    if "embedding" in columns:
        found["embedding"] = _embedding(output, regions, number)
    return found


def pixel_maps(output: Output, size: Size) -> tuple[U8, npt.NDArray[np.float32]]:
    """Predicted classes and entropy / ln C of the pixels of one image, both (H, W)."""
    predicted, entropy = np.empty(size, np.uint8), np.empty(size, np.float32)
    for at, logits in upsampled(output, size):
        predicted[at.rows, at.columns] = _winner(logits).to(torch.uint8).cpu().numpy()
        log_p = logits.log_softmax(0)
        entropy[at.rows, at.columns] = _OF_PIXELS["entropy"](log_p.exp(), log_p).cpu().numpy()
    return predicted, entropy


def upsampled(output: Output, size: Size) -> Iterator[tuple[Tile, Tensor]]:
    """The class logits of one image at ``size``, tile by tile: its place, and values (C,rows,columns)."""
    logits = full(output.to_classes()[0])
    upsampling = Upsampling(logits, output.covered(size), output.align_corners)
    for at in tiles(size, len(logits), logits.device):
        yield at, upsampling.tile(logits, at)


def edges(image: U8) -> npt.NDArray[np.bool_]:
    """Edges of an image (H, W, 3), true on them: Canny 50/150 after a 5x5 Gaussian on its grey levels, as in D2ADA."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    return np.asarray(cv2.Canny(grey, 50, 150)) > 0


def _winner(logits: Tensor) -> Tensor:
    return logits.max(0).indices  # a third of the time of argmax over the first axis


def _margin(p: Tensor) -> Tensor:
    best, winner = p.max(0, keepdim=True)
    return best[0] - p.scatter(0, winner, -1).amax(0)


def _disorder(counts: Tensor) -> Tensor:
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy / math.log(counts.shape[1])


def _embedding(output: Output, regions: Tensor, number: int) -> Tensor:
    maps = output.embedding[0]
    if not number:
        return maps.new_zeros(0, len(maps))
    covered = output.covered((regions.shape[0], regions.shape[1]))
    grid = (maps.shape[1], maps.shape[2])
    return pooling(regions, number, grid, covered, output.align_corners).means(maps)


def _domain_tile(domain: Tensor | None, regions: Tensor) -> Callable[[Tile], list[Tensor]]:
    if domain is None:
        return lambda at: []
    probability = full(domain[0])
    # One of its cells is a square of the picture, so there are no corners to align.
    upsampling = Upsampling(probability, (regions.shape[0], regions.shape[1]), align_corners=False)
    return lambda at: [upsampling.tile(probability, at)]
