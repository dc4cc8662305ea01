"""Any timm network with feature maps as an encoder, at the output stride and by the conventions that a decoder needs.

``encoder_style`` reproduces two published ways to run the same weights: ``caffe`` is the ResNet under DeepLabV2 of
AdaptSegNet, ADVENT and FDA; ``fixed_padding`` the MobileNetV2 of the VainF and D2ADA DeepLab code, which pads the input
of a block and not its depthwise convolution.
"""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from pydantic import model_validator
from timm.models import resnet
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.base import ModelConfig, SegModel

CAFFE_MEAN_BGR_255 = (104.00698793, 116.66876762, 122.67891434)
"""Mean colour of the Caffe ResNets (He et al., CVPR 2016)."""
CAFFE_MEAN = tuple(value / 255 for value in reversed(CAFFE_MEAN_BGR_255))
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
Style = Literal["timm", "caffe", "fixed_padding"]


class EncoderConfig(ModelConfig):
    """Settings of every model on a timm encoder."""

    encoder: str = "tf_efficientnet_lite0"
    """Name of a timm model with feature maps, for example ``resnet50.a1_in1k`` or ``tf_efficientnet_lite0``."""
    output_stride: Literal[8, 16, 32] = 16
    """Stride of the encoder's last map; below 32 its last stages are dilated."""
    encoder_style: Style = "timm"
    """``caffe`` (ResNets with bottlenecks): stride on the first 1x1, full dilation from a stage's first block on,
    pooling that rounds up, 0..255 minus Caffe's mean, logits aligned at the corners, no padding of the image.
    ``fixed_padding`` (``mobilenetv2_*``): zeros around the input of a block instead of around its 3x3. Both are for
    weights that were trained so."""

    @model_validator(mode="after")
    def _caffe_has_no_timm_weights(self) -> EncoderConfig:
        if self.encoder_style == "caffe" and self.weights == "imagenet":
            raise ValueError(
                "model.weights: timm's ImageNet weights are not in the Caffe style; "
                "set model.encoder_style to timm or model.weights to a file"
            )
        return self


class EncoderModel(SegModel):
    """A network whose ``encoder`` is timm's; subclasses add decoder and classifiers."""

    Config: type[ModelConfig] = EncoderConfig
    config: EncoderConfig
    encoder_prefix = "encoder."

    def __init__(self, config: EncoderConfig, num_classes: int) -> None:
        encoder = create_encoder(config.encoder, config.output_stride, style=config.encoder_style)
        caffe = config.encoder_style == "caffe"
        published = encoder.pretrained_cfg
        mean, std = (CAFFE_MEAN, CAFFE_STD) if caffe else (published["mean"], published["std"])
        super().__init__(config, num_classes, mean, std)
        self.encoder = encoder
        self.channels: list[int] = encoder.feature_info.channels()
        self.strides: list[int] = encoder.feature_info.reduction()
        if caffe:  # its maps have a point on both borders of the image, of whatever size
            self.align_corners = True
            self.multiple = 1

    def imagenet_state(self) -> dict[str, Tensor]:
        """Weights of timm's pretrained encoder, under the names of ours; downloads unless they are cached."""
        state: dict[str, Tensor] = create_encoder(self.config.encoder, self.config.output_stride, True).state_dict()
        return state


def create_encoder(name: str, output_stride: int, pretrained: bool = False, style: Style = "timm") -> Any:
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
    if style == "caffe":
        _to_caffe(encoder, name, output_stride)
    elif style == "fixed_padding":
        _to_fixed_padding(encoder, name)
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


def _to_caffe(encoder: Any, name: str, output_stride: int) -> None:
    blocks = [m for m in encoder.modules() if isinstance(m, resnet.Bottleneck)]
    pool = getattr(encoder, "maxpool", None)
    if not blocks or not isinstance(pool, nn.MaxPool2d) or not all(isinstance(b.aa, nn.Identity) for b in blocks):
        raise UserError(
            f"model.encoder_style caffe is for plain ResNets with bottlenecks and not for {name!r}: "
            f"choose resnet50 or resnet101, or set model.encoder_style to timm"
        )
    # What rounding up (ceil_mode) gives after a ReLU, without the size conditions that it puts into an export.
    encoder.maxpool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), pool)
    for index in range(4):
        first = encoder[f"layer{index + 1}"][0]
        first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
        dilation = max(1, 2 ** (index + 2) // output_stride)
        first.conv2.dilation = first.conv2.padding = (dilation, dilation)


def _to_fixed_padding(encoder: Any, name: str) -> None:
    if not name.startswith("mobilenetv2_"):
        raise UserError(
            f"model.encoder_style fixed_padding is for MobileNetV2 and not for {name!r}: "
            f"choose mobilenetv2_100, or set model.encoder_style to timm"
        )
    encoder.conv_stem.padding = (0, 0)
    for block in (block for stage in encoder.blocks for block in stage):
        if hasattr(block, "conv_pwl"):  # has an expansion: what the 1x1 makes of zeros is not zero after its norm
            block.conv_pw.padding, block.conv_dw.padding = block.conv_dw.padding, (0, 0)
