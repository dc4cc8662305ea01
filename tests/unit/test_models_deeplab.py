"""The DeepLab family: sizes, encoders of several families, strides, rates, and what is said about wrong encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segue.errors import UserError
from segue.models.aspp import BareSeparableConvNorm
from segue.models.base import SegModel
from segue.models.blocks import SeparableConvNorm
from segue.models.build import build_model
from segue.models.deeplab import DeepLabV3, DeepLabV3Plus, low_level
from segue.models.deeplabv2 import DeepLabV2
from segue.models.encoders import create_encoder


def deeplab(encoder: str = "resnet10t", **settings: Any) -> DeepLabV3Plus:
    small = {"channels": 16, "low_level_channels": 8}
    model = build_model({"name": "deeplabv3plus", "encoder": encoder, **small, **settings}, 4)
    assert isinstance(model, DeepLabV3Plus)
    return model


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_and_rates(output_stride: int) -> None:
    model = deeplab(output_stride=output_stride).eval()
    output = model(torch.rand(1, 3, 64, 96))
    assert output.stages[-1].shape[-2:] == (64 // output_stride, 96 // output_stride)
    assert output.logits.shape == (1, 4, 16, 24)
    rates = [b.conv.dilation[0] for b in model.aspp.branches]
    assert rates == {8: [1, 12, 24, 36], 16: [1, 6, 12, 18], 32: [1, 3, 6, 9]}[output_stride]


def test_encoder_brings_its_normalisation() -> None:
    lite = deeplab("tf_efficientnet_lite0")
    assert lite.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert lite.std.flatten().tolist() == [0.5, 0.5, 0.5]
    torch.testing.assert_close(deeplab().mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize(
    ("strides", "index"), [([2, 4, 8, 16, 16], 1), ([4, 8, 16, 32], 0), ([8, 16, 32], 0), ([1, 2, 4, 8], 2), ([16], 0)]
)
def test_low_level_map_is_the_one_nearest_to_stride_4(strides: list[int], index: int) -> None:
    assert low_level(strides) == index


def test_encoder_without_a_map_at_stride_2_or_a_changeable_stride() -> None:
    convnext = deeplab("convnext_atto").eval()  # its maps begin at stride 4
    assert convnext(torch.rand(1, 3, 64, 64)).logits.shape == (1, 4, 16, 16)
    pvt = deeplab("pvt_v2_b0", output_stride=32).eval()  # takes no output_stride, 32 is its own
    assert pvt(torch.rand(1, 3, 64, 64)).logits.shape == (1, 4, 16, 16)


@pytest.mark.parametrize(
    ("encoder", "output_stride", "said"),
    [
        ("resnet_of_nobody", 16, "no model 'resnet_of_nobody'"),
        ("pvt_v2_b0", 16, "has output stride 32 and cannot change it to 16"),
        ("vit_tiny_patch16_224", 16, "cannot take images of any size"),
        ("gmixer_12_224", 16, "gmixer_12_224"),
    ],
)
def test_encoders_that_do_not_fit_are_named(encoder: str, output_stride: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        create_encoder(encoder, output_stride)
    assert "choose another model.encoder" in str(caught.value)
    assert encoder in str(caught.value)


def test_separable_is_smaller_and_dropout_acts_in_training_only() -> None:
    plain, separable = deeplab(), deeplab(separable=True)
    assert sum(p.numel() for p in separable.aspp.parameters()) < 0.5 * sum(p.numel() for p in plain.aspp.parameters())
    model = deeplab(dropout=0.5)
    x = torch.rand(2, 3, 64, 64)
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


def test_image_pooling_sees_the_whole_image() -> None:
    aspp = deeplab(output_stride=32).aspp.eval()
    x = torch.zeros(1, 512, 40, 40)
    far = x.clone()
    far[..., 39, 39] = 1000.0  # further from (0, 0) than the largest rate, 9
    assert not torch.equal(aspp(x)[..., 0, 0], aspp(far)[..., 0, 0])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sketch(**settings: Any) -> SegModel:
    """A network without values: shapes of anything in no time."""
    with torch.device("meta"):
        return build_model(settings, 19)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"name": "deeplabv3plus", "decoder_convs": 1}, 58_753_459),
        ({"name": "deeplabv2"}, 43_901_068),
        ({"name": "deeplabv2", "encoder_style": "caffe"}, 43_901_068),
        ({"name": "deeplabv2", "auxiliary": True}, 43_901_068 + 4 * (1024 * 9 * 19 + 19)),
        ({"name": "deeplabv2", "head": "region"}, 61_379_411),
    ],
)
def test_networks_on_resnet101_have_the_published_size(settings: dict[str, Any], parameters: int) -> None:
    model = sketch(encoder="resnet101", **settings)
    assert count(model) == parameters
    assert count(model.get_submodule("encoder")) == 42_500_160
    if settings.get("auxiliary"):
        assert count(model.deployed()) == 43_901_068


def test_second_decoder_convolution_is_the_default() -> None:
    one, two = (sketch(name="deeplabv3plus", encoder="resnet50", decoder_convs=n) for n in (1, 2))
    assert count(two) - count(one) == 256 * 256 * 9 + 2 * 256
    assert count(sketch(name="deeplabv3plus", encoder="resnet50")) == count(two)


@pytest.mark.parametrize("name", ["deeplabv2", "deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    ("encoder", "channels", "low"), [("resnet50", 2048, 256), ("resnet101", 2048, 256), ("mobilenetv2_100", 320, 24)]
)
def test_every_encoder_at_both_strides(name: str, output_stride: int, encoder: str, channels: int, low: int) -> None:
    model = sketch(name=name, encoder=encoder, output_stride=output_stride).eval()
    output = model(torch.empty(2, 3, 96, 160, device="meta"))
    stride = 4 if name == "deeplabv3plus" else output_stride
    assert output.logits.shape == (2, 19, 96 // stride, 160 // stride)
    assert output.stages[-1].shape == (2, channels, 96 // output_stride, 160 // output_stride)
    assert output.embedding.shape[1] == (channels if name == "deeplabv2" else 256)
    if isinstance(model, DeepLabV3Plus):
        assert output.stages[model.low].shape == (2, low, 24, 40)
        assert model.decoder.low.conv.weight.shape == (48, low, 1, 1)


@pytest.mark.parametrize("name", ["deeplabv2", "deeplabv3", "deeplabv3plus"])
def test_caffe_grid_has_a_point_on_every_border(name: str) -> None:
    model = sketch(name=name, encoder="resnet50", encoder_style="caffe", output_stride=8).eval()
    for height, width in ((512, 1024), (33, 47), (227, 320)):
        output = model(torch.empty(1, 3, height, width, device="meta"))
        # Worked out by hand for 1024: convolution 512, pooling that rounds up 257, layer 2 129.
        halves = [-(-n // 2) for n in (height, width)]
        quarters = [-(-(n - 1) // 2) + 1 for n in halves]
        assert output.stages[1].shape[-2:] == tuple(quarters)
        assert output.stages[-1].shape[-2:] == tuple(-(-n // 2) for n in quarters)
        assert output.upsample(output.logits).shape[-2:] == (height, width)
        assert output.align_corners
        assert output.padded == output.size == (height, width)
    assert output.stages[-1].shape[-2:] == (29, 41)
    assert model(torch.empty(1, 3, 512, 1024, device="meta")).stages[-1].shape[-2:] == (65, 129)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoder": "mobilenetv2_100", "encoder_style": "caffe"}, "caffe is for plain ResNets"),
        ({"encoder": "resnet18", "encoder_style": "caffe"}, "caffe is for plain ResNets"),
        ({"encoder": "resnet50", "encoder_style": "fixed_padding"}, "fixed_padding is for MobileNetV2"),
        ({"encoder": "resnet50", "encoder_style": "caffe", "weights": "imagenet"}, "not in the Caffe style"),
        ({"rates": []}, "rates"),
    ],
)
def test_styles_that_do_not_fit_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sketch(name="deeplabv2", **settings)


@pytest.mark.parametrize("head", ["classic", "region"])
@pytest.mark.parametrize("rates", [(6, 12), (6, 12, 18, 24)])
def test_deeplabv2_sums_its_rates(head: str, rates: tuple[int, ...]) -> None:
    model = build_model(
        {"name": "deeplabv2", "encoder": "resnet10t", "head": head, "channels": 16, "rates": rates}, 3
    ).eval()
    assert isinstance(model, DeepLabV2)
    summed = model.classifier if head == "classic" else model.pyramid
    convs = next(iter(summed.children()))
    assert [c.dilation for c in convs] == [c.padding for c in convs] == [(r, r) for r in rates]
    assert all((c.bias is not None) == (head == "classic") for c in convs)
    with torch.no_grad():
        output = model(torch.rand(1, 3, 64, 96))
        parts = torch.stack([conv(output.stages[-1]) for conv in convs]).sum(0)
        torch.testing.assert_close(parts, output.logits if head == "classic" else output.embedding)
        torch.testing.assert_close(model.classifier(output.embedding), output.logits)
    if head == "classic":
        assert all(0.009 < c.weight.std().item() < 0.011 for c in convs)


def test_growth_of_summed_convolutions_counts_the_share_once() -> None:
    model = build_model({"name": "deeplabv2", "encoder": "resnet10t", "auxiliary": True}, 3).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        old = model(x).logits
        model.grow_head(4, "background")
        new = model(x).logits
    torch.testing.assert_close(new[:, 3:], old[:, :1].expand(-1, 4, -1, -1) - torch.tensor(5.0).log())
    torch.testing.assert_close(new[:, 1:3], old[:, 1:3])


@pytest.mark.parametrize("depthwise_norm", [False, True])
def test_separable_heads(depthwise_norm: bool) -> None:
    settings = {"separable": True, "depthwise_norm": depthwise_norm, "channels": 16}
    model = build_model({"name": "deeplabv3", "encoder": "resnet10t", **settings}, 3)
    assert isinstance(model, DeepLabV3)
    kind = SeparableConvNorm if depthwise_norm else BareSeparableConvNorm
    assert isinstance(model.fuse, kind)
    assert all(isinstance(branch, kind) for branch in list(model.aspp.branches)[1:])
    depthwise = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [(m.groups, m.dilation[0], m.padding[0]) for m in depthwise] == [
        (512, 6, 6),
        (512, 12, 12),
        (512, 18, 18),
        (16, 1, 1),
    ]
