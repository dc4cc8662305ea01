"""Mix Transformer encoders B0 to B5 (Xie et al., "SegFormer", NeurIPS 2021), written from the paper.

Four stages without positional codes: overlapping patches, self-attention whose keys and values come from a map reduced
R times on each side (section 3.1, eq. 2), and a feed-forward part with a depthwise 3x3 convolution inside (eq. 3).
Norms of blocks and stages have epsilon 1e-6, those of patches and reductions 1e-5, as the published weights were
trained. Knobs that matter: ``variant``; ``drop_path`` (the highest rate of stochastic depth).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from pydantic import Field
from timm.layers.drop import DropPath
from torch import Tensor, nn

from segue.foreign.base import recognise
from segue.foreign.files import read_state
from segue.models.base import ModelConfig, Output, SegModel

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5"]
WIDE = (64, 128, 320, 512)
VARIANTS: dict[Variant, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": (WIDE, (2, 2, 2, 2)),
    "b2": (WIDE, (3, 4, 6, 3)),
    "b3": (WIDE, (3, 4, 18, 3)),
    "b4": (WIDE, (3, 8, 27, 3)),
    "b5": (WIDE, (3, 6, 40, 3)),
}
"""Channels and blocks of the four stages (Table 6 of the paper)."""
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Kernel and stride of each stage's patch embedding."""
EXPANSION = 4
EPS = 1e-6


class MiTConfig(ModelConfig):
    """Settings of every model on a Mix Transformer."""

    variant: Variant = "b5"
    """Size of the encoder, from ``b0`` (3.3 million parameters) to ``b5`` (81.4 million)."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Chance that the last block is skipped in training; it rises linearly from 0 at the first (0.1 as published)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Channel dropout before the classifier (0.1 in SegFormer and DAFormer)."""


class Patches(nn.Module):
    """Overlapping patches of a map, embedded and normalised; maps are channels last from here on."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,H,W) to (N,h,w,C)."""
        out: Tensor = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return out


class Reduction(nn.Module):
    """A map whose sides are ``ratio`` times shorter: convolution of that kernel and stride, norm."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, ratio, ratio)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N,h,w,C) to (N,h/ratio,w/ratio,C)."""
        out: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class Attention(nn.Module):
    """Multi-head self-attention of every place to the places of a reduced map (eq. 2)."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.split = (heads, channels // heads)
        self.reduce = Reduction(channels, reduction) if reduction > 1 else nn.Identity()
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N,h,w,C) to the same shape."""
        query = self.query(x).flatten(1, 2).unflatten(-1, self.split).transpose(1, 2)
        both = self.key_value(self.reduce(x)).flatten(1, 2).unflatten(-1, (2, *self.split))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(x.shape))
        return out


class MixFFN(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear (eq. 3); zero padding tells places where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.expand = nn.Linear(channels, wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.contract = nn.Linear(wide, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N,h,w,C) to the same shape."""
        wide = self.depthwise(self.expand(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.contract(F.gelu(wide))
        return out


class Block(nn.Module):
    """Attention and feed-forward part, each normalised before, dropped at ``drop_path``, and added to its input."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attention = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.ffn = MixFFN(channels)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N,h,w,C) to the same shape."""
        x = x + self.drop(self.attention(self.norm1(x)))
        out: Tensor = x + self.drop(self.ffn(self.norm2(x)))
        return out


class Stage(nn.Module):
    """Patches, blocks, norm."""

    def __init__(self, index: int, channels_in: int, channels: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.patches = Patches(channels_in, channels, *PATCHES[index])
        self.blocks = nn.Sequential(*(Block(channels, HEADS[index], REDUCTIONS[index], rate) for rate in drop_paths))
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,H,W) to (N,C,h,w), channels last in memory."""
        out: Tensor = self.norm(self.blocks(self.patches(x))).permute(0, 3, 1, 2)
        return out


class MiT(nn.Module):
    """The encoder of one variant; ``channels`` are those of its four maps."""

    def __init__(self, variant: Variant, drop_path: float) -> None:
        super().__init__()
        self.channels, depths = VARIANTS[variant]
        last = sum(depths) - 1
        rates = iter([drop_path * block / last for block in range(last + 1)])
        inputs = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            Stage(i, inputs[i], channels, list(islice(rates, depths[i]))) for i, channels in enumerate(self.channels)
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the normalised maps at strides 4, 8, 16 and 32."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class MiTModel(SegModel):
    """A network on a Mix Transformer: a decoder of all four maps, channel dropout and a 1x1 classifier."""

    Config: type[ModelConfig] = MiTConfig
    config: MiTConfig
    encoder_prefix = "encoder."

    def __init__(self, config: MiTConfig, num_classes: int, decoder: nn.Module, width: int) -> None:
        super().__init__(config, num_classes)
        self.encoder = MiT(config.variant, config.drop_path)
        self.decoder = decoder
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The smallest encoder under a narrow head, nothing dropped."""
        return {"variant": "b0", "channels": 16, "drop_path": 0.0, "dropout": 0.0}

    def imagenet_state(self) -> Mapping[str, Tensor]:
        """The authors' ImageNet weights as Hugging Face keeps them; downloads unless its cache has them."""
        path = hf_hub_download(f"nvidia/mit-{self.config.variant}", "pytorch_model.bin")
        found = recognise(read_state(Path(path)))
        self.notes = found.notes
        return found.state

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; the embedding is the decoder's map before dropout."""
        stages = self.encoder(x)
        embedding = self.decoder(stages)
        return Output(self.classifier(self.dropout(embedding)), embedding, stages)

    def classifiers(self) -> dict[str, nn.Module]:
        """The only classifier."""
        return {"classifier": self.classifier}


def _initialise(module: nn.Module) -> None:
    """As the published weights began: truncated normal of 0.02, He's for convolutions by their real fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
