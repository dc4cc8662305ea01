"""Key names of the two encoders that published DeepLab files hold, under timm's names; no layout by itself.

ResNets carry torchvision's names, which are timm's too. MobileNetV2 carries torchvision's numbering (``features.N``)
cut in two parts by the VainF DeepLab code; timm numbers stages and blocks and names the layers of a block.
"""

from __future__ import annotations

import re

from segue.foreign.base import ForeignError, State, Triple

NORM = r"(?P<value>weight|bias|running_mean|running_var|num_batches_tracked)"
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
BLOCKS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
RESNET_KEY = r"layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01])\..*"
MOBILENET_KEY = r"(?:low|high)_level_features\.\d+\..*"
MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)
"""Blocks in each stage of MobileNetV2 (Sandler et al., CVPR 2018, Table 2)."""
LOW_LEVEL_FEATURES = 4
"""The stem and the blocks down to stride 4 (24 channels) are ``low_level_features``."""


def resnet_name(state: State, prefix: str = "") -> str:
    """timm's name of the ResNet whose blocks these are; ``ForeignError`` when none published has these."""
    found = [re.match(prefix + r"layer([1-4])\.(\d+)\.", key) for key in state]
    numbers = [(int(m[1]), int(m[2])) for m in found if m]
    depths = tuple(1 + max((block for layer, block in numbers if layer == n), default=-1) for n in range(1, 5))
    kind = "bottleneck" if any(re.match(prefix + r"layer\d\.\d+\.conv3\.", key) for key in state) else "basic"
    name = BLOCKS.get((kind, depths))
    if name is None:
        known = ", ".join(f"{name} {depths}" for (_, depths), name in BLOCKS.items())
        raise ForeignError(f"no ResNet has {depths} {kind} blocks in its four layers; known: {known}")
    return name


def resnet_rules(prefix: str = "", new: str = "") -> list[tuple[str, str]]:
    """Renaming rules of a ResNet from ``prefix`` (an expression without groups) to ``new``."""
    convs = r"(conv1|layer[1-4]\.\d+\.(?:conv[123]|downsample\.0))\.weight"
    norms = r"(bn1|layer[1-4]\.\d+\.(?:bn[123]|downsample\.1))\." + NORM
    return [(prefix + convs, new + r"\1.weight"), (prefix + norms, new + r"\1.\g<value>")]


def mobilenet_rules(prefix: str, new: str) -> list[tuple[str, str]]:
    """Renaming rules of MobileNetV2 as the VainF code cuts it."""
    first = prefix + r"low_level_features\.0\."
    rules = [(first + r"0\.weight", new + "conv_stem.weight"), (first + r"1\." + NORM, new + r"bn1.\g<value>")]
    feature = 1
    for stage, blocks in enumerate(MOBILENET_STAGES):
        for block in range(blocks):
            part = "low" if feature < LOW_LEVEL_FEATURES else "high"
            old = rf"{prefix}{part}_level_features\.{feature}\.conv\."
            rules += _block_rules(old, f"{new}blocks.{stage}.{block}.", expanded=feature > 1)
            feature += 1
    return rules


def _block_rules(old: str, new: str, expanded: bool) -> list[tuple[str, str]]:
    names = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    if not expanded:
        names = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    rules = []
    for number, name in names.items():
        key = old + re.escape(number) + r"\."
        rules.append(
            (key + "weight", f"{new}{name}.weight") if "conv" in name else (key + NORM, rf"{new}{name}.\g<value>")
        )
    return rules
