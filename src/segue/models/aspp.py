"""Dilated convolutions in parallel: the pyramids of DeepLabV2 (summed) and of DeepLabV3 and V3+ (concatenated)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.blocks import ConvNorm, SeparableConvNorm


class BareSeparableConvNorm(nn.Sequential):
    """Depthwise 3x3 (dilated), pointwise 1x1 with nothing between them, norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels_in, channels_in, 3, padding=dilation, dilation=dilation, groups=channels_in, bias=False
        )
        self.pointwise = ConvNorm(channels_in, channels_out, 1)


Conv3x3 = type[ConvNorm] | type[SeparableConvNorm] | type[BareSeparableConvNorm]


def conv3x3(separable: bool, depthwise_norm: bool) -> Conv3x3:
    """The class of a head's 3x3 convolutions; all take (channels in, channels out, dilation=)."""
    if not separable:
        return ConvNorm
    return SeparableConvNorm if depthwise_norm else BareSeparableConvNorm


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3s, and the image average, concatenated and projected."""

    def __init__(self, channels_in: int, channels: int, rates: Sequence[int], conv: Conv3x3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvNorm(channels_in, channels, 1), *(conv(channels_in, channels, dilation=rate) for rate in rates)]
        )
        self.pool = ConvNorm(channels_in, channels, 1)
        self.project = ConvNorm(channels * (len(rates) + 2), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,h,w) to (N,channels,h,w)."""
        pooled = self.pool(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])
        out: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))
        return out


class DilatedSum(nn.Module):
    """The sum of 3x3 convolutions, one for each rate, that read the same map."""

    def __init__(self, channels_in: int, channels_out: int, rates: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels_in, channels_out, 3, padding=rate, dilation=rate, bias=bias) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,h,w) to (N,C_out,h,w)."""
        first, *others = self.convs
        out: Tensor = first(x)
        for conv in others:
            out = out + conv(x)
        return out
