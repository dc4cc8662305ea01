"""BiSeNet and STDC: published sizes, the equations of their blocks, and training with one value a channel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segue.models.bisenet import AttentionRefinement, BiSeNet, BiSeNetConfig, FeatureFusion
from segue.models.build import build_model
from segue.models.stdc import STDC, Bottleneck, scaled


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def bisenet(classes: int = 19, **settings: object) -> BiSeNet:
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", **settings}, classes)
    assert isinstance(model, BiSeNet)
    return model


@pytest.mark.parametrize(("name", "parameters", "last"), [("stdc813", 5_318_304, 7), ("stdc1446", 9_348_768, 13)])
def test_backbones_have_the_published_size(name: str, parameters: int, last: int) -> None:
    backbone = STDC(name)
    assert count(backbone) == parameters
    assert len(backbone.features) == last + 1
    assert backbone.channels == (32, 64, 256, 512, 1024)


def test_network_has_the_published_size() -> None:
    model = bisenet()
    assert count(model) == 8_425_248
    assert count(model.deployed()) == 8_275_104
    assert count(bisenet(detail=True)) == 8_425_248 + 256 * 64 * 9 + 2 * 64 + 64


def test_width_scales_every_part() -> None:
    narrow, full = bisenet(width=0.25), bisenet()
    assert count(narrow) < 540_000
    for (name, a), b in zip(narrow.named_children(), full.children(), strict=True):
        assert count(a) < 0.1 * count(b), name
    assert [scaled(c, 0.25) for c in (32, 64, 256, 512, 1024)] == list(narrow.backbone.channels)
    assert all(c % 8 == 0 for width in (0.1, 0.3, 0.77) for c in STDC("stdc813", width).channels)
    assert scaled(32, 0.01) == 8


def test_strides_heads_and_embedding() -> None:
    model = bisenet(width=0.25, detail=True)
    output = model(torch.rand(2, 3, 64, 128))
    assert [64 // s.shape[-2] for s in output.stages] == [2, 4, 8, 16, 32]
    assert output.logits.shape == (2, 19, 8, 16)
    assert output.embedding.shape == (2, 64, 8, 16)
    shapes = {h.name: (h.target, h.weight, tuple(h.logits.shape)) for h in output.heads}
    assert shapes == {
        "out16": ("classes", 1.0, (2, 19, 8, 16)),
        "out32": ("classes", 1.0, (2, 19, 4, 8)),
        "detail": ("boundary", 1.0, (2, 1, 8, 16)),
    }
    assert [h.name for h in bisenet(width=0.25)(torch.rand(2, 3, 64, 64)).heads] == ["out16", "out32"]


def test_logits_are_enlarged_with_corners_aligned() -> None:
    output = bisenet(width=0.125).eval()(torch.rand(1, 3, 64, 96))
    expected = F.interpolate(output.logits, (64, 96), mode="bilinear", align_corners=True)
    torch.testing.assert_close(output.upsample(output.logits), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_bottleneck_concatenates_its_four_convolutions(stride: int) -> None:
    block = Bottleneck(8, 32, stride).eval()
    x = torch.randn(1, 8, 12, 12)
    first = block.convs[0](x)
    second = block.convs[1](first if block.down is None else block.down(first))
    third = block.convs[2](second)
    skip = first if stride == 1 else F.avg_pool2d(first, 3, 2, 1)
    expected = torch.cat([skip, second, third, block.convs[3](third)], 1)
    torch.testing.assert_close(block(x), expected)
    assert [c.conv.out_channels for c in block.convs] == [16, 8, 4, 4]
    assert block(x).shape == (1, 32, 12 // stride, 12 // stride)
    assert all(
        (c(x if i == 0 else torch.randn(1, c.conv.in_channels, 4, 4)) >= 0).all() for i, c in enumerate(block.convs)
    )
    if block.down is not None:
        assert block.down.conv.groups == 16
        assert (block.down(first) < 0).any(), "no activation after the depthwise convolution"


def test_attention_blocks_follow_their_equations() -> None:
    x, coarse = torch.randn(2, 8, 6, 6), torch.randn(2, 16, 6, 6)
    arm = AttentionRefinement(8, 16).eval()
    f = arm.conv(x)
    a = torch.sigmoid(arm.norm(arm.attention(f.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(arm(x, coarse), f * a + coarse)
    ffm = FeatureFusion(24, 16).eval()
    f = ffm.mix(torch.cat([x, coarse], 1))
    a = torch.sigmoid(ffm.expand(torch.relu(ffm.reduce(f.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(ffm(x, coarse), f + f * a)


def test_one_image_of_32_pixels_trains() -> None:
    model = bisenet(width=0.125, detail=True)
    output = model(torch.rand(1, 3, 32, 32))
    (output.logits.square().mean() + sum(h.logits.square().mean() for h in output.heads)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_names_of_weights_are_stable() -> None:
    keys = set(bisenet(width=0.125, detail=True).state_dict())
    assert {
        "backbone.features.0.conv.weight",
        "backbone.features.2.convs.3.norm.running_var",
        "backbone.features.2.down.conv.weight",
        "context.average.conv.weight",
        "context.arm32.attention.weight",
        "context.arm16.norm.weight",
        "context.smooth16.conv.weight",
        "fusion.expand.weight",
        "head.classifier.weight",
        "head16.conv.conv.weight",
        "head32.classifier.weight",
        "detail.classifier.weight",
    } <= keys


def test_defaults_are_the_published_network() -> None:
    config = BiSeNetConfig(name="bisenet")
    assert (config.backbone, config.width, config.detail) == ("stdc813", 1.0, False)
