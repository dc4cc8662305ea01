"""How a network is asked about a picture under a protocol, and its answer at full size, tile by tile.

Every forward pass leaves one term: scores on a small grid and two linear maps, one an axis, that carry them to the
label's size (crops, mirrors and chains of resizes are linear too). Tiles of the full size are made one at a time, so
with flips, scales, windows and several models no (C,H,W) array exists but the one sum that windows need.

One term: its logits decide. Several: the mean of their softmax probabilities does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from segue.data.images import resize_image
from segue.labels import IGNORE, U8
from segue.models.base import Output, SegModel
from segue.models.classify import classify, to_input
from segue.ops.resize import bilinear
from segue.ops.sliding import slide
from segue.scoring.protocols import Kernel, Protocol, Size

TILE_PX = 128  # side of a tile
WINDOWS = 4  # in one forward pass
TINY = 1e-38  # the smallest probability whose logarithm is taken

Mode = Literal["linear", "corners", "nearest"]


@dataclass(frozen=True)
class _Step:
    """A resize along one axis from ``old`` to ``new`` pixels, of which the first ``kept`` stay."""

    mode: Mode
    old: int
    new: int
    kept: int


@dataclass(frozen=True)
class _Block:
    """Output pixels ``start .. stop`` as ``weights`` times input pixels ``first .. last`` (None: the same pixels)."""

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor | None


@dataclass(frozen=True)
class Term:
    """Scores (C,h,w) of one forward pass and the way to full size along rows and columns."""

    values: Tensor
    rows: tuple[_Block, ...]
    columns: tuple[_Block, ...]
    probabilities: bool

    def tile(self, row: int, column: int) -> Tensor:
        """(C,b,d) scores of one tile."""
        down, across = self.rows[row], self.columns[column]
        x = self.values[:, down.first : down.last, across.first : across.last]
        x = x if across.weights is None else x @ across.weights.t()
        return x if down.weights is None else down.weights @ x


@dataclass(frozen=True)
class Tile:
    """A part of the image: its place, and scores (C,b,d) that are logits or probabilities."""

    place: tuple[slice, slice]
    values: Tensor
    probabilities: bool

    def log_probability(self, temperature: float = 1.0) -> Tensor:
        """(C,b,d) log-softmax of the scores divided by ``temperature``."""
        scores = self.log_scores() / temperature
        return scores if self.probabilities and temperature == 1 else scores.log_softmax(0)

    def log_scores(self) -> Tensor:
        """(C,b,d) logits, or logarithms of averaged probabilities."""
        return self.values.clamp_min(TINY).log() if self.probabilities else self.values


@dataclass(frozen=True)
class Answer:
    """What one or several networks say about one image of ``size``; ``kept``: train ids of the rows (None: all)."""

    terms: tuple[Term, ...]
    size: Size
    kept: tuple[int, ...] | None
    plain: Output | None = None
    """The output whose upsampled argmax is the answer, where the protocol asks for no more."""

    def tiles(self) -> Iterator[Tile]:
        """All parts of the image, from the top left."""
        first = self.terms[0]
        for r, down in enumerate(first.rows):
            for c, across in enumerate(first.columns):
                place = slice(down.start, down.stop), slice(across.start, across.stop)
                yield Tile(place, *self._values(r, c))

    def ids(self) -> U8:
        """(H,W) train ids: the argmax."""
        if self.plain is not None:
            out: U8 = classify(self.plain, self.size)[0].cpu().numpy()
        else:
            out = np.empty(self.size, np.uint8)
            for tile in self.tiles():
                out[tile.place] = tile.values.argmax(0).to(torch.uint8).cpu().numpy()
        if self.kept is None:
            return out
        table = np.full(IGNORE + 1, IGNORE, np.uint8)
        table[: len(self.kept)] = self.kept
        return np.asarray(cv2.LUT(out, table), np.uint8)

    def _values(self, row: int, column: int) -> tuple[Tensor, bool]:
        if len(self.terms) == 1:
            return self.terms[0].tile(row, column), self.terms[0].probabilities
        total: Tensor | None = None
        for term in self.terms:
            values = term.tile(row, column)
            values = values if term.probabilities else values.softmax(0)
            total = values.clone() if total is None else total.add_(values)
        assert total is not None
        return total.div_(len(self.terms)), True


def ask(
    model: SegModel, pictures: Sequence[U8], protocol: Protocol, size: Size, kept: tuple[int, ...] | None = None
) -> list[Answer]:
    """Answers for pictures (H,W,3) of one size, at ``size``; the model is in eval mode and no gradient is kept.

    ``kept``: train ids among which the network must choose, as if it had no other output.
    """
    terms: list[list[Term]] = [[] for _ in pictures]
    plain: Output | None = None
    alone = len(protocol.scales) == 1 and not (protocol.flip or protocol.window or protocol.through_input)
    for scale in protocol.scales:
        seen_size = protocol.input_size((pictures[0].shape[0], pictures[0].shape[1]), scale)
        image = _input(pictures, seen_size, protocol.kernel, model.mean.device)
        for flipped in (False, True) if protocol.flip else (False,):
            seen = image.flip(-1) if flipped else image
            if protocol.window is not None:
                values, axes = _windows(model, seen, protocol, kept, size)
            else:
                output = _chosen(model(seen), kept)
                values, axes = output.logits.float(), _axes(output, protocol, size)
                plain = output if alone and protocol.upsample == "model" else None
            rows, columns = (_axis(steps, flipped and n == 1, str(values.device)) for n, steps in enumerate(axes))
            averaged = protocol.window is not None and protocol.window.average == "probabilities"
            for own, value in zip(terms, values, strict=True):
                own.append(Term(value, rows, columns, averaged))
    return [
        Answer(tuple(own), size, kept, None if plain is None else replace(plain, logits=plain.logits[n : n + 1]))
        for n, own in enumerate(terms)
    ]


def together(answers: Sequence[Answer]) -> Answer:
    """Networks of equal classes as one: the mean of their probabilities."""
    first = answers[0]
    return Answer(tuple(term for answer in answers for term in answer.terms), first.size, first.kept)


def _chosen(output: Output, kept: tuple[int, ...] | None) -> Output:
    """The output with the rows that may win and nothing else."""
    logits = output.to_classes()
    logits = logits if kept is None else logits[:, list(kept)]
    return replace(output, logits=logits, embedding=logits, stages=(), num_classes=logits.shape[1], extra="none")


def _input(pictures: Sequence[U8], size: Size, kernel: Kernel, device: torch.device) -> Tensor:
    if kernel == "corners":
        return bilinear(to_input(list(pictures), device), size, align_corners=True)
    return to_input([_resized(p, size, kernel) for p in pictures], device)


def _resized(picture: U8, size: Size, kernel: Kernel) -> U8:
    if picture.shape[:2] == size:
        return picture
    if kernel == "area":
        return resize_image(picture, size)
    if kernel == "linear":
        return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR), np.uint8)


def _mode(output: Output, protocol: Protocol) -> Mode:
    if protocol.upsample != "model":
        return protocol.upsample
    return "corners" if output.align_corners else "linear"


def _axes(output: Output, protocol: Protocol, size: Size) -> tuple[tuple[_Step, ...], ...]:
    """From the network's grid to ``size``, along rows and along columns; the padded margin is cut off."""
    mode = _mode(output, protocol)
    out: list[tuple[_Step, ...]] = []
    for grid, padded, own, wanted in zip(output.logits.shape[-2:], output.padded, output.size, size, strict=True):
        if protocol.through_input:
            out.append((_Step(mode, grid, padded, own), _Step(mode, own, wanted, wanted)))
        else:
            out.append((_Step(mode, grid, round(padded * wanted / own), wanted),))
    return tuple(out)


def _windows(
    model: SegModel, image: Tensor, protocol: Protocol, kept: tuple[int, ...] | None, size: Size
) -> tuple[Tensor, tuple[tuple[_Step, ...], ...]]:
    """Averaged scores of all windows at the input's size, and the steps to ``size``."""
    window = protocol.window
    assert window is not None
    modes: list[Mode] = []

    def score(part: Tensor) -> Tensor:
        output = _chosen(model(part), kept)
        modes.append(_mode(output, protocol))
        if modes[-1] == "nearest":
            full = F.interpolate(output.logits.float(), output.padded, mode="nearest")
            values = full[..., : output.size[0], : output.size[1]]
        else:
            values = replace(output, align_corners=modes[-1] == "corners").upsample(output.logits.float())
        return values.softmax(1) if window.average == "probabilities" else values

    values = slide(image, window.size, window.stride, score, WINDOWS)
    steps = tuple((_Step(modes[0], old, new, new),) for old, new in zip(image.shape[-2:], size, strict=True))
    return values, steps


@lru_cache(maxsize=64)
def _axis(steps: tuple[_Step, ...], flipped: bool, device: str) -> tuple[_Block, ...]:
    """The chain of steps along one axis as blocks of a tile's length, each reading a short span of the input."""
    with torch.inference_mode(False), torch.no_grad():
        matrix = _matrix(steps[0])
        for step in steps[1:]:
            matrix = _matrix(step) @ matrix
        matrix = matrix.flip(0) if flipped else matrix
        length = TILE_PX
        blocks = [_block(matrix, start, min(start + length, len(matrix))) for start in range(0, len(matrix), length)]
    return tuple(replace(b, weights=None if b.weights is None else b.weights.to(device)) for b in blocks)


def _matrix(step: _Step) -> Tensor:
    """(kept,old) weights, read off torch's own kernel: column k is the image of unit vector k."""
    eye = torch.eye(step.old).unsqueeze(0)
    if step.mode == "nearest":
        full = F.interpolate(eye, step.new, mode="nearest")
    else:
        full = F.interpolate(eye, step.new, mode="linear", align_corners=step.mode == "corners")
    return full[0].t()[: step.kept].contiguous()


def _block(matrix: Tensor, start: int, stop: int) -> _Block:
    part = matrix[start:stop]
    used = torch.nonzero(part.any(0)).flatten()
    first, last = int(used[0]), int(used[-1]) + 1
    part = part[:, first:last].contiguous()
    same = part.shape[0] == part.shape[1] and torch.equal(part, torch.eye(len(part)))
    return _Block(start, stop, first, last, None if same else part)
