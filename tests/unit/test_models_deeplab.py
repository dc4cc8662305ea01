"""DeepLabV3+: encoders of several families, strides and rates, and what is said about encoders that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segue.errors import UserError
from segue.models.build import build_model
from segue.models.deeplab import DeepLabV3Plus, create_encoder, low_level


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
