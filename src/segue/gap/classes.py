"""Fingerprints by class: every position of a layer counts for the class that a model of ours predicts there.

A position is a cell of the layer's grid over the padded image, and its class that of the nearest cell of the model's
own logits, with no interpolation. One histogram a class costs as much memory as one of all positions, so there are 64
bins and the layers are to be chosen; :func:`planned_bytes` says what it takes before anything is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.gap.between import ImageSet
from segue.gap.distances import Distance, emd
from segue.gap.errors import GapError
from segue.gap.fingerprint import Histogram, check_neurons
from segue.gap.layers import Probe
from segue.gap.networks import Extractor
from segue.gap.ranges import Ranges, measure
from segue.labels import LabelSpace
from segue.models.base import Output, SegModel
from segue.ops.fingerprint import add_counts

BINS = 64
MOST_PREFIX = 8
"""Class and register tokens before the patches of a transformer."""

TABLES = 5
"""Counts of A and of its two halves, and the summed shares of these: what is held at once at most."""

ByClass = dict[str, Histogram]


def planned_bytes(neurons: int, classes: int, bins: int = BINS) -> int:
    """Memory that a gap by class takes: counts of A, of its halves and their shares, 8 bytes each (1 class: of all)."""
    return TABLES * 8 * neurons * classes * bins


def require_model(extractor: Extractor) -> tuple[SegModel, LabelSpace]:
    """The model that predicts classes; ``GapError`` for a network that predicts none."""
    if extractor.model is None or extractor.labels is None:
        raise GapError("fingerprints by class need a trained model of ours: give its folder as the network")
    return extractor.model, extractor.labels


def count_classes(extractor: Extractor, ranges: Ranges, batches: Iterable[Tensor], bins: int = BINS) -> ByClass:
    """A histogram of every class of the model's label space, empty ones too, so that shards add up.

    ``GapError`` for a network that predicts no classes, other ranges, and a layer whose positions are no grid over the
    image.
    """
    model, labels = require_model(extractor)
    if ranges.network != extractor.identity:
        raise GapError(f"the ranges are those of {ranges.network}, the network is {extractor.identity}")
    ranges = ranges.only(extractor.probe.names)
    device = torch.device("cpu") if extractor.device.type == "mps" else extractor.device  # as the probe's values
    limits = {name: tuple(end.to(device) for end in ranges.limits(name)) for name in extractor.probe.names}
    shape = {name: (len(labels), len(low), bins) for name, (low, _) in limits.items()}
    counts = {name: torch.zeros(s, dtype=torch.int64, device=device) for name, s in shape.items()}
    told: list[Output] = []
    values: dict[str, Tensor] = {}
    probe = Probe(
        model,
        [re.escape(name) for name in extractor.probe.names],
        extractor.identity,
        ask=lambda images: told.append(model(images)),
        channels_last=extractor.probe.channels_last,
        whole=True,
    )
    number = 0
    for images in batches:
        # Copies: what comes after a layer may write over its output.
        number += probe.run([images], lambda name, seen: values.__setitem__(name, seen.clone()))
        output = told.pop()
        ids = output.to_classes().argmax(1).to(device)
        for name, (low, high) in limits.items():
            check_neurons(name, values[name].shape[1], len(low))
            own, at = _placed(name, values[name], ids, probe.grids[name], output.padded)
            for k in torch.unique(at).tolist():
                add_counts(counts[name][k], own[:, at == k].unsqueeze(0), low, high)
        values.clear()
    if not number:
        raise GapError("no images: a fingerprint needs at least one")
    found = {name: table.cpu() for name, table in counts.items()}
    return {
        label: Histogram(extractor.identity, number, {name: table[k] for name, table in found.items()}, ranges)
        for k, label in enumerate(labels.classes)
    }


@dataclass(frozen=True)
class ClassGap:
    """Of every class the distance from A to B, the floor inside A, and its positions in A and B.

    A distance is None unless the class is in both, a floor unless it is in both halves of A.
    """

    distances: dict[str, Distance | None]
    floors: dict[str, Distance | None]
    positions: dict[str, tuple[int, int]]


def class_gap(extractor: Extractor, a: ImageSet, b: ImageSet, bins: int = BINS) -> ClassGap:
    """The gap of every predicted class in the ranges of A, and A's halves, as in :mod:`segue.gap.between`."""
    ranges = measure(extractor.probe, a.batches(extractor))
    first, floors = _halved(extractor, a, ranges, bins)
    second = count_classes(extractor, ranges, b.batches(extractor), bins)
    positions = {name: (_positions(first[name]), _positions(second[name])) for name in first}
    return ClassGap(class_distances(first, second), floors, positions)


def _halved(extractor: Extractor, a: ImageSet, ranges: Ranges, bins: int) -> tuple[ByClass, dict[str, Distance | None]]:
    chosen = a.indices
    first, *rest = [
        count_classes(extractor, ranges, a.batches(extractor, half), bins)
        for half in (chosen[::2], chosen[1::2])
        if half
    ]
    if not rest:
        return first, dict.fromkeys(first)
    return merge_classes(first, rest[0]), class_distances(first, rest[0])


def class_distances(a: ByClass, b: ByClass) -> dict[str, Distance | None]:
    """Earth mover's distance of every class; None where one of the two never predicts it."""
    return {name: emd(own, b[name]) if _counted(own) and _counted(b[name]) else None for name, own in a.items()}


def merge_classes(a: ByClass, b: ByClass) -> ByClass:
    """Both together, equal to one pass over all images."""
    return {name: own.merge(b[name]) for name, own in a.items()}


def _counted(histogram: Histogram) -> bool:
    return all(bool(counts.any()) for counts in histogram.counts.values())


def _positions(histogram: Histogram) -> int:
    return sum(int(counts[0].sum()) for counts in histogram.counts.values())


def _placed(
    name: str, values: Tensor, ids: Tensor, grid: tuple[int, int] | None, image: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Values (C,M) of all positions of all images, and the class of each (M,)."""
    positions = values.shape[2]
    grid = grid or _token_grid(name, positions, image)
    number = grid[0] * grid[1]
    at = F.interpolate(ids[:, None].float(), grid, mode="nearest-exact").long().flatten()
    return values[..., positions - number :].transpose(0, 1).flatten(1), at


def _token_grid(name: str, positions: int, image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens: those of a whole stride, after at most ``MOST_PREFIX`` that are no patches."""
    grids = [(-(-image[0] // stride), -(-image[1] // stride)) for stride in range(1, 65)]
    fitting = [grid for grid in grids if 0 <= positions - grid[0] * grid[1] <= MOST_PREFIX]
    if not fitting or positions == 1:
        raise GapError(
            f"layer {name} has {positions} positions, no grid over {image[0]}x{image[1]}: name another layer"
        )
    return max(fitting)
