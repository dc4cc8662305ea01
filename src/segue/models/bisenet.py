"""BiSeNet on STDC: the real-time network of Fan et al., "Rethinking BiSeNet", CVPR 2021 (after Yu et al., ECCV 2018).

Knobs that matter: ``backbone``, ``width`` (0.25 is a network of half a million parameters for a CPU), ``detail`` (the
paper's detail head, which learns class boundaries from the map at stride 8). Logits come at stride 8.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.models.base import MODELS, Head, ModelConfig, Output, SegModel
from segue.models.blocks import ConvNorm, init_conv
from segue.models.norms import BatchNorm
from segue.models.stdc import STDC, scaled


class BiSeNetConfig(ModelConfig):
    """Settings of ``bisenet``."""

    backbone: Literal["stdc813", "stdc1446"] = "stdc813"
    """``stdc813`` is STDC1 (8.4 million parameters in all), ``stdc1446`` STDC2 (12.5 million)."""
    width: float = Field(1.0, gt=0, le=4)
    """Factor on every channel count, backbone and heads, rounded to multiples of 8. Published weights need 1."""
    detail: bool = False
    """Add the head at stride 8 that predicts class boundaries (section 3.3 of the paper); training only."""


class PixelHead(nn.Module):
    """3x3 convolution and a 1x1 classifier without bias."""

    def __init__(self, channels_in: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels_in, middle)
        self.classifier = nn.Conv2d(middle, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N,C,h,w) to logits (N,K,h,w) and the embedding (N,D,h,w) they are read from."""
        embedding = self.conv(x)
        return self.classifier(embedding), embedding


class AttentionRefinement(nn.Module):
    """Attention refinement (ARM): a 3x3 convolution whose channels are weighed by their own global average."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels_in, channels_out)
        self.attention = nn.Conv2d(channels_out, channels_out, 1, bias=False)
        self.norm = BatchNorm(channels_out)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Refined ``x`` (N,D,h,w) plus ``coarse`` (N,D,h,w) or (N,D,1,1)."""
        feature = self.conv(x)
        gate = self.norm(self.attention(F.adaptive_avg_pool2d(feature, 1))).sigmoid()
        return torch.addcmul(coarse, feature, gate)  # one pass over the map instead of two


class ContextPath(nn.Module):
    """Global average and attention-refined maps of strides 32 and 16, added from coarse to fine."""

    def __init__(self, channels16: int, channels32: int, out: int) -> None:
        super().__init__()
        self.average = ConvNorm(channels32, out, 1)
        self.arm32 = AttentionRefinement(channels32, out)
        self.arm16 = AttentionRefinement(channels16, out)
        self.smooth32 = ConvNorm(out, out)
        self.smooth16 = ConvNorm(out, out)

    def forward(self, map8: Tensor, map16: Tensor, map32: Tensor) -> tuple[Tensor, Tensor]:
        """Context at stride 8 and at stride 16, each (N,out,h,w)."""
        average = self.average(F.adaptive_avg_pool2d(map32, 1))
        up32 = F.interpolate(self.arm32(map32, average), map16.shape[-2:], mode="nearest")
        context16 = self.smooth32(up32)
        up16 = F.interpolate(self.arm16(map16, context16), map8.shape[-2:], mode="nearest")
        return self.smooth16(up16), context16


class FeatureFusion(nn.Module):
    """Feature fusion (FFM): detail and context concatenated, mixed by a 1x1 convolution and weighed by attention."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.mix = ConvNorm(channels_in, channels_out, 1)
        self.reduce = nn.Conv2d(channels_out, channels_out // 4, 1, bias=False)
        self.expand = nn.Conv2d(channels_out // 4, channels_out, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """Two maps of the same size to (N,channels_out,h,w)."""
        feature = self.mix(torch.cat([detail, context], 1))
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(feature, 1)))).sigmoid()
        out: Tensor = feature * (1 + gate)  # f + f*a, with the addition on the 1x1 map
        return out


@MODELS.register("bisenet")
class BiSeNet(SegModel):
    """BiSeNet with an STDC backbone; heads ``out16`` and ``out32`` (named as published) sit at strides 8 and 16."""

    Config = BiSeNetConfig
    config: BiSeNetConfig
    align_corners = True
    training_only = ("head16", "head32", "detail")

    def __init__(self, config: BiSeNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        middle, small = scaled(128, config.width), scaled(64, config.width)
        self.backbone = STDC(config.backbone, config.width)
        _, _, c8, c16, c32 = self.backbone.channels
        fused = scaled(256, config.width)
        self.context = ContextPath(c16, c32, middle)
        self.fusion = FeatureFusion(c8 + middle, fused)
        self.head = PixelHead(fused, fused, num_classes)
        self.head16: PixelHead | None = PixelHead(middle, small, num_classes)
        self.head32: PixelHead | None = PixelHead(middle, small, num_classes)
        self.detail: PixelHead | None = PixelHead(c8, small, 1) if config.detail else None
        for part in (self.context, self.fusion, self.head, self.head16, self.head32, self.detail):
            if part is not None:
                init_conv(part, 1.0, "fan_in")

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Width 0.125 with every head."""
        return {"width": 0.125, "detail": True}

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; ``stages`` are the five backbone maps."""
        stages = self.backbone(x)
        context8, context16 = self.context(*stages[2:])
        logits, embedding = self.head(self.fusion(stages[2], context8))
        heads = self._auxiliary(stages[2], context8, context16) if self.training else ()
        return Output(logits, embedding, stages, heads)

    def _auxiliary(self, map8: Tensor, context8: Tensor, context16: Tensor) -> tuple[Head, ...]:
        heads = []
        if self.head16 is not None:
            heads.append(Head("out16", self.head16(context8)[0]))
        if self.head32 is not None:
            heads.append(Head("out32", self.head32(context16)[0]))
        if self.detail is not None:
            heads.append(Head("detail", self.detail(map8)[0], target="boundary"))
        return tuple(heads)

    def classifiers(self) -> dict[str, nn.Conv2d]:
        """Main and auxiliary classifiers; the boundary head has one output whatever the classes."""
        heads = {"head": self.head, "head16": self.head16, "head32": self.head32}
        return {f"{name}.classifier": head.classifier for name, head in heads.items() if head is not None}
