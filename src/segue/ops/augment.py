"""Strong augmentation of DACS on the device: colour jitter and Gaussian blur, drawn image by image.

Tranheden et al., "DACS", WACV 2021, with kornia 0.5.8's formulas, which the published runs used: brightness adds,
contrast multiplies without subtracting the mean, saturation multiplies S and hue shifts H of HSV, in a random order,
each clamped to 0..1. Published runs draw one coin a batch; here every image has its own.

Knobs that matter: ``jitter_strength``, ``jitter_probability``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from segue.ops.precision import full
from segue.settings import Settings


class StrongConfig(Settings):
    """Settings of :func:`strong`."""

    jitter_strength: float = Field(default=0.2, ge=0, le=0.5)
    """s: brightness +U(-s,s), contrast and saturation *U(1-s,1+s), hue +U(-s,s) turns. 0.2 as published."""
    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    """Probability that an image is jittered. Published configs say 0.2, but that is a threshold: they jitter 80 %."""
    blur_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that an image is blurred."""
    blur_sigma_px: tuple[float, float] = (0.15, 1.15)
    """Range of the blur's standard deviation, as published."""

    @model_validator(mode="after")
    def _ordered(self) -> StrongConfig:
        if not 0 < self.blur_sigma_px[0] <= self.blur_sigma_px[1]:
            raise ValueError("blur_sigma_px must be two positive numbers in ascending order")
        return self


@torch.no_grad()
def strong(image: Tensor, generators: Sequence[torch.Generator], config: StrongConfig) -> Tensor:
    """Jittered and blurred copies of images (N,3,H,W) float 0..1; one (CPU) generator an image decides all of it."""
    if len(generators) != len(image):
        raise ValueError(f"{len(image)} images need as many generators, got {len(generators)}")
    out = full(image).clone()
    low, high = config.blur_sigma_px
    blurred, sigmas = [], []
    for i, g in enumerate(generators):
        # All numbers are drawn whatever the coins say: an image's blur does not depend on the jitter's settings.
        coins, factors = torch.rand(2, generator=g).tolist(), torch.rand(5, generator=g).tolist()
        order = torch.randperm(4, generator=g).tolist()
        if coins[0] < config.jitter_probability and config.jitter_strength > 0:
            out[i] = jitter(out[i], [config.jitter_strength * (2 * f - 1) for f in factors[:4]], order)
        if coins[1] < config.blur_probability:
            blurred.append(i)
            sigmas.append(low + (high - low) * factors[4])
    if blurred:
        radius = math.ceil(4 * high)
        at = torch.tensor(blurred, device=image.device)
        out[at] = blur(out[at], torch.tensor(sigmas, device=image.device), radius)
    return out


def jitter(image: Tensor, shifts: Sequence[float], order: Sequence[int]) -> Tensor:
    """One image (3,H,W) with brightness + shifts[0], contrast * (1 + shifts[1]), saturation * (1 + shifts[2]) and hue
    + shifts[3] turns, applied in ``order`` (a permutation of 0..3), each clamped to 0..1."""
    from kornia import enhance  # here, so that importing segue.ops stays free of it

    steps: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: enhance.adjust_brightness(x, shifts[0]),
        lambda x: enhance.adjust_contrast(x, 1 + shifts[1]),
        lambda x: enhance.adjust_saturation(x, 1 + shifts[2]),
        lambda x: enhance.adjust_hue(x, shifts[3] * 2 * math.pi),
    )
    for k in order:
        image = steps[k](image)
    return image.clamp(0, 1)  # hue returns 1 + rounding


def blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of images (N,C,H,W) with one sigma (N,) px each, 2 radius + 1 taps an axis, borders reflected.

    With radius = ceil(4 sigma) this is the published dense kernel, a tenth of the image wide, to 1e-4. Pairs of taps
    are shifted views added up, which on CPU is 3 to 16 times faster than grouped convolutions (``kornia.filters``).
    """
    if min(image.shape[-2:]) <= radius:
        raise ValueError(f"image of {tuple(image.shape[-2:])} is too small to reflect {radius} pixels")
    taps = _taps(sigma.to(image.dtype), radius)
    padded = F.pad(image, (radius, radius, radius, radius), mode="reflect")
    return _along(_along(padded, taps, radius, -2), taps, radius, -1)


def _along(x: Tensor, taps: list[Tensor], radius: int, dim: int) -> Tensor:
    length = x.shape[dim] - 2 * radius
    out = x.narrow(dim, radius, length) * taps[0]
    for d in range(1, radius + 1):
        out.addcmul_(x.narrow(dim, radius - d, length) + x.narrow(dim, radius + d, length), taps[d])
    return out


def _taps(sigma: Tensor, radius: int) -> list[Tensor]:
    """Weight of the taps at distance 0..radius, (N,1,1,1) each; the whole kernel sums to 1."""
    distance = torch.arange(radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    kernel = kernel / (2 * kernel.sum(1, keepdim=True) - kernel[:, :1])
    return [tap.view(-1, 1, 1, 1) for tap in kernel.unbind(1)]
