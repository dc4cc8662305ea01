"""Sliding windows over an image: each window is scored by itself, overlapping scores are averaged.

Windows lie fully inside: they start every ``stride`` pixels and the last one is flush with the border, so an axis of n
pixels takes max(n - window + stride - 1, 0) // stride + 1 of them (the rule of mmsegmentation's ``slide_inference``). A
window larger than the image is the whole image. Memory: one full-size sum of scores, and those of one batch of windows.

Knobs that matter: ``stride`` (half the window: every inner pixel is seen four times), ``batch`` (windows in one
forward pass). What is averaged, logits or probabilities, is up to ``score``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Size = tuple[int, int]


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of every window along an axis; ``ValueError`` for a window or stride below one, or a gap."""
    if not 0 < stride <= window:
        raise ValueError(f"a stride of {stride} pixels does not fit windows of {window}: use 1 to {window}")
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def slide(image: Tensor, window: Size, stride: Size, score: Callable[[Tensor], Tensor], batch: int = 4) -> Tensor:
    """Average of ``score`` over all windows: (N,3,H,W) to (N,C,H,W), or to a coarser grid if ``score`` has one.

    ``score`` maps windows (n,3,h,w) to (n,C,h,w), or to cells where every window must start at a cell's first pixel.
    ``window``, ``stride`` are (height, width) in pixels. ``batch``: windows in one call, of every image at least one.
    """
    number, _, height, width = image.shape
    size = min(window[0], height), min(window[1], width)
    tops, lefts = starts(height, window[0], stride[0]), starts(width, window[1], stride[1])
    places = [(top, left) for top in tops for left in lefts]
    total, rows, columns = None, 0, 0
    together = max(1, batch // number)
    for first in range(0, len(places), together):
        chosen = places[first : first + together]
        scores = score(torch.cat([image[..., t : t + size[0], x : x + size[1]] for t, x in chosen]))
        if total is None:
            rows, columns = scores.shape[-2:]
            cells = (height * rows // size[0], width * columns // size[1])
            total = scores.new_zeros(number, scores.shape[1], *cells)
        for (top, left), value in zip(chosen, scores.reshape(len(chosen), -1, *scores.shape[1:]), strict=True):
            row, column = top * rows // size[0], left * columns // size[1]
            total[..., row : row + rows, column : column + columns] += value
    assert total is not None  # starts() is never empty
    for axis, (first_pixels, length, cells_n) in enumerate(((tops, size[0], rows), (lefts, size[1], columns))):
        seen = torch.zeros(total.shape[2 + axis], dtype=total.dtype, device=total.device)
        for start in (pixel * cells_n // length for pixel in first_pixels):
            seen[start : start + cells_n] += 1
        total /= seen.view(-1, 1) if axis == 0 else seen
    return total
