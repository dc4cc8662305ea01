"""DeepLabV3 and V3+ on any timm encoder.

DeepLabV3: Chen et al., "Rethinking atrous convolution for semantic image segmentation", arXiv:1706.05587. V3+ adds a
decoder: Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018. Knobs that matter: ``encoder``
(any timm name with feature maps), ``output_stride`` (16 is the papers' default; 8 costs about three times as much),
``separable`` (far fewer operations). Logits come at the encoder's last stride (V3) or at that of its low-level map,
4 for most (V3+).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.models.aspp import ASPP, conv3x3
from segue.models.base import MODELS, Output
from segue.models.blocks import ConvNorm, init_conv
from segue.models.encoders import EncoderConfig, EncoderModel

LOW_LEVEL_STRIDE = 4


class DeepLabV3Config(EncoderConfig):
    """Settings of ``deeplabv3``. ASPP rates are 6, 12, 18 at output stride 16, twice that at 8, half at 32."""

    separable: bool = False
    """Depthwise separable 3x3 convolutions in ASPP and decoder (section 3.1 of the V3+ paper)."""
    depthwise_norm: bool = True
    """Norm and ReLU between the halves of a separable convolution, as in the authors' code; VainF's has neither."""
    channels: int = Field(256, ge=8)
    """Width of ASPP and decoder."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after ASPP, as in the authors' code (keep probability 0.9)."""


class DeepLabV3PlusConfig(DeepLabV3Config):
    """Settings of ``deeplabv3plus``."""

    low_level_channels: int = Field(48, ge=8)
    """Width of the low-level branch (Table 1 of the paper)."""
    decoder_convs: Literal[1, 2] = 2
    """3x3 convolutions of the decoder: 2 is the paper's best (Table 2), VainF and D2ADA have 1."""


class Decoder(nn.Module):
    """Few channels of the low-level map, concatenated with the coarse features at its size, 3x3 convolutions."""

    def __init__(self, low_in: int, config: DeepLabV3PlusConfig) -> None:
        super().__init__()
        conv = conv3x3(config.separable, config.depthwise_norm)
        self.low = ConvNorm(low_in, config.low_level_channels, 1)
        first = conv(config.low_level_channels + config.channels, config.channels)
        others = (conv(config.channels, config.channels) for _ in range(config.decoder_convs - 1))
        self.fuse = nn.Sequential(first, *others)

    def forward(self, low: Tensor, coarse: Tensor) -> Tensor:
        """(N,C,h,w) and (N,channels,h',w') to (N,channels,h,w)."""
        coarse = F.interpolate(coarse, low.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.fuse(torch.cat([self.low(low), coarse], 1))  # the order of the VainF files
        return out


class _Atrous(EncoderModel):
    """Encoder, ASPP with dropout and a 1x1 classifier: what V3 and V3+ share."""

    Config = DeepLabV3Config
    config: DeepLabV3Config

    def __init__(self, config: DeepLabV3Config, num_classes: int) -> None:
        super().__init__(config, num_classes)
        rates = tuple(rate * 16 // config.output_stride for rate in (6, 12, 18))
        conv = conv3x3(config.separable, config.depthwise_norm)
        self.aspp = ASPP(self.channels[-1], config.channels, rates, conv)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Conv2d(config.channels, num_classes, 1)
        for part in (self.aspp, self.classifier):
            init_conv(part, 0.0, "fan_in")

    def classifiers(self) -> dict[str, nn.Module]:
        """The only classifier."""
        return {"classifier": self.classifier}

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The smallest MobileNetV3 of timm under a narrow separable head."""
        return {"encoder": "mobilenetv3_small_050", "separable": True, "channels": 16, "dropout": 0.0}


@MODELS.register("deeplabv3")
class DeepLabV3(_Atrous):
    """DeepLabV3: ASPP, one 3x3 convolution, classifier."""

    def __init__(self, config: DeepLabV3Config, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.fuse = conv3x3(config.separable, config.depthwise_norm)(config.channels, config.channels)
        init_conv(self.fuse, 0.0, "fan_in")

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; ``stages`` are the encoder's maps, fine to coarse."""
        stages = tuple(self.encoder(x))
        embedding = self.fuse(self.dropout(self.aspp(stages[-1])))
        return Output(self.classifier(embedding), embedding, stages)


@MODELS.register("deeplabv3plus")
class DeepLabV3Plus(_Atrous):
    """DeepLabV3+: ASPP, a decoder that also reads the low-level map, classifier."""

    Config = DeepLabV3PlusConfig
    config: DeepLabV3PlusConfig

    def __init__(self, config: DeepLabV3PlusConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.low = low_level(self.strides)
        self.decoder = Decoder(self.channels[self.low], config)
        init_conv(self.decoder, 0.0, "fan_in")

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """That of DeepLabV3 with a narrow low-level branch."""
        return {**super().tiny(), "low_level_channels": 8}

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; ``stages`` are the encoder's maps, fine to coarse."""
        stages = tuple(self.encoder(x))
        embedding = self.decoder(stages[self.low], self.dropout(self.aspp(stages[-1])))
        return Output(self.classifier(embedding), embedding, stages)


def low_level(strides: list[int]) -> int:
    """Index of the map for the low-level branch: nearest to stride 4, of equals the deepest, not the last of all."""
    return max(range(max(1, len(strides) - 1)), key=lambda i: (-abs(math.log2(strides[i] / LOW_LEVEL_STRIDE)), i))
