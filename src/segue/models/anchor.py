"""What a model keeps of the images that it was trained on, so that no image has to be kept: its anchor.

One pass over labelled source images collects, in the model's embedding: for each class how many cells there were, their
mean and covariance (to sample embeddings from, as in SLCA, Zhang et al., ICCV 2023), the K-means centres of its mean
in each image (the prototypes of MoP), and the running statistics of all norm layers; and of the images the style
(``segue.models.style``). Sums are in float64. A cell has the class of the pixel at its centre.

The covariance of a class is kept as F F' + diag(d): F are its eigenvectors times the roots of their eigenvalues, all of
them (then d = 0) up to 256 channels, the 64 largest beyond; knob ``rank``. While it is made C D^2 numbers of 8 bytes
are held: 638 MB for 19 classes and 2048 channels. It lies beside the weights as ``anchor.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segue.data.copies import spread
from segue.data.dataset import Dataset
from segue.errors import UserError
from segue.files import replacing
from segue.labels import IGNORE, U8, LabelSpace
from segue.models.base import Output, SegModel
from segue.models.classify import evaluating, to_input
from segue.models.style import Style, noted, style_layer
from segue.models.trained import BATCH_NORM

FILE = "anchor.safetensors"
KEY = "anchor"
WHOLE_CHANNELS = 256
"""Embeddings up to this width keep whole covariances by default."""
RANK = 64
PROTOTYPES = 8
NORM = "norm."


class AnchorError(UserError):
    """An anchor that cannot be made, read or used."""


@dataclass(frozen=True)
class Anchor:
    """C classes, D channels of the embedding, R directions of variance, K prototypes of each class.

    ``count`` (C,) int64 cells; ``mean`` (C,D); ``factor`` (C,D,R) and ``diagonal`` (C,D): the covariance;
    ``prototypes`` (C,K,D), repeated where a class has fewer, 0 where ``count`` is 0; ``style`` of the images, at module
    ``layer``; ``norms``: running mean and variance of every norm layer by its name; ``images``: how many there were.
    """

    classes: tuple[str, ...]
    count: Tensor
    mean: Tensor
    factor: Tensor
    diagonal: Tensor
    prototypes: Tensor
    style: Style
    layer: str
    images: int
    norms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def known(self) -> Tensor:
        """(C,) bool: classes that the images showed."""
        return self.count > 0

    @cached_property
    def spread(self) -> Tensor:
        """(D,) standard deviation of an embedding within its class, the mean over known classes."""
        variance = self.factor.square().sum(2) + self.diagonal
        return variance[self.known].mean(0).sqrt().clamp_min(1e-6)

    def covariance(self) -> Tensor:
        """(C,D,D)."""
        return self.factor @ self.factor.mT + torch.diag_embed(self.diagonal)

    def sample(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Embeddings (n,D) of classes (n,), from their normal distributions; drawn on the CPU."""
        classes = classes.cpu()
        shared = torch.randn(len(classes), self.factor.shape[2], generator=generator)
        own = torch.randn(len(classes), self.mean.shape[1], generator=generator)
        out = self.mean[classes] + own * self.diagonal[classes].sqrt()
        for number in sorted(set(classes.tolist())):
            rows = classes == number
            out[rows] += shared[rows] @ self.factor[number].T
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""
        own = {name: getattr(self, name) for name in ("count", "mean", "factor", "diagonal", "prototypes")}
        style = {f"style.{name}": getattr(self.style, name) for name in ("mean", "std", "radius")}
        return own | style | {f"{NORM}{name}": value for name, value in self.norms.items()}

    def describe(self) -> dict[str, Any]:
        """What model.json says of it, as plain values; ``bytes`` are those of the tensors."""
        return {
            "file": FILE,
            "bytes": sum(value.nbytes for value in self.tensors().values()),
            "images": self.images,
            "classes": list(self.classes),
            "cells": self.count.tolist(),
            "embedding": self.mean.shape[1],
            "rank": self.factor.shape[2],
            "prototypes": self.prototypes.shape[1],
            "layer": self.layer,
        }


def write_anchor(folder: Path, anchor: Anchor) -> None:
    """Write ``anchor.safetensors`` into a folder, whole or not at all."""
    head = {"classes": list(anchor.classes), "layer": anchor.layer, "images": anchor.images}
    tensors = {name: value.detach().cpu().contiguous() for name, value in anchor.tensors().items()}
    with replacing(folder / FILE) as temporary:
        save_file(tensors, str(temporary), {KEY: json.dumps(head)})


def read_anchor(folder: Path) -> Anchor | None:
    """The anchor in a model folder, None without one; ``AnchorError`` when it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            head = json.loads(file.metadata()[KEY])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        style = Style(*(found.pop(f"style.{name}") for name in ("mean", "std", "radius")))
        norms = {name.removeprefix(NORM): found.pop(name) for name in [*found] if name.startswith(NORM)}
        anchor = Anchor(
            tuple(head["classes"]), **found, style=style, layer=head["layer"], images=head["images"], norms=norms
        )
        _check_shapes(anchor)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise AnchorError(f"cannot read {path}: {error}; delete it and make it again (segue anchor)") from error
    return anchor


def _check_shapes(anchor: Anchor) -> None:
    classes, channels = len(anchor.classes), anchor.mean.shape[-1]
    fit = {
        "count": anchor.count.shape == (classes,),
        "mean": anchor.mean.shape == (classes, channels),
        "factor": anchor.factor.ndim == 3 and anchor.factor.shape[:2] == (classes, channels),
        "diagonal": anchor.diagonal.shape == (classes, channels),
        "prototypes": anchor.prototypes.ndim == 3 and anchor.prototypes.shape[::2] == (classes, channels),
        "style": anchor.style.mean.shape == anchor.style.std.shape and anchor.style.radius.ndim == 0,
    }
    if wrong := [name for name, holds in fit.items() if not holds]:
        raise ValueError(f"tensors of a wrong shape: {', '.join(wrong)}")


class Moments:
    """Sums over the cells of each class: C classes, D channels."""

    def __init__(self, classes: int, channels: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.int64)
        self.sum = torch.zeros(classes, channels, dtype=torch.float64)
        self.product = torch.zeros(classes, channels, channels, dtype=torch.float64)
        self.image_means: list[list[Tensor]] = [[] for _ in range(classes)]
        self.styles: list[Tensor] = []

    def add(self, embedding: Tensor, label: Tensor, style: Tensor) -> None:
        """One image: embedding (D,h,w), the class of every cell (h,w), style vector (F,)."""
        rows, classes = embedding.flatten(1).T.double().cpu(), label.flatten().cpu()
        for number in range(len(self.count)):
            own = rows[classes == number]
            if not len(own):
                continue
            total = own.sum(0)
            self.count[number] += len(own)
            self.sum[number] += total
            self.product[number].addmm_(own.T, own)
            self.image_means[number].append((total / len(own)).float())
        self.styles.append(style.cpu())

    def mean(self) -> Tensor:
        """(C,D) float64; 0 for a class without cells."""
        return self.sum / self.count.clamp_min(1).unsqueeze(1)

    def covariance(self, number: int) -> Tensor:
        """(D,D) float64 of a class, divided by its number of cells."""
        cells = self.count[number].clamp_min(1)
        mean = self.sum[number] / cells
        return self.product[number] / cells - mean.outer(mean)


def make_anchor(
    model: SegModel,
    dataset: Dataset,
    labels: LabelSpace,
    *,
    device: torch.device | None = None,
    batch_size: int = 1,
    limit: int | None = None,
    rank: int | None = None,
    prototypes: int = PROTOTYPES,
    progress: Callable[[int, int], object] | None = None,
) -> Anchor:
    """The anchor of ``model`` (moved to ``device``) on labelled images, all or ``limit`` evenly spaced ones.

    ``rank``: directions kept of each covariance; ``prototypes``: most centres a class. ``AnchorError`` when there are
    fewer than 4 images or none with a label of ``labels``.
    """
    chosen = looked_at(dataset, limit)
    model = model if device is None else model.to(device)
    layer = style_layer(model)
    moments: Moments | None = None
    done = 0
    for images, targets in _batches(dataset, chosen, batch_size):
        output, styles = _seen(model, layer, images)
        if moments is None:
            moments = Moments(len(labels), output.embedding.shape[1])
        for number, target in enumerate(targets):
            moments.add(output.embedding[number], cell_labels(target, output), styles[number])
        done += len(images)
        if progress:
            progress(done, len(chosen))
    assert moments is not None
    if not moments.count.any():
        raise AnchorError(f"data set {dataset.name!r} has no pixel of any class of {labels.name!r}: nothing to keep")
    return _anchor(model, moments, labels, layer, rank, prototypes)


def looked_at(dataset: Dataset, limit: int | None) -> list[int]:
    """The images that an anchor is made of; ``UserError`` when one has no label or there are fewer than 4."""
    dataset.require_labels()
    chosen = spread(range(len(dataset)), len(dataset) if limit is None else limit)
    if len(chosen) < 4:
        raise AnchorError(f"an anchor needs at least 4 images, {dataset.name!r} gives {len(chosen)}")
    return chosen


def blank_anchor(model: SegModel, labels: LabelSpace) -> Anchor:
    """The anchor of no image, of the right sizes: for plans and checks, where the stage that makes it has not run."""
    layer = style_layer(model)
    output, styles = _seen(model, layer, [np.zeros((64, 64, 3), np.uint8)])
    classes, channels = len(labels), output.embedding.shape[1]
    return Anchor(
        classes=labels.classes,
        count=torch.ones(classes, dtype=torch.int64),
        mean=torch.zeros(classes, channels),
        factor=torch.zeros(classes, channels, 1),
        diagonal=torch.ones(classes, channels),
        prototypes=torch.zeros(classes, 1, channels),
        style=Style(styles[0], torch.ones_like(styles[0]), torch.tensor(1.0)),
        layer=layer,
        images=1,  # it counts as known
    )


def cell_labels(label: U8, output: Output) -> Tensor:
    """Train id (h,w) int64 of the pixel at the centre of each cell of an output's embedding, 255 in its margin.

    ``label`` (H',W') may have another resolution than the image.
    """
    places = []
    grid = output.embedding.shape[-2:]
    for cells, side, padded, pixels in zip(grid, output.size, output.padded, label.shape, strict=True):
        cell = np.arange(cells)
        at = (
            cell * ((padded - 1) / max(cells - 1, 1)) if output.align_corners else (cell + 0.5) * (padded / cells) - 0.5
        )
        centre = np.floor(at + 0.5)
        index = ((centre + 0.5) * (pixels / side)).astype(np.int64)
        places.append((index.clip(0, pixels - 1), centre < side))
    (rows, in_rows), (columns, in_columns) = places
    found = label[np.ix_(rows, columns)]
    return torch.from_numpy(np.where(np.logical_and.outer(in_rows, in_columns), found, IGNORE).astype(np.int64))


@torch.no_grad()
def _seen(model: SegModel, layer: str, images: list[U8]) -> tuple[Output, Tensor]:
    with evaluating(model), noted(model.get_submodule(layer)) as styles:
        output: Output = model(to_input(images, model.mean.device))
    return output, styles[0]


def _batches(dataset: Dataset, chosen: list[int], size: int) -> Iterator[tuple[list[U8], list[U8]]]:
    """Images of one size, as they are scored, with their labels."""
    images: list[U8] = []
    labels: list[U8] = []
    for index in chosen:
        image, label = dataset.read_scored(index)
        if images and (len(images) == size or image.shape != images[0].shape):
            yield images, labels
            images, labels = [], []
        images.append(image)
        labels.append(label)
    if images:
        yield images, labels


def _anchor(model: SegModel, sums: Moments, labels: LabelSpace, layer: str, rank: int | None, most: int) -> Anchor:
    channels = sums.sum.shape[1]
    kept = rank or (channels if channels <= WHOLE_CHANNELS else RANK)
    factor, diagonal = _factorised(sums, min(kept, channels))
    return Anchor(
        classes=labels.classes,
        count=sums.count,
        mean=sums.mean().float(),
        factor=factor,
        diagonal=diagonal,
        prototypes=_prototypes(sums.image_means, channels, most),
        style=Style.fit(torch.stack(sums.styles)),
        layer=layer,
        images=len(sums.styles),
        norms=dict(_norm_statistics(model)),
    )


def _factorised(sums: Moments, rank: int) -> tuple[Tensor, Tensor]:
    """Of every class's covariance the largest ``rank`` directions (C,D,R) and the variance (C,D) that these lack."""
    factors, rests = [], []
    for own in map(sums.covariance, range(len(sums.count))):  # one at a time: each is large
        values, vectors = torch.linalg.eigh(own)
        factor = vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()
        whole = rank == len(own)
        rests.append(torch.zeros_like(values) if whole else (own.diagonal() - factor.square().sum(1)).clamp_min(0))
        factors.append(factor)
    return torch.stack(factors).float(), torch.stack(rests).float()


def _prototypes(image_means: list[list[Tensor]], channels: int, most: int) -> Tensor:
    """(C,K,D): K-means of every class's means in images, its centres again and again where it has fewer."""
    from sklearn.cluster import KMeans  # half a second, and everything that loads a model imports this file

    number = min(most, max(map(len, image_means)))
    out = torch.zeros(len(image_means), number, channels)
    for row, means in zip(out, image_means, strict=True):
        if means:
            points = torch.stack(means).double().numpy()
            distinct = min(number, len(np.unique(points, axis=0)))
            centres = KMeans(distinct, n_init=4, random_state=0).fit(points).cluster_centers_
            row.copy_(torch.from_numpy(centres)[torch.arange(number) % distinct])
    return out


def _norm_statistics(model: SegModel) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        if isinstance(module, BATCH_NORM) and module.running_mean is not None and module.running_var is not None:
            yield f"{path}.mean", module.running_mean.detach().cpu().clone()
            yield f"{path}.var", module.running_var.detach().cpu().clone()
