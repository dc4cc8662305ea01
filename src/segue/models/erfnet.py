"""ERFNet (Romera et al., "ERFNet: Efficient residual factorized ConvNet", T-ITS 2018): two million parameters.

Residual blocks of factorised 3x1 and 1x3 convolutions (the paper's non-bottleneck-1D), down to stride 8 and up again by
transposed convolutions; logits come at full resolution. Names of weights are the authors'. Knobs that matter: the two
dropout rates (as in the authors' code).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.models.base import MODELS, ModelConfig, Output, SegModel
from segue.models.norms import BatchNorm

EPS = 1e-3
DILATIONS = (2, 4, 8, 16)


class ERFNetConfig(ModelConfig):
    """Settings of ``erfnet``."""

    dropout_shallow: float = Field(0.03, ge=0, lt=1)
    """Channel dropout in the five encoder blocks at stride 4."""
    dropout_deep: float = Field(0.3, ge=0, lt=1)
    """Channel dropout in the eight encoder blocks at stride 8."""


class Downsampler(nn.Module):
    """Half the size: a strided 3x3 convolution beside a 2x2 maximum of the input, then norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out - channels_in, 3, 2, 1)
        self.bn = BatchNorm(channels_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,H,W) to (N,C_out,H/2,W/2)."""
        return F.relu(self.bn(torch.cat([self.conv(x), F.max_pool2d(x, 2)], 1)))


class Upsampler(nn.Module):
    """Twice the size: a transposed 3x3 convolution, norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 3, 2, 1, output_padding=1)
        self.bn = BatchNorm(channels_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C_in,h,w) to (N,C_out,2h,2w)."""
        return F.relu(self.bn(self.conv(x)))


class NonBottleneck1D(nn.Module):
    """Two 3x3 convolutions, each as 3x1 then 1x3 (the second pair dilated), dropout, and the input added."""

    def __init__(self, channels: int, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = BatchNorm(channels, eps=EPS)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = BatchNorm(channels, eps=EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) to the same shape."""
        y = F.relu(self.bn1(self.conv1x3_1(F.relu(self.conv3x1_1(x)))))
        y = self.bn2(self.conv1x3_2(F.relu(self.conv3x1_2(y))))
        return F.relu(self.dropout(y) + x)


class Encoder(nn.Module):
    """Sixteen layers down to 128 channels at stride 8."""

    def __init__(self, shallow: float, deep: float) -> None:
        super().__init__()
        self.initial_block = Downsampler(3, 16)
        self.layers = nn.ModuleList(
            [
                Downsampler(16, 64),
                *(NonBottleneck1D(64, shallow) for _ in range(5)),
                Downsampler(64, 128),
                *(NonBottleneck1D(128, deep, dilation) for _ in range(2) for dilation in DILATIONS),
            ]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) to the maps at strides 2, 4 and 8."""
        maps = [self.initial_block(x)]
        for layer in self.layers:
            down = layer(maps[-1])
            if isinstance(layer, Downsampler):
                maps.append(down)
            else:
                maps[-1] = down
        return tuple(maps)


class Decoder(nn.Module):
    """Up to 16 channels at stride 2; ``output_conv`` makes full-size logits of them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Upsampler(128, 64),
            NonBottleneck1D(64),
            NonBottleneck1D(64),
            Upsampler(64, 16),
            NonBottleneck1D(16),
            NonBottleneck1D(16),
        )
        self.output_conv = nn.ConvTranspose2d(16, num_classes, 2, 2)


@MODELS.register("erfnet")
class ERFNet(SegModel):
    """ERFNet: 2,064,191 parameters with 19 classes; small enough for a CPU."""

    Config = ERFNetConfig
    config: ERFNetConfig
    multiple = 8
    encoder_prefix = "encoder."

    def __init__(self, config: ERFNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.encoder = Encoder(config.dropout_shallow, config.dropout_deep)
        self.decoder = Decoder(num_classes)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Without dropout; the network has one size."""
        return {"dropout_shallow": 0.0, "dropout_deep": 0.0}

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; ``stages`` have strides 2, 4 and 8; the embedding's stride is 2."""
        stages = self.encoder(x)
        embedding = self.decoder.layers(stages[-1])
        return Output(self.decoder.output_conv(embedding), embedding, stages)

    def classifiers(self) -> dict[str, nn.ConvTranspose2d]:
        """The transposed 2x2 convolution at the end."""
        return {"decoder.output_conv": self.decoder.output_conv}
