"""Published networks restated as functions on tables of tensors under the names that their authors' files have.

Written from the papers' tables and the key layouts alone, so that a conversion can be compared with them: state dicts
with random values, and what the original computes with them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
INPLACE_EPS = 1e-5
STDC_BLOCKS = {"stdc813": (2, 2, 2), "stdc1446": (4, 5, 3)}


class Maker:
    """Fills a state dict with values as after training: no norm is the identity."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, size: int, low: float, high: float) -> Tensor:
        return torch.rand(size, generator=self.generator) * (high - low) + low

    def conv(self, name: str, shape: tuple[int, ...], bias: bool = False, out_dim: int = 0) -> None:
        scale = 1 / math.sqrt(math.prod(shape) / shape[out_dim])
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * scale
        if bias:
            self.state[f"{name}.bias"] = self.uniform(shape[out_dim], -0.2, 0.2)

    def norm(self, name: str, size: int, counter: bool = True, signed: bool = False) -> None:
        weight = self.uniform(size, 0.5, 1.5)
        self.state[f"{name}.weight"] = torch.where(self.uniform(size, -1, 1) < 0, -weight, weight) if signed else weight
        self.state[f"{name}.bias"] = self.uniform(size, -0.2, 0.2)
        self.state[f"{name}.running_mean"] = self.uniform(size, -0.2, 0.2)
        self.state[f"{name}.running_var"] = self.uniform(size, 0.5, 2)
        if counter:
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def batch_norm(s: State, name: str, x: Tensor, eps: float = 1e-5, inplace: bool = False) -> Tensor:
    weight = s[f"{name}.weight"]
    if inplace:
        weight = weight.abs() + INPLACE_EPS
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, weight, s[f"{name}.bias"], False, 0.0, eps)


# --- ERFNet -----------------------------------------------------------------------------------------------------------

ERF_ENCODER = [("down", 16, 64), *[("block", 64, 1)] * 5, ("down", 64, 128)]
ERF_ENCODER += [("block", 128, dilation) for _ in range(2) for dilation in (2, 4, 8, 16)]
ERF_DECODER = [("up", 128, 64), *[("block", 64, 1)] * 2, ("up", 64, 16), *[("block", 16, 1)] * 2]


def _erf_layer(make: Maker, name: str, kind: str, a: int, b: int, counter: bool) -> None:
    if kind == "block":
        for half in ("1", "2"):
            make.conv(f"{name}.conv3x1_{half}", (a, a, 3, 1), bias=True)
            make.conv(f"{name}.conv1x3_{half}", (a, a, 1, 3), bias=True)
            make.norm(f"{name}.bn{half}", a, counter)
    elif kind == "down":
        make.conv(f"{name}.conv", (b - a, a, 3, 3), bias=True)
        make.norm(f"{name}.bn", b, counter)
    else:
        make.conv(f"{name}.conv", (a, b, 3, 3), bias=True, out_dim=1)
        make.norm(f"{name}.bn", b, counter)


def erfnet(outputs: int, encoder_head: bool = False, seed: int = 0) -> State:
    """State dict of ERFNet; ``encoder_head``: with the classifier of encoder training."""
    make = Maker(seed)
    erfnet_encoder(make, "encoder.", counter=True)
    if encoder_head:
        make.conv("encoder.output_conv", (outputs, 128, 1, 1), bias=True)
    for i, (kind, a, b) in enumerate(ERF_DECODER):
        _erf_layer(make, f"decoder.layers.{i}", kind, a, b, True)
    make.conv("decoder.output_conv", (16, outputs, 2, 2), bias=True, out_dim=1)
    return make.state


def erfnet_encoder(make: Maker, prefix: str, counter: bool) -> None:
    """Add the encoder's tensors below ``prefix``."""
    _erf_layer(make, f"{prefix}initial_block", "down", 3, 16, counter)
    for i, (kind, a, b) in enumerate(ERF_ENCODER):
        _erf_layer(make, f"{prefix}layers.{i}", kind, a, b, counter)


def erfnet_forward(s: State, image: Tensor) -> Tensor:
    """Logits (N,C,H,W) of an image as the network gets it; sides a multiple of 8."""

    def conv(name: str, x: Tensor, padding: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], 1, padding, dilation)

    def block(name: str, x: Tensor, d: int) -> Tensor:
        y = F.relu(conv(f"{name}.conv3x1_1", x, (1, 0)))
        y = F.relu(batch_norm(s, f"{name}.bn1", conv(f"{name}.conv1x3_1", y, (0, 1)), 1e-3))
        y = F.relu(conv(f"{name}.conv3x1_2", y, (d, 0), (d, 1)))
        y = batch_norm(s, f"{name}.bn2", conv(f"{name}.conv1x3_2", y, (0, d), (1, d)), 1e-3)
        return F.relu(y + x)

    def resize(name: str, kind: str, x: Tensor) -> Tensor:
        weight, bias = s[f"{name}.conv.weight"], s[f"{name}.conv.bias"]
        if kind == "up":
            y = F.conv_transpose2d(x, weight, bias, 2, 1, 1)
        else:
            y = torch.cat([F.conv2d(x, weight, bias, 2, 1), F.max_pool2d(x, 2, 2)], 1)
        return F.relu(batch_norm(s, f"{name}.bn", y, 1e-3))

    x = resize("encoder.initial_block", "down", image)
    for part, layers in (("encoder", ERF_ENCODER), ("decoder", ERF_DECODER)):
        for i, (kind, _, b) in enumerate(layers):
            name = f"{part}.layers.{i}"
            x = block(name, x, b) if kind == "block" else resize(name, kind, x)
    return F.conv_transpose2d(x, s["decoder.output_conv.weight"], s["decoder.output_conv.bias"], 2)


# --- STDC and BiSeNet -------------------------------------------------------------------------------------------------


def _conv_bn(make: Maker, name: str, a: int, b: int, k: int, inplace: bool = False) -> None:
    make.conv(f"{name}.conv", (b, a, k, k))
    make.norm(f"{name}.bn", b, counter=not inplace, signed=inplace)


def stdc(backbone: str, prefix: str = "", tail: bool = True, seed: int = 0, make: Maker | None = None) -> State:
    """State dict of an STDC backbone with its classification tail and the stages that are registered twice."""
    make = make or Maker(seed)
    _conv_bn(make, f"{prefix}features.0", 3, 32, 3)
    _conv_bn(make, f"{prefix}features.1", 32, 64, 3)
    before, index, spans = 64, 2, [("2", [0]), ("4", [1])]
    for name, width, blocks in zip(("8", "16", "32"), (256, 512, 1024), STDC_BLOCKS[backbone], strict=True):
        spans.append((name, list(range(index, index + blocks))))
        for first in (True, *[False] * (blocks - 1)):
            here = f"{prefix}features.{index}"
            sizes = [(before, width // 2, 1), (width // 2, width // 4, 3), (width // 4, width // 8, 3)]
            for i, (a, b, k) in enumerate([*sizes, (width // 8, width // 8, 3)]):
                _conv_bn(make, f"{here}.conv_list.{i}", a, b, k)
            if first:
                make.conv(f"{here}.avd_layer.0", (width // 2, 1, 3, 3))
                make.norm(f"{here}.avd_layer.1", width // 2)
            before, index = width, index + 1
    if tail:
        _conv_bn(make, f"{prefix}conv_last", 1024, 1024, 1)
        make.conv(f"{prefix}fc", (1024, 1024))
        make.norm(f"{prefix}bn", 1024)
        make.conv(f"{prefix}linear", (1000, 1024))
    for name, numbers in spans:
        for number in numbers:
            start = f"{prefix}features.{number}."
            twins = {k.removeprefix(f"{prefix}features."): v for k, v in make.state.items() if k.startswith(start)}
            make.state |= {f"{prefix}x{name}.0.{key}": value for key, value in twins.items()}
    return make.state


def bisenet(backbone: str, classes: int, inplace: bool, boundaries: tuple[int, ...] = (), seed: int = 0) -> State:
    """State dict of BiSeNet on STDC; ``inplace``: with in-place norms; ``boundaries``: strides of boundary heads."""
    make = Maker(seed)
    stdc(backbone, "cp.backbone.", make=make)
    for number, channels in (("16", 512), ("32", 1024)):
        _conv_bn(make, f"cp.arm{number}.conv", channels, 128, 3, inplace)
        make.conv(f"cp.arm{number}.conv_atten", (128, 128, 1, 1))
        make.norm(f"cp.arm{number}.bn_atten", 128, counter=not inplace, signed=inplace)
        _conv_bn(make, f"cp.conv_head{number}", 128, 128, 3, inplace)
    _conv_bn(make, "cp.conv_avg", 1024, 128, 1, inplace)
    _conv_bn(make, "ffm.convblk", 384, 256, 1, inplace)
    make.conv("ffm.conv1", (64, 256, 1, 1))
    make.conv("ffm.conv2", (256, 64, 1, 1))
    heads = [("", 256, 256, classes), ("16", 128, 64, classes), ("32", 128, 64, classes)]
    heads += [(f"_sp{s}", {2: 32, 4: 64, 8: 256, 16: 512}[s], 64, 1) for s in boundaries]
    for name, a, middle, out in heads:
        _conv_bn(make, f"conv_out{name}.conv", a, middle, 3, inplace)
        make.conv(f"conv_out{name}.conv_out", (out, middle, 1, 1))
    return make.state


def stdc_forward(s: State, x: Tensor, backbone: str, prefix: str = "") -> list[Tensor]:
    """Maps at strides 2, 4, 8, 16 and 32."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = s[f"{name}.conv.weight"]
        return F.relu(batch_norm(s, f"{name}.bn", F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)))

    maps = [unit(f"{prefix}features.0", x, 2)]
    maps.append(unit(f"{prefix}features.1", maps[0], 2))
    index = 2
    for blocks in STDC_BLOCKS[backbone]:
        y = maps[-1]
        for _ in range(blocks):
            here = f"{prefix}features.{index}"
            first = skip = unit(f"{here}.conv_list.0", y)
            if f"{here}.avd_layer.0.weight" in s:
                skip = F.avg_pool2d(first, 3, 2, 1)
                weight = s[f"{here}.avd_layer.0.weight"]
                down = F.conv2d(first, weight, None, 2, 1, groups=len(weight))
                first = batch_norm(s, f"{here}.avd_layer.1", down)
            second = unit(f"{here}.conv_list.1", first)
            third = unit(f"{here}.conv_list.2", second)
            y = torch.cat([skip, second, third, unit(f"{here}.conv_list.3", third)], 1)
            index += 1
        maps.append(y)
    return maps


def bisenet_forward(s: State, x: Tensor, backbone: str, inplace: bool) -> dict[str, Tensor]:
    """Logits of every head at its own stride, of a normalised image; sides a multiple of 32."""

    def unit(name: str, x: Tensor) -> Tensor:
        weight = s[f"{name}.conv.weight"]
        y = F.conv2d(x, weight, None, 1, weight.shape[-1] // 2)
        return F.relu(batch_norm(s, f"{name}.bn", y, inplace=inplace))

    def attention(name: str, x: Tensor) -> Tensor:
        feature = unit(f"{name}.conv", x)
        gate = F.conv2d(feature.mean((2, 3), keepdim=True), s[f"{name}.conv_atten.weight"])
        return feature * batch_norm(s, f"{name}.bn_atten", gate, inplace=inplace).sigmoid()

    def head(name: str, x: Tensor) -> Tensor:
        return F.conv2d(unit(f"{name}.conv", x), s[f"{name}.conv_out.weight"])

    _, _, map8, map16, map32 = stdc_forward(s, x, backbone, "cp.backbone.")
    average = unit("cp.conv_avg", map32.mean((2, 3), keepdim=True))
    sum32 = attention("cp.arm32", map32) + average
    context16 = unit("cp.conv_head32", F.interpolate(sum32, map16.shape[-2:], mode="nearest"))
    sum16 = attention("cp.arm16", map16) + context16
    context8 = unit("cp.conv_head16", F.interpolate(sum16, map8.shape[-2:], mode="nearest"))
    fused = unit("ffm.convblk", torch.cat([map8, context8], 1))
    squeezed = F.relu(F.conv2d(fused.mean((2, 3), keepdim=True), s["ffm.conv1.weight"]))
    fused = fused + fused * F.conv2d(squeezed, s["ffm.conv2.weight"]).sigmoid()
    out = {
        "main": head("conv_out", fused),
        "out16": head("conv_out16", context8),
        "out32": head("conv_out32", context16),
    }
    if "conv_out_sp8.conv_out.weight" in s:
        out["detail"] = head("conv_out_sp8", map8)
    return out


# --- Discriminators ---------------------------------------------------------------------------------------------------


def discriminator(names: tuple[str, ...], channels: int, seed: int = 0) -> State:
    """State dict of the five convolutions under the given names."""
    make = Maker(seed)
    sizes = (channels, 64, 128, 256, 512, 1)
    for name, a, b in zip(names, sizes, sizes[1:], strict=False):
        make.conv(name, (b, a, 4, 4), bias=True)
    return make.state


def discriminator_forward(s: State, x: Tensor) -> Tensor:
    """Domain logits at 1/32 of the size."""
    layers = list(s)[::2]
    for key in layers:
        x = F.conv2d(x, s[key], s[key.replace("weight", "bias")], 2, 1)
        x = F.leaky_relu(x, 0.2) if key != layers[-1] else x
    return x
