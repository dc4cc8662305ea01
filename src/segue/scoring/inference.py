"""How a network is asked about a picture under a protocol, and its answer at full size, tile by tile.

Every forward pass leaves one term: scores on a small grid and two linear maps, one an axis, that carry them to the
label's size (crops, mirrors and chains of resizes are linear too). Tiles of the full size are made one at a time, so
with flips, scales, windows and several models no (C,H,W) array exists but the one sum that windows need.

One term: its logits decide. Several: the mean of their softmax probabilities does.

Restricted answers (``groups`` of classes among which the network must choose) share the forward passes, and where one
term's logits decide also the tiles and the running maxima: a union's argmax is that of its parts' winners.
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
from segue.models.classify import to_input
from segue.ops.resize import bilinear
from segue.ops.sliding import slide
from segue.scoring.protocols import Kernel, Protocol, Size
from segue.scoring.result import Group

TILE_PX = 128  # side of a tile: a few classes of one stay in a core's cache
DEVICE_TILE_PX = 1024  # elsewhere than on a CPU
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
    """Output pixels ``start .. stop`` as ``weights`` times input pixels ``first .. last``.

    Where each is one of these, ``picks`` says which; without either they are the same pixels.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: Tensor | None
    picks: Tensor | None


@dataclass(frozen=True)
class Term:
    """Scores (C,h,w) of one forward pass and the way to full size along rows and columns.

    ``restricted``: scores among each group of classes, where windows were averaged; else those of its rows.
    """

    values: Tensor
    rows: tuple[_Block, ...]
    columns: tuple[_Block, ...]
    probabilities: bool
    restricted: tuple[Tensor, ...] = ()

    def tile(self, row: int, column: int) -> Tensor:
        """(C,b,d) scores of one tile."""
        return self.picked(self.unpicked(row, column), row, column)

    def unpicked(self, row: int, column: int) -> Tensor:
        """The tile before axes on which it only repeats or leaves out pixels do so."""
        down, across = self.rows[row], self.columns[column]
        x = self.values[:, down.first : down.last, across.first : across.last]
        x = x if across.weights is None else x @ across.weights.t()
        return x if down.weights is None else down.weights @ x

    def picked(self, x: Tensor, row: int, column: int) -> Tensor:
        """What :meth:`unpicked` gave, or the same of its winners, at the tile's size."""
        down, across = self.rows[row].picks, self.columns[column].picks
        x = x if down is None else x.index_select(-2, down)
        return x if across is None else x.index_select(-1, across)


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
    kept: Group | None
    groups: tuple[Group, ...] = ()

    def tiles(self) -> Iterator[Tile]:
        """All parts of the image, from the top left."""
        for r, c, place in self._places():
            yield Tile(place, *self._values(r, c))

    def ids(self) -> U8:
        """(H,W) train ids: the argmax, the lower id where two are equal."""
        return self._winners([tuple(range(len(self.terms[0].values)))])[0]

    def restricted_ids(self) -> list[U8]:
        """The same, and then for each of ``groups`` what an answer that was asked with it as ``kept`` says."""
        everything = tuple(range(len(self.terms[0].values)))
        if len(self.terms) == 1 and not self.terms[0].restricted:
            return self._winners([everything, *self.groups])
        return [self.ids(), *(self._only(number).ids() for number in range(len(self.groups)))]

    def _only(self, number: int) -> Answer:
        group = self.groups[number]
        terms = [replace(t, values=t.restricted[number] if t.restricted else t.values[list(group)]) for t in self.terms]
        return Answer(tuple(terms), self.size, group)

    def _winners(self, groups: Sequence[Group]) -> list[U8]:
        """The best row of each group of rows at every pixel."""
        out = [np.empty(self.size, np.uint8) for _ in groups]
        runs, chains = _cut(tuple(groups))
        alone = self.terms[0] if len(self.terms) == 1 else None
        for r, c, place in self._places():
            leaders = _Leaders(alone.unpicked(r, c) if alone else self._values(r, c)[0], runs)
            for ids, chain in zip(out, chains, strict=True):
                winners = leaders.of(chain)[1]
                ids[place] = (alone.picked(winners, r, c) if alone else winners).cpu().numpy()
        if self.kept is None:
            return out
        table = np.full(IGNORE + 1, IGNORE, np.uint8)
        table[: len(self.kept)] = self.kept
        return [np.asarray(cv2.LUT(ids, table), np.uint8) for ids in out]

    def _places(self) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
        for r, down in enumerate(self.terms[0].rows):
            for c, across in enumerate(self.terms[0].columns):
                yield r, c, (slice(down.start, down.stop), slice(across.start, across.stop))

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


class _Leaders:
    """The best row of runs of rows at each pixel of one tile, found once a run and once a chain of runs."""

    def __init__(self, values: Tensor, runs: Sequence[slice]) -> None:
        self.values, self.runs = values, runs
        self.known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def of(self, chain: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Largest value and its row (uint8), the lowest where several are equal; ``chain`` in the order of rows."""
        if chain not in self.known:
            self.known[chain] = self._run(self.runs[chain[0]]) if len(chain) == 1 else self._chained(chain)
        return self.known[chain]

    def _chained(self, chain: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        (best, ids), (value, row) = self.of(chain[:-1]), self.of(chain[-1:])
        return torch.maximum(best, value), torch.where(value > best, row, ids)

    def _run(self, run: slice) -> tuple[Tensor, Tensor]:
        if self.values.device.type != "cpu":
            best, rows = self.values[run].max(0)
            return best, rows.add_(run.start).to(torch.uint8)
        best = self.values[run.start].clone()
        ids = torch.full(best.shape, run.start, dtype=torch.uint8)
        # A running maximum is several times faster than argmax over the strided class axis, and needs no masked write.
        for row in range(run.start + 1, run.stop):
            torch.maximum(ids, (self.values[row] > best).view(torch.uint8).mul_(row), out=ids)
            torch.maximum(best, self.values[row], out=best)
        return best, ids


@lru_cache(maxsize=64)
def _cut(groups: tuple[Group, ...]) -> tuple[tuple[slice, ...], tuple[tuple[int, ...], ...]]:
    """Runs of neighbouring rows that are in the same groups, and of each group the numbers of its runs, in order."""
    members = [frozenset(g) for g in groups]
    rows = sorted(frozenset().union(*members))
    signs = [tuple(row in own for own in members) for row in rows]
    starts = [n for n in range(len(rows)) if not n or rows[n] != rows[n - 1] + 1 or signs[n] != signs[n - 1]]
    ends = [*starts[1:], len(rows)]
    runs = tuple(slice(rows[a], rows[b - 1] + 1) for a, b in zip(starts, ends, strict=True))
    chains = (tuple(n for n, a in enumerate(starts) if signs[a][g]) for g in range(len(groups)))
    return runs, tuple(chains)


def ask(
    model: SegModel,
    pictures: Sequence[U8],
    protocol: Protocol,
    size: Size,
    kept: Group | None = None,
    groups: Sequence[Group] = (),
) -> list[Answer]:
    """Answers for pictures (H,W,3) of one size, at ``size``; the model is in eval mode and no gradient is kept.

    ``kept``: train ids among which the network must choose, as if it had no other output. ``groups`` of train ids for
    ``Answer.restricted_ids``, where ``kept`` is None.
    """
    terms: list[list[Term]] = [[] for _ in pictures]
    averaged = protocol.window is not None and protocol.window.average == "probabilities"
    for scale in protocol.scales:
        seen_size = protocol.input_size((pictures[0].shape[0], pictures[0].shape[1]), scale)
        image = _input(pictures, seen_size, protocol.kernel, model.mean.device)
        for flipped in (False, True) if protocol.flip else (False,):
            seen = image.flip(-1) if flipped else image
            restricted: list[Tensor] = []
            if protocol.window is not None:
                (values, *restricted), axes = _windows(model, seen, protocol, [kept, *groups], size)
            else:
                output = _chosen(model(seen), kept)
                values, axes = output.logits.float(), _axes(output, protocol, size)
            rows, columns = (_axis(steps, flipped and n == 1, str(values.device)) for n, steps in enumerate(axes))
            for number, own in enumerate(terms):
                parts = tuple(part[number] for part in restricted)
                own.append(Term(values[number], rows, columns, averaged, parts))
    return [Answer(tuple(own), size, kept, tuple(groups)) for own in terms]


def together(answers: Sequence[Answer]) -> Answer:
    """Networks of equal classes as one: the mean of their probabilities."""
    first = answers[0]
    return Answer(tuple(term for answer in answers for term in answer.terms), first.size, first.kept, first.groups)


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
    model: SegModel, image: Tensor, protocol: Protocol, among: Sequence[Group | None], size: Size
) -> tuple[list[Tensor], tuple[tuple[_Step, ...], ...]]:
    """Averaged scores of all windows at the input's size among each of the groups, and the steps to ``size``."""
    window = protocol.window
    assert window is not None
    modes: list[Mode] = []
    channels: list[int] = []

    def score(part: Tensor) -> Tensor:
        output = model(part)
        modes.append(_mode(output, protocol))
        parts = [_upsampled(_chosen(output, kept), modes[0]) for kept in among]
        channels[:] = [p.shape[1] for p in parts]
        return torch.cat([p.softmax(1) if window.average == "probabilities" else p for p in parts], 1)

    values = slide(image, window.size, window.stride, score, WINDOWS)
    steps = tuple((_Step(modes[0], old, new, new),) for old, new in zip(image.shape[-2:], size, strict=True))
    return list(torch.split(values, channels, 1)), steps


def _upsampled(output: Output, mode: Mode) -> Tensor:
    """(N,C,H,W) logits at the size of the image that was given."""
    logits = output.logits.float()
    if mode == "nearest":
        return F.interpolate(logits, output.padded, mode="nearest")[..., : output.size[0], : output.size[1]]
    return replace(output, align_corners=mode == "corners").upsample(logits)


@lru_cache(maxsize=64)
def _axis(steps: tuple[_Step, ...], flipped: bool, device: str) -> tuple[_Block, ...]:
    """The chain of steps along one axis as blocks of a tile's length, each reading a short span of the input."""
    with torch.inference_mode(False), torch.no_grad():
        matrix = _matrix(steps[0])
        for step in steps[1:]:
            matrix = _matrix(step) @ matrix
        matrix = matrix.flip(0) if flipped else matrix
        length = TILE_PX if device == "cpu" else DEVICE_TILE_PX
        blocks = [_block(matrix, start, min(start + length, len(matrix))) for start in range(0, len(matrix), length)]
    return tuple(
        replace(
            b,
            weights=None if b.weights is None else b.weights.to(device),
            picks=None if b.picks is None else b.picks.to(device),
        )
        for b in blocks
    )


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
    if not bool(((part == 1).sum(1) == 1).all() and (part.count_nonzero(1) == 1).all()):
        return _Block(start, stop, first, last, part, None)
    picks = part.argmax(1)
    same = torch.equal(picks, torch.arange(last - first))
    return _Block(start, stop, first, last, None, None if same else picks)
