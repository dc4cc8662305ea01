"""DeepLabV2 on any timm encoder (Chen et al., "DeepLab", TPAMI 2017), with two heads that publications use.

``head: classic``: 3x3 convolutions of four rates straight to the classes, summed. With ``encoder: resnet101``,
``encoder_style: caffe`` and ``norm: stats_only`` it is the network of AdaptSegNet, ADVENT and FDA. ``auxiliary`` adds
the same head on the map before the last one (Tsai et al., CVPR 2018; Vu et al., CVPR 2019). ``head: region`` is D2ADA's
(Wu et al., ECCV 2022): the sum has 256 channels, which describe regions, and a 1x1 classifier reads it. Logits come at
the encoder's last stride.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from segue.models.aspp import DilatedSum
from segue.models.base import MODELS, Head, Output
from segue.models.encoders import EncoderConfig, EncoderModel


class DeepLabV2Config(EncoderConfig):
    """Settings of ``deeplabv2``."""

    output_stride: Literal[8, 16, 32] = 8
    """Stride of the encoder's last map; 8 in every classic publication, 16 in D2ADA's."""
    head: Literal["classic", "region"] = "classic"
    """Convolutions straight to the classes, or to ``channels`` that a 1x1 classifier reads."""
    rates: tuple[int, ...] = Field((6, 12, 18, 24), min_length=1)
    """Dilations of the summed convolutions. ``[6, 12]``: networks trained with AdaptSegNet's early return."""
    channels: int = Field(256, ge=8)
    """Width of the region head's sum."""
    auxiliary: bool = False
    """Add a classic head on the map before the last one (layer 3 of a ResNet); training only."""
    auxiliary_weight: float = Field(0.1, ge=0)
    """Weight of its loss (0.1 in AdaptSegNet and ADVENT)."""


@MODELS.register("deeplabv2")
class DeepLabV2(EncoderModel):
    """DeepLabV2; the embedding is the encoder's last map (classic) or the sum of dilated convolutions (region)."""

    Config = DeepLabV2Config
    config: DeepLabV2Config
    training_only = ("auxiliary",)

    def __init__(self, config: DeepLabV2Config, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.pyramid: nn.Module
        self.classifier: nn.Module
        if config.head == "classic":
            self.pyramid = nn.Identity()
            self.classifier = _classic(self.channels[-1], num_classes, config)
        else:
            self.pyramid = DilatedSum(self.channels[-1], config.channels, config.rates, bias=False)
            self.classifier = nn.Conv2d(config.channels, num_classes, 1)
        self.auxiliary = _classic(self.channels[-2], num_classes, config) if config.auxiliary else None

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The smallest MobileNetV3 of timm with both classic heads."""
        return {"encoder": "mobilenetv3_small_050", "auxiliary": True}

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; ``stages`` are the encoder's maps, fine to coarse."""
        stages = tuple(self.encoder(x))
        embedding = self.pyramid(stages[-1])
        heads: tuple[Head, ...] = ()
        if self.training and self.auxiliary is not None:
            heads = (Head("auxiliary", self.auxiliary(stages[-2]), self.config.auxiliary_weight),)
        return Output(self.classifier(embedding), embedding, stages, heads)

    def classifiers(self) -> dict[str, nn.Module]:
        """Main and auxiliary classifier."""
        found = {"classifier": self.classifier, "auxiliary": self.auxiliary}
        return {name: module for name, module in found.items() if module is not None}


def _classic(channels_in: int, num_classes: int, config: DeepLabV2Config) -> DilatedSum:
    head = DilatedSum(channels_in, num_classes, config.rates, bias=True)
    for conv in head.convs:
        nn.init.normal_(conv.weight, 0.0, 0.01)  # type: ignore[arg-type]  # as published; biases as torch draws them
    return head
