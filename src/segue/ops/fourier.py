"""Exchange of low-frequency amplitudes between two images, exact and real.

Yang and Soatto, "FDA: Fourier domain adaptation for semantic segmentation", CVPR 2020, eq. 3:
x_st = F^-1([M A(x_t) + (1 - M) A(x_s)] e^{i phase(x_s)}), per channel, M = 1 on the centred (2b+1)x(2b+1) window of
frequencies, b = floor(min(H,W) beta). Half-widths at 512x1024: 5, 25, 46 for beta 0.01, 0.05, 0.09.

Only the window's coefficients change, so x_st = x_s + F^-1(window of (A_t/A_s - 1) F(x_s)). Images are real, so columns
0..b of a real row transform are enough, and only those b+1 columns are transformed along the height, both ways
(at beta 0.09 that is a tenth of the column work). Nothing is ever dropped as an imaginary part: the inverse along rows
is a transform to real numbers, and the window contains -u with every u. ``benchmarks/fourier.py`` measures it; dense
DFT matrices in its place are faster for b = 5 on one thread only (9 against 15 ms) and slower for b = 46, and less
precise.

The official torch code exchanges four corners of b x b, which leaves out a row and a column of the window; its numpy
form is the one here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# An amplitude below this, a pixel, is rounding noise of a picture in 0..1 and has no phase.
NOISE = 1e-8


def half_width(height: int, width: int, beta: float) -> int:
    """b = floor(min(H,W) beta): half the window's side, in frequencies."""
    if not 0 <= beta < 0.5:
        raise ValueError(f"beta must be in [0, 0.5), got {beta}")
    return math.floor(min(height, width) * beta)


@torch.no_grad()
def exchange(source: Tensor, target: Tensor, beta: float, clip: bool = False) -> Tensor:
    """Source images with the target images' low-frequency amplitudes: (N,3,H,W) each, float 0..1, to the same.

    Phases stay the source's, the mean becomes the target's, and equal images come back unchanged. Where the source has
    no amplitude its phase is undefined and 0 is taken. As in the official code values outside 0..1 stay (6 to 9 % of
    the pixels on its demo pair), because the network reads floats; ``clip`` cuts them, which changes amplitudes again.
    Computed in float32, or float64 if both are.
    """
    if source.shape != target.shape:
        raise ValueError(f"source is {tuple(source.shape)}, target is {tuple(target.shape)}: they must be equal")
    height, width = source.shape[-2:]
    b = half_width(height, width, beta)
    if source.dtype != torch.float64 or target.dtype != torch.float64:
        source, target = source.float(), target.float()
    with torch.autocast(source.device.type, enabled=False):
        ours, theirs = _window(source, b), _window(target, b)
        amplitude, wanted = ours.abs(), theirs.abs()
        known = amplitude > NOISE * height * width
        change = torch.where(known, ours * (wanted / amplitude.where(known, 1) - 1), wanted.to(ours.dtype))
        columns = change.new_zeros(*source.shape[:-1], b + 1)
        columns[..., : b + 1, :] = change[..., : b + 1, :]
        columns[..., height - b :, :] = change[..., b + 1 :, :]
        mixed: Tensor = source + torch.fft.irfft(torch.fft.ifft(columns, dim=-2), n=width)
    return mixed.clamp_(0, 1) if clip else mixed


def _window(image: Tensor, b: int) -> Tensor:
    """Coefficients u = 0..b, -b..-1 (rows) and v = 0..b (columns): (...,2b+1,b+1) complex."""
    height = image.shape[-2]
    columns = torch.fft.fft(torch.fft.rfft(image)[..., : b + 1], dim=-2)
    return torch.cat([columns[..., : b + 1, :], columns[..., height - b :, :]], -2)
