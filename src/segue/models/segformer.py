"""SegFormer: a Mix Transformer and an all-MLP head (Xie et al., NeurIPS 2021, section 3.2, eq. 4).

Each map is projected by itself, resized to the finest, concatenated and fused by a 1x1 convolution. Knobs that matter:
``variant``; ``channels`` (unset: as published, 256 for b0 and b1, otherwise 768). Logits come at stride 4. Published
training: AdamW, learning rate 6e-5, weight decay 0.01, ``head_lr_factor`` 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from segue.models.base import MODELS
from segue.models.blocks import ConvNorm, init_conv
from segue.models.mit import VARIANTS, MiTConfig, MiTModel
from segue.ops.resize import bilinear


class SegFormerConfig(MiTConfig):
    """Settings of ``segformer``."""

    channels: int | None = Field(None, ge=8)
    """Width of the head; unset: 256 for ``b0`` and ``b1``, otherwise 768, as published."""


class LevelEmbedding(nn.Module):
    """Every map projected to ``width`` channels and resized to the first's size; concatenated fine to coarse."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(c, width) for c in channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Maps (N,C_i,h_i,w_i) to (N,len(channels)*width,h_0,w_0)."""
        embedded = (
            level(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for level, stage in zip(self.levels, stages, strict=True)
        )
        return torch.cat([resized_to(stages[0], x) for x in embedded], 1)


class LevelDecoder(nn.Module):
    """Embedded levels and the module that fuses them."""

    def __init__(self, channels: Sequence[int], width: int, fuse: nn.Module) -> None:
        super().__init__()
        self.embed = LevelEmbedding(channels, width)
        self.fuse = fuse
        init_conv(self.fuse, 0.0, "fan_out")

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Maps (N,C_i,h_i,w_i) to (N,D,h_0,w_0)."""
        out: Tensor = self.fuse(self.embed(stages))
        return out


def resized_to(like: Tensor, x: Tensor) -> Tensor:
    """``x`` (N,C,h,w), bilinear, at the height and width of ``like``."""
    return bilinear(x, (like.shape[-2], like.shape[-1]))


@MODELS.register("segformer")
class SegFormer(MiTModel):
    """SegFormer: with 19 classes 3.7 (b0) to 84.6 (b5) million parameters."""

    Config = SegFormerConfig

    def __init__(self, config: SegFormerConfig, num_classes: int) -> None:
        channels = VARIANTS[config.variant][0]
        width = config.channels or (256 if config.variant in ("b0", "b1") else 768)
        fuse = ConvNorm(len(channels) * width, width, 1)
        super().__init__(config, num_classes, LevelDecoder(channels, width, fuse), width)
