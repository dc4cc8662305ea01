"""STDC backbones: short-term dense concatenation (Fan et al., "Rethinking BiSeNet", CVPR 2021, section 3.1).

Only the convolutional part; the classification tail of the published ImageNet files plays no part in segmentation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.blocks import ConvNorm, init_conv

BLOCKS = {"stdc813": (2, 2, 2), "stdc1446": (4, 5, 3)}
"""Blocks in the stages at stride 8, 16 and 32 (Table 2 of the paper)."""
CHANNELS = (32, 64, 256, 512, 1024)
"""Output channels at strides 2, 4, 8, 16 and 32, at width 1."""


def scaled(channels: int, width: float) -> int:
    """Channels times ``width``, to the nearest multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))


class Bottleneck(nn.Module):
    """Four convolutions, each half as wide as the one before, all concatenated: 1/2 + 1/4 + 1/8 + 1/8 of the channels.

    With stride 2 a depthwise convolution shrinks what the second one reads and average pooling shrinks the first one's
    share of the output.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = channels_out // 2, channels_out // 4, channels_out // 8
        self.convs = nn.ModuleList(
            [
                ConvNorm(channels_in, half, 1),
                ConvNorm(half, quarter),
                ConvNorm(quarter, eighth),
                ConvNorm(eighth, eighth),
            ]
        )
        self.down = ConvNorm(half, half, 3, stride, groups=half, relu=False) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,h,w) to (N,C_out,h/stride,w/stride)."""
        first = self.convs[0](x)
        skip = first
        if self.down is not None:
            skip = F.avg_pool2d(first, 3, 2, 1)
            first = self.down(first)
        second = self.convs[1](first)
        third = self.convs[2](second)
        return torch.cat([skip, second, third, self.convs[3](third)], 1)


class STDC(nn.Module):
    """``features`` of STDC1 (``stdc813``) or STDC2 (``stdc1446``); ``width`` scales every channel count."""

    def __init__(self, name: str = "stdc813", width: float = 1.0) -> None:
        super().__init__()
        self.channels = tuple(scaled(c, width) for c in CHANNELS)
        c2, c4, *deep = self.channels
        layers: list[nn.Module] = [ConvNorm(3, c2, 3, 2), ConvNorm(c2, c4, 3, 2)]
        self.taps = [0, 1]
        before = c4
        for channels, blocks in zip(deep, BLOCKS[name], strict=True):
            for index in range(blocks):
                layers.append(Bottleneck(before, channels, stride=2 if index == 0 else 1))
                before = channels
            self.taps.append(len(layers) - 1)
        self.features = nn.ModuleList(layers)
        init_conv(self, 0.0, "fan_out")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the maps at strides 2, 4, 8, 16 and 32, after their last activation."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return tuple(maps)
