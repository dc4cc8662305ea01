"""How much faster ``segue.ops.fourier.exchange`` is than the published form in numpy, in interleaved pairs.

``python benchmarks/fourier.py`` prints, for each beta, the median and the 90 % interval of numpy's time over ours and
compares the worse end with the bar; it writes docs/results/fourier.json. One thread on both sides. numpy gets float32,
in which its transforms are complex64: its faster way.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import paired, record, verdict, wall
from torch import Tensor

from segue.ops.fourier import exchange, half_width

BAR = 5.0
BETAS = (0.01, 0.05, 0.09)
SHAPE = (2, 3, 512, 1024)


def published(source: np.ndarray, target: np.ndarray, b: int) -> np.ndarray:
    """Full complex transforms, amplitudes exchanged in the centred window, recomposed with the source's phases."""
    ours, theirs = np.fft.fft2(source), np.fft.fft2(target)
    amplitude = np.fft.fftshift(np.abs(ours), axes=(-2, -1))
    wanted = np.fft.fftshift(np.abs(theirs), axes=(-2, -1))
    y, x = source.shape[-2] // 2, source.shape[-1] // 2
    window = (..., slice(y - b, y + b + 1), slice(x - b, x + b + 1))
    amplitude[window] = wanted[window]
    amplitude = np.fft.ifftshift(amplitude, axes=(-2, -1))
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(ours))).real


def measure(source: Tensor, target: Tensor, beta: float, pairs: int) -> dict[str, float]:
    """Times in ms, ratio's median and 5th and 95th percentile, largest difference in grey levels."""
    b = half_width(*SHAPE[-2:], beta)
    ours, theirs = source.numpy(), target.numpy()
    slow = published(ours.astype(np.float64), theirs.astype(np.float64), b)
    error = np.abs(slow - exchange(source, target, beta).numpy())
    row = paired(lambda: published(ours, theirs, b), lambda: exchange(source, target, beta), pairs, wall)
    return {"beta": beta, "half_width": b, **row, "max_error_grey_levels": float(f"{error.max() * 255:.2g}")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    source, target = torch.rand(SHAPE, generator=g), torch.rand(SHAPE, generator=g)
    rows = [measure(source, target, beta, arguments.pairs) for beta in BETAS]
    for row in rows:
        print(
            f"beta {row['beta']}: numpy {row['a_ms']} ms, segue {row['b_ms']} ms, ratio {row['ratio_median']} "
            f"[{row['ratio_p05']}, {row['ratio_p95']}], worse end against {BAR}: {verdict(row, BAR, at_most=False)}, "
            f"error {row['max_error_grey_levels']} grey levels"
        )
    record("fourier", BAR, rows, shape=SHAPE)
    return 0 if all(verdict(row, BAR, at_most=False) == "holds" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
