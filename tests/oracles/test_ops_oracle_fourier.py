"""The exchange against the published form: full complex transforms in numpy, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.ops.fourier import exchange, half_width

GREY = 1 / 255


def reference(source: Tensor, target: Tensor, b: int) -> tuple[np.ndarray, float]:
    """Eq. 3 as written; also the largest imaginary part."""
    fs, ft = (np.fft.fft2(x.numpy().astype(np.float64)) for x in (source, target))
    amplitude, wanted = (np.fft.fftshift(np.abs(f), axes=(-2, -1)) for f in (fs, ft))
    y, x = source.shape[-2] // 2, source.shape[-1] // 2
    window = (..., slice(y - b, y + b + 1), slice(x - b, x + b + 1))
    amplitude[window] = wanted[window]
    mixed = np.fft.ifft2(np.fft.ifftshift(amplitude, axes=(-2, -1)) * np.exp(1j * np.angle(fs)))
    return mixed.real, float(np.abs(mixed.imag).max())


def pictures(n: int, size: tuple[int, int], seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(n, 3, 9, 17, generator=g), size, mode="bicubic")
    return (0.8 * coarse + 0.2 * torch.rand(n, 3, *size, generator=g)).clamp(0, 1)


@pytest.mark.parametrize("size", [(64, 128), (63, 128), (64, 127), (45, 77), (33, 20)])
@pytest.mark.parametrize("beta", [0.0, 0.01, 0.05, 0.09, 0.3, 0.49])
def test_equals_the_full_complex_form(size: tuple[int, int], beta: float) -> None:
    source, target = pictures(2, size, 0), pictures(2, size, 1)
    want, imaginary = reference(source, target, half_width(*size, beta))
    got = exchange(source, target, beta)
    assert imaginary < 1e-12 and got.dtype == torch.float32
    assert np.abs(got.numpy() - want).max() < 1e-3 * GREY
    double = exchange(source.double(), target.double(), beta)
    assert np.abs(double.numpy() - want).max() < 1e-12


@pytest.mark.parametrize(("beta", "b"), [(0.01, 5), (0.05, 25), (0.09, 46)])
def test_published_sizes(beta: float, b: int) -> None:
    assert half_width(512, 1024, beta) == b
    source, target = pictures(1, (512, 1024), 2)[:, :1], pictures(1, (512, 1024), 3)[:, :1]
    want, _ = reference(source, target, b)
    assert np.abs(exchange(source, target, beta).numpy() - want).max() < 1e-3 * GREY
