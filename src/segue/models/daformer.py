"""DAFormer: a Mix Transformer and a context-aware decoder (Hoyer et al., "DAFormer", CVPR 2022, section 3.2).

Every map is embedded, resized to the finest and concatenated, as in SegFormer; ``fusion`` makes one map of them.
``sepaspp`` is the paper's: parallel separable convolutions of four rates, then a 3x3 one. ``aspp`` has plain
convolutions, ``conv1`` one 1x1 convolution; ``upernet`` is another decoder (Xiao et al., "Unified perceptual parsing",
ECCV 2018). Logits come at stride 4; the embedding is the fused map, never negative. Published training: AdamW, learning
rate 6e-5, weight decay 0.01, ``head_lr_factor`` 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.models.aspp import conv3x3
from segue.models.base import MODELS
from segue.models.blocks import ConvNorm, init_conv
from segue.models.mit import VARIANTS, MiTConfig, MiTModel
from segue.models.segformer import LevelDecoder, resized_to

RATES = (6, 12, 18)
"""Dilations beside the 1x1 convolution."""
POOLS = (1, 2, 3, 6)
"""Sides of the pooled maps of ``upernet``."""


class DAFormerConfig(MiTConfig):
    """Settings of ``daformer``."""

    fusion: Literal["sepaspp", "aspp", "conv1", "upernet"] = "sepaspp"
    """How the four maps become one; ``sepaspp`` in the paper."""
    channels: int = Field(256, ge=8)
    """Width of embeddings, branches and fused map (512 in the published ``upernet``)."""


class Context(nn.Module):
    """A 1x1 and three dilated 3x3 convolutions side by side, without image pooling, joined by a 3x3 one."""

    def __init__(self, channels_in: int, channels: int, separable: bool) -> None:
        super().__init__()
        conv = conv3x3(separable, depthwise_norm=True)
        self.branches = nn.ModuleList(
            [ConvNorm(channels_in, channels, 1), *(conv(channels_in, channels, dilation=rate) for rate in RATES)]
        )
        self.join = ConvNorm(channels * (1 + len(RATES)), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,h,w) to (N,channels,h,w)."""
        out: Tensor = self.join(torch.cat([branch(x) for branch in self.branches], 1))
        return out


class UPerDecoder(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down feature pyramid, all its maps joined at the finest size."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(ConvNorm(channels[-1], width, 1) for _ in POOLS)
        self.top = ConvNorm(channels[-1] + len(POOLS) * width, width)
        self.laterals = nn.ModuleList(ConvNorm(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(ConvNorm(width, width) for _ in channels[:-1])
        self.join = ConvNorm(len(channels) * width, width)
        init_conv(self, 0.0, "fan_out")

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Maps (N,C_i,h_i,w_i) to (N,width,h_0,w_0)."""
        coarse = stages[-1]
        pooled = [pool(F.adaptive_avg_pool2d(coarse, side)) for pool, side in zip(self.pools, POOLS, strict=True)]
        above = self.top(torch.cat([coarse, *(resized_to(coarse, x) for x in pooled)], 1))
        maps = [above]
        for lateral, smooth, stage in reversed(list(zip(self.laterals, self.smooth, stages[:-1], strict=True))):
            above = lateral(stage) + resized_to(stage, above)
            maps.insert(0, smooth(above))
        out: Tensor = self.join(torch.cat([resized_to(stages[0], x) for x in maps], 1))
        return out


@MODELS.register("daformer")
class DAFormer(MiTModel):
    """DAFormer: the decoder alone has 3,712,275 parameters with b1 to b5 and 19 classes, classifier included."""

    Config = DAFormerConfig

    def __init__(self, config: DAFormerConfig, num_classes: int) -> None:
        super().__init__(config, num_classes, _decoder(config), config.channels)


def _decoder(config: DAFormerConfig) -> nn.Module:
    channels, width = VARIANTS[config.variant][0], config.channels
    if config.fusion == "upernet":
        return UPerDecoder(channels, width)
    wide = len(channels) * width
    if config.fusion == "conv1":
        return LevelDecoder(channels, width, ConvNorm(wide, width, 1))
    return LevelDecoder(channels, width, Context(wide, width, separable=config.fusion == "sepaspp"))
