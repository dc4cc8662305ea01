"""Blocks that several networks share: convolution, norm and ReLU, whole or separable."""

from __future__ import annotations

from typing import Literal

from torch import nn

from segue.models.norms import BatchNorm


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; "same" padding. Parameters are ``conv.*`` and ``norm.*``."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = BatchNorm(channels_out)
        if relu:
            # In place: batch norm's backward reads its input, never its output, so nothing that is needed is lost.
            self.relu = nn.ReLU(inplace=True)


class SeparableConvNorm(nn.Sequential):
    """Depthwise 3x3 (dilated), norm, ReLU, then pointwise 1x1, norm, ReLU (Chen et al., ECCV 2018, section 3.1)."""

    def __init__(self, channels_in: int, channels_out: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels_in, channels_in, 3, dilation=dilation, groups=channels_in)
        self.pointwise = ConvNorm(channels_in, channels_out, 1)


def init_conv(module: nn.Module, slope: float, mode: Literal["fan_in", "fan_out"]) -> None:
    """He initialisation of every convolution below ``module`` (leaky slope; ``fan_in`` or ``fan_out``), biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, a=slope, mode=mode)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
