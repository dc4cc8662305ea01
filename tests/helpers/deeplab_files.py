"""Published DeepLab files, synthesised (:class:`File`), and their networks restated on the files' names (:class:`Run`).

Nothing here knows ``segue``: both follow the publications' own code layout (AdaptSegNet, VainF, D2ADA).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of each stage (Sandler et al., CVPR 2018, Table 2)."""


class File:
    """Grows a state dict layer by layer; ``values=False`` makes tensors without memory, for shapes only."""

    def __init__(self, values: bool = True) -> None:
        self.state: State = {}
        self.values = values
        self.generator = torch.Generator().manual_seed(4)

    def draw(self, low: float, high: float, *shape: int) -> Tensor:
        if not self.values:
            return torch.zeros(()).expand(shape)
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def conv(self, key: str, channels_in: int, out: int, kernel: int, *, groups: int = 1, bias: bool = False) -> None:
        bound = (6 / (channels_in // groups * kernel**2)) ** 0.5
        self.state[f"{key}.weight"] = self.draw(-bound, bound, out, channels_in // groups, kernel, kernel)
        if bias:
            self.state[f"{key}.bias"] = self.draw(-0.5, 0.5, out)

    def norm(self, key: str, channels: int, gain: float = 1.0) -> None:
        self.state[f"{key}.weight"] = self.draw(0.6 * gain, 1.4 * gain, channels)
        self.state[f"{key}.bias"] = self.draw(-0.2, 0.2, channels)
        self.state[f"{key}.running_mean"] = self.draw(-0.2, 0.2, channels)
        self.state[f"{key}.running_var"] = self.draw(0.6, 1.6, channels)
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def resnet(self, depths: tuple[int, ...], prefix: str = "") -> None:
        self.conv(f"{prefix}conv1", 3, 64, 7)
        self.norm(f"{prefix}bn1", 64)
        before = 64
        for layer, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
            for block in range(depth):
                key = f"{prefix}layer{layer}.{block}"
                sizes = [(before, width, 1), (width, width, 3), (width, 4 * width, 1)]
                for number, (a, b, kernel) in enumerate(sizes, 1):
                    self.conv(f"{key}.conv{number}", a, b, kernel)
                    self.norm(f"{key}.bn{number}", b, 0.3 if number == 3 else 1.0)
                if block == 0:
                    self.conv(f"{key}.downsample.0", before, 4 * width, 1)
                    self.norm(f"{key}.downsample.1", 4 * width)
                before = 4 * width

    def mobilenet(self) -> None:
        self.conv("backbone.low_level_features.0.0", 3, 32, 3)
        self.norm("backbone.low_level_features.0.1", 32)
        number, before = 1, 32
        for expansion, out, depth, _ in MOBILENET:
            for _ in range(depth):
                key = f"backbone.{'low' if number < 4 else 'high'}_level_features.{number}.conv"
                hidden, last = before * expansion, 1 if expansion == 1 else 2
                if expansion != 1:
                    self.conv(f"{key}.0.0", before, hidden, 1)
                    self.norm(f"{key}.0.1", hidden)
                self.conv(f"{key}.{last - 1}.0", hidden, hidden, 3, groups=hidden)
                self.norm(f"{key}.{last - 1}.1", hidden)
                self.conv(f"{key}.{last}", hidden, out, 1)
                self.norm(f"{key}.{last + 1}", out, 0.5)
                number, before = number + 1, out

    def classic_head(self, key: str, channels: int, classes: int) -> None:
        for branch in range(4):
            self.conv(f"{key}.conv2d_list.{branch}", channels, classes, 3, bias=True)

    def conv_norm(self, conv: str, norm: str, a: int, b: int, kernel: int, separable: bool = False) -> None:
        if separable:
            self.conv(f"{conv}.body.0", a, a, kernel, groups=a)
            self.conv(f"{conv}.body.1", a, b, 1)
        else:
            self.conv(conv, a, b, kernel)
        self.norm(norm, b)

    def v3_head(self, channels: int, low: int | None, classes: int, *, final: bool, separable: bool = False) -> None:
        aspp, tail = ("classifier.aspp", 0) if low else ("classifier.classifier.0", 1)
        for branch in range(4):
            kernel = 3 if branch else 1
            key = f"{aspp}.convs.{branch}"
            self.conv_norm(f"{key}.0", f"{key}.1", channels, 256, kernel, separable and branch > 0)
        self.conv_norm(f"{aspp}.convs.4.1", f"{aspp}.convs.4.2", channels, 256, 1)
        self.conv_norm(f"{aspp}.project.0", f"{aspp}.project.1", 1280, 256, 1)
        if low:
            self.conv_norm("classifier.project.0", "classifier.project.1", low, 48, 1)
        key = "classifier.classifier"
        self.conv_norm(f"{key}.{tail}", f"{key}.{tail + 1}", 304 if low else 256, 256, 3, separable)
        self.conv("classifier.final" if final else f"{key}.{tail + 3}", 256, classes, 1, bias=True)

    def region_head(self, channels: int, classes: int) -> None:
        for branch in range(4):
            self.conv(f"classifier.aspp.convs.{branch}.0", channels, 256, 3)
        self.conv("classifier.final", 256, classes, 1, bias=True)


class Run:
    """Layers of a state dict applied by key."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(
        self, key: str, x: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
    ) -> Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state.get(f"{key}.bias")
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def norm(self, key: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (self.state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        shape = (1, -1, 1, 1)
        scale = weight / (var + 1e-5).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + bias.view(shape)

    def resnet(
        self, x: Tensor, depths: tuple[int, ...], caffe: bool, stride16: bool = False, prefix: str = ""
    ) -> list[Tensor]:
        """Maps of the four layers; Caffe's: stride in conv1, full dilation at once, pooling that rounds up."""
        x = self.norm(f"{prefix}bn1", self.conv(f"{prefix}conv1", x, stride=2, padding=3)).relu()
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=caffe)
        dilations, maps = (1, 1, 1, 2) if stride16 else (1, 1, 2, 4), []
        for layer, depth in enumerate(depths, 1):
            stride = 2 if layer == 2 or (layer == 3 and stride16) else 1
            for block in range(depth):
                key, dilation = f"{prefix}layer{layer}.{block}", dilations[layer - 1]
                first = block == 0
                if first and not caffe and layer > 1:
                    dilation = dilations[layer - 2]
                step = stride if first else 1
                y = self.norm(f"{key}.bn1", self.conv(f"{key}.conv1", x, stride=step if caffe else 1)).relu()
                y = self.conv(f"{key}.conv2", y, stride=1 if caffe else step, padding=dilation, dilation=dilation)
                y = self.norm(f"{key}.bn3", self.conv(f"{key}.conv3", self.norm(f"{key}.bn2", y).relu()))
                if first:
                    x = self.norm(f"{key}.downsample.1", self.conv(f"{key}.downsample.0", x, stride=step))
                x = (x + y).relu()
            maps.append(x)
        return maps

    def mobilenet(self, x: Tensor, output_stride: int) -> tuple[Tensor, Tensor]:
        """Maps at stride 4 and at the output stride; a block pads its input, the stem pads nothing."""
        x = self.norm("backbone.low_level_features.0.1", self.conv("backbone.low_level_features.0.0", x, stride=2))
        x = x.clamp(0, 6)
        number, reached, dilation, low = 1, 2, 1, x
        for expansion, _, depth, stride in MOBILENET:
            before = dilation
            if reached == output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            for block in range(depth):
                rate, step = (before, stride) if block == 0 else (dilation, 1)
                key = f"backbone.{'low' if number < 4 else 'high'}_level_features.{number}.conv"
                y, last = F.pad(x, (rate,) * 4), 1 if expansion == 1 else 2
                if expansion != 1:
                    y = self.norm(f"{key}.0.1", self.conv(f"{key}.0.0", y)).clamp(0, 6)
                y = self.conv(f"{key}.{last - 1}.0", y, stride=step, dilation=rate, groups=y.shape[1])
                y = self.conv(f"{key}.{last}", self.norm(f"{key}.{last - 1}.1", y).clamp(0, 6))
                y = self.norm(f"{key}.{last + 1}", y)
                x = x + y if y.shape == x.shape and step == 1 else y
                low = x if number == 3 else low
                number += 1
        return low, x

    def classic(self, key: str, x: Tensor, branches: int) -> Tensor:
        rates = (6, 12, 18, 24)[:branches]
        parts = [self.conv(f"{key}.conv2d_list.{i}", x, padding=r, dilation=r) for i, r in enumerate(rates)]
        return torch.stack(parts).sum(0)

    def conv_norm(self, conv: str, norm: str, x: Tensor, rate: int = 0) -> Tensor:
        if f"{conv}.body.0.weight" in self.state:
            x = self.conv(f"{conv}.body.0", x, padding=rate, dilation=max(1, rate), groups=x.shape[1])
            x = self.conv(f"{conv}.body.1", x)
        else:
            x = self.conv(conv, x, padding=rate, dilation=max(1, rate))
        return self.norm(norm, x).relu()

    def v3_head(self, low: Tensor | None, x: Tensor, output_stride: int, last: str) -> Tensor:
        aspp, tail = ("classifier.classifier.0", 1) if low is None else ("classifier.aspp", 0)
        factor = 16 // output_stride
        parts = [
            self.conv_norm(f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1", x, rate * factor)
            for i, rate in enumerate((0, 6, 12, 18))
        ]
        pooled = self.conv_norm(f"{aspp}.convs.4.1", f"{aspp}.convs.4.2", x.mean((2, 3), keepdim=True))
        parts.append(pooled.repeat(1, 1, *x.shape[-2:]))
        x = self.conv_norm(f"{aspp}.project.0", f"{aspp}.project.1", torch.cat(parts, 1))
        if low is not None:
            low = self.conv_norm("classifier.project.0", "classifier.project.1", low)
            up = F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([low, up], 1)
        key = "classifier.classifier"
        return self.conv(last, self.conv_norm(f"{key}.{tail}", f"{key}.{tail + 1}", x, 1))

    def region_head(self, x: Tensor) -> Tensor:
        parts = [
            self.conv(f"classifier.aspp.convs.{i}.0", x, padding=r, dilation=r) for i, r in enumerate((6, 12, 18, 24))
        ]
        return self.conv("classifier.final", torch.stack(parts).sum(0))
