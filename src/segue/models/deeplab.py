"""DeepLabV3+ on any timm encoder (Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018).

Knobs that matter: ``encoder`` (any timm name with feature maps), ``output_stride`` (16 is the paper's default; 8 costs
about three times as much), ``separable`` (far fewer operations). Logits come at the stride of the encoder's
low-level map, 4 for most.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.base import MODELS, ModelConfig, Output, SegModel
from segue.models.blocks import ConvNorm, SeparableConvNorm, init_conv

LOW_LEVEL_STRIDE = 4


class DeepLabConfig(ModelConfig):
    """Settings of ``deeplabv3plus``."""

    encoder: str = "tf_efficientnet_lite0"
    """Name of a timm model with feature maps, for example ``resnet50.a1_in1k`` or ``tf_efficientnet_lite0``."""
    output_stride: Literal[8, 16, 32] = 16
    """Stride of the encoder's last map; below 32 its last stages are dilated. ASPP rates are 6, 12, 18 at 16, twice
    that at 8, half at 32."""
    separable: bool = False
    """Depthwise separable 3x3 convolutions in ASPP and decoder (section 3.1 of the paper)."""
    channels: int = Field(256, ge=8)
    """Width of ASPP and decoder."""
    low_level_channels: int = Field(48, ge=8)
    """Width of the low-level branch (Table 1 of the paper)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after ASPP, as in the authors' code (keep probability 0.9)."""


def create_encoder(name: str, output_stride: int, pretrained: bool = False) -> Any:
    """A timm feature extractor whose last map has that stride; ``UserError`` says what to change when there is none.

    The module has timm's ``feature_info`` and ``pretrained_cfg``, which no type declares.
    """
    way_out = "choose another model.encoder (timm.list_models lists them) or model.output_stride"
    if not timm.is_model(name):
        raise UserError(f"model.encoder: timm {timm.__version__} has no model {name!r}; {way_out}")
    try:
        encoder = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=pretrained)
    except (TypeError, AssertionError, NotImplementedError):  # how timm's families refuse an output stride
        encoder = _natural_encoder(name, output_stride, pretrained, way_out)
    _probe(encoder, name, way_out)
    return encoder


def _natural_encoder(name: str, output_stride: int, pretrained: bool, way_out: str) -> Any:
    try:
        encoder: Any = timm.create_model(name, features_only=True, pretrained=pretrained)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise UserError(f"model.encoder {name!r} has no feature maps in timm ({error}); {way_out}") from error
    strides = encoder.feature_info.reduction()
    if strides[-1] != output_stride:
        raise UserError(
            f"model.encoder {name!r} has output stride {strides[-1]} and cannot change it to {output_stride}; {way_out}"
        )
    return encoder


@torch.no_grad()
def _probe(encoder: Any, name: str, way_out: str) -> None:
    """Some transformers accept one image size only, others return channels last: better told now than in training."""
    info = encoder.feature_info
    wanted = [(1, c, 64 // s, 96 // s) for c, s in zip(info.channels(), info.reduction(), strict=True)]
    try:
        found = [tuple(m.shape) for m in encoder.eval()(torch.zeros(1, 3, 64, 96))]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"model.encoder {name!r} cannot take images of any size ({error}); {way_out}") from error
    encoder.train()
    if found != wanted:
        raise UserError(f"model.encoder {name!r} returns maps of shape {found}, not {wanted}; {way_out}")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3, and the image average, concatenated and projected."""

    def __init__(self, channels_in: int, channels: int, rates: tuple[int, ...], separable: bool) -> None:
        super().__init__()
        conv = SeparableConvNorm if separable else ConvNorm
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


class Decoder(nn.Module):
    """Coarse features up to the low-level map's size, concatenated with its few channels, two 3x3 convolutions."""

    def __init__(self, low_in: int, config: DeepLabConfig) -> None:
        super().__init__()
        conv = SeparableConvNorm if config.separable else ConvNorm
        self.low = ConvNorm(low_in, config.low_level_channels, 1)
        self.fuse = nn.Sequential(
            conv(config.channels + config.low_level_channels, config.channels), conv(config.channels, config.channels)
        )

    def forward(self, low: Tensor, coarse: Tensor) -> Tensor:
        """(N,C,h,w) and (N,channels,h',w') to (N,channels,h,w)."""
        coarse = F.interpolate(coarse, low.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.fuse(torch.cat([coarse, self.low(low)], 1))
        return out


@MODELS.register("deeplabv3plus")
class DeepLabV3Plus(SegModel):
    """DeepLabV3+; normalisation is that of the timm encoder."""

    Config = DeepLabConfig
    config: DeepLabConfig
    encoder_prefix = "encoder."

    def __init__(self, config: DeepLabConfig, num_classes: int) -> None:
        encoder = create_encoder(config.encoder, config.output_stride)
        published = encoder.pretrained_cfg
        super().__init__(config, num_classes, published["mean"], published["std"])
        self.encoder = encoder
        channels, strides = encoder.feature_info.channels(), encoder.feature_info.reduction()
        self.low = low_level(strides)
        rates = tuple(rate * 16 // config.output_stride for rate in (6, 12, 18))
        self.aspp = ASPP(channels[-1], config.channels, rates, config.separable)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = Decoder(channels[self.low], config)
        self.classifier = nn.Conv2d(config.channels, num_classes, 1)
        for part in (self.aspp, self.decoder, self.classifier):
            init_conv(part, 0.0, "fan_in")

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The smallest MobileNetV3 of timm under a narrow separable decoder."""
        return {
            "encoder": "mobilenetv3_small_050",
            "separable": True,
            "channels": 16,
            "low_level_channels": 8,
            "dropout": 0.0,
        }

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; ``stages`` are the encoder's maps, fine to coarse."""
        stages = tuple(self.encoder(x))
        embedding = self.decoder(stages[self.low], self.dropout(self.aspp(stages[-1])))
        return Output(self.classifier(embedding), embedding, stages)

    def classifiers(self) -> dict[str, nn.Conv2d]:
        """The only classifier."""
        return {"classifier": self.classifier}

    def imagenet_state(self) -> dict[str, Tensor]:
        """Weights of timm's pretrained encoder, under the names of ours; downloads unless they are cached."""
        state: dict[str, Tensor] = create_encoder(self.config.encoder, self.config.output_stride, True).state_dict()
        return state


def low_level(strides: list[int]) -> int:
    """Index of the map for the low-level branch: nearest to stride 4, of equals the deepest, not the last of all."""
    return max(range(max(1, len(strides) - 1)), key=lambda i: (-abs(math.log2(strides[i] / LOW_LEVEL_STRIDE)), i))
