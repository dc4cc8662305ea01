"""Properties of the amplitude exchange."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.ops.fourier import exchange

sizes = st.tuples(st.integers(8, 60), st.integers(8, 60))


def noise(size: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(sizes, st.floats(0, 0.49), st.integers(0, 99))
def test_mean_phase_and_high_frequencies(size: tuple[int, int], beta: float, seed: int) -> None:
    source, target = noise(size, seed), noise(size, seed + 100)
    mixed = exchange(source, target, beta)
    torch.testing.assert_close(mixed.mean((2, 3)), target.mean((2, 3)))
    torch.testing.assert_close(exchange(source, source, beta), source, atol=1e-6, rtol=0)
    # The target's amplitudes and the source's phases: giving the source's amplitudes back restores the source.
    torch.testing.assert_close(exchange(mixed, source, beta), source, atol=1e-4, rtol=0)
    before, after = torch.fft.rfft2(source), torch.fft.rfft2(mixed)
    half = size[1] // 2
    if half > int(min(size) * beta):
        torch.testing.assert_close(after[..., half], before[..., half], atol=1e-3, rtol=0)


def test_a_flat_source_takes_phase_zero() -> None:
    target = noise((45, 77), 5)
    source = torch.full((2, 3, 45, 77), 0.3)
    assert 0 < torch.fft.rfft2(source)[..., 1:].abs().max() < 1e-3  # flat, up to rounding: a phase would be noise
    mixed = exchange(source, target, 0.2)
    assert mixed.isfinite().all()
    window = torch.fft.rfft2(mixed)[..., :9, :9]
    torch.testing.assert_close(window.real, torch.fft.rfft2(target)[..., :9, :9].abs(), atol=1e-2, rtol=1e-4)
    assert window.imag.abs().max() < 1e-2


def test_values_outside_the_range_stay_unless_clipped() -> None:
    source, target = noise((32, 48), 0), 0.5 + 0.5 * noise((32, 48), 1)
    free, clipped = exchange(source, target, 0.05), exchange(source, target, 0.05, clip=True)
    assert free.max() > 1
    assert torch.equal(clipped, free.clamp(0, 1))


def test_runs_in_float32_under_autocast_and_without_a_graph() -> None:
    source, target = noise((32, 48), 0).requires_grad_(), noise((32, 48), 1)
    want = exchange(source, target, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = exchange(source, target, 0.1)
    assert torch.equal(got, want) and not got.requires_grad


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="beta"):
        exchange(noise((8, 8), 0), noise((8, 8), 0), 0.5)
    with pytest.raises(ValueError, match="equal"):
        exchange(noise((8, 8), 0), noise((8, 9), 0), 0.1)
