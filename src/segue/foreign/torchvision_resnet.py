"""torchvision's ImageNet ResNets, 18 to 152 layers (``resnet101-5d3b4d8f.pth``, …): an encoder for any DeepLab."""

from __future__ import annotations

import re

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, translate
from segue.foreign.trunks import IMAGENET_MEAN, IMAGENET_STD, RESNET_KEY, resnet_name, resnet_rules


@LAYOUTS.register("torchvision_resnet")
class TorchvisionResNet(Layout):
    """ImageNet ResNets of torchvision (He et al., CVPR 2016); timm's have the same names."""

    def fits(self, state: State) -> bool:
        """Whether there are residual blocks without a prefix and no head of DeepLabV2."""
        blocks = any(re.fullmatch(RESNET_KEY, key) for key in state)
        return blocks and not any(key.startswith(("layer5.", "layer6.")) for key in state)

    def read(self, state: State) -> Foreign:
        """The encoder; the ImageNet classifier is dropped."""
        kept, renamed, dropped = translate(state, resnet_rules(), [(r"fc\.(weight|bias)", "ImageNet classifier")])
        return Foreign(
            part="encoder",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model={"name": "deeplabv3plus", "encoder": resnet_name(state)},
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            notes=("weights trained on ImageNet, whose terms of access apply",),
        )
