"""DeepLabV3 and V3+ of the VainF code (DeepLabV3Plus-Pytorch), on which the DLL vDNA project is built.

The network is the table ``model_state``: ResNet-50/101 or MobileNetV2 as ``backbone.*``, the head as ``classifier.*``,
also with separable convolutions. The rules of the heads also serve D2ADA's files, whose code descends from this one.
"""

from __future__ import annotations

import re
from typing import Any

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, cityscapes_order, outputs, translate
from segue.foreign.trunks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOBILENET_KEY,
    NORM,
    RESNET_KEY,
    mobilenet_rules,
    resnet_name,
    resnet_rules,
)

BACKBONE = r"backbone\."
NO_STRIDE = "the file does not say its output stride: 16 is assumed (model.output_stride=8 for a network trained at 8)"
LAST_LAYER = r"classifier\.classifier\.([34])\.(weight|bias)"


@LAYOUTS.register("vainf")
class VainF(Layout):
    """DeepLabV3 and V3+ of the VainF code and of the DLL vDNA project."""

    def fits(self, state: State) -> bool:
        """Whether the classifier ends the sequence ``classifier.classifier`` under a known backbone."""
        return has_backbone(state) and any(re.fullmatch(LAST_LAYER, key) for key in state)

    def read(self, state: State) -> Foreign:
        """The whole network."""
        return read_v3(state, last={True: r"classifier\.classifier\.3", False: r"classifier\.classifier\.4"})


def has_backbone(state: State) -> bool:
    """Whether some key belongs to a ResNet or MobileNetV2 under ``backbone.``."""
    return any(re.fullmatch(f"{BACKBONE}(?:{RESNET_KEY}|{MOBILENET_KEY})", key) for key in state)


def read_v3(state: State, last: dict[bool, str], notes: tuple[str, ...] = ()) -> Foreign:
    """A network with an ASPP; ``last`` is the expression of its classifier's name for V3+ (True) and V3 (False)."""
    plus = any(key.startswith(("classifier.aspp.", "classifier.project.")) for key in state)
    separable = any(".body." in key for key in state)
    settings: dict[str, Any] = {"name": "deeplabv3plus" if plus else "deeplabv3"}
    if plus:
        settings["decoder_convs"] = 1
    if separable:
        settings |= {"separable": True, "depthwise_norm": False}
    rules = [(last[plus] + r"\.(weight|bias)", r"classifier.\1"), *_head_rules(plus, separable)]
    return read_network(state, rules, settings, notes)


def read_network(state: State, head: list[tuple[str, str]], model: dict[str, Any], notes: tuple[str, ...]) -> Foreign:
    """Backbone rules added to those of a head; what both kinds of file say about themselves."""
    mobile = any(re.fullmatch(BACKBONE + MOBILENET_KEY, key) for key in state)
    trunk = mobilenet_rules(BACKBONE, "encoder.") if mobile else resnet_rules(BACKBONE, "encoder.")
    kept, renamed, dropped = translate(state, head + trunk)
    encoder = {"encoder": "mobilenetv2_100", "encoder_style": "fixed_padding"}
    if not mobile:
        encoder = {"encoder": resnet_name(state, BACKBONE)}
    classes = outputs(kept, "classifier.weight", "classifier.bias")
    return Foreign(
        part="model",
        state=kept,
        renamed=renamed,
        dropped=dropped,
        model={**model, **encoder, "output_stride": 16},
        num_classes=classes,
        classes=cityscapes_order(classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notes=(NO_STRIDE, *notes),
    )


def _head_rules(plus: bool, separable: bool) -> list[tuple[str, str]]:
    aspp = r"classifier\.aspp\." if plus else r"classifier\.classifier\.0\."
    fuse, norm = (r"classifier\.classifier\.0", r"classifier\.classifier\.1")
    ours = "decoder.fuse.0"
    if not plus:
        fuse, norm, ours = r"classifier\.classifier\.1", r"classifier\.classifier\.2", "fuse"
    rules = [
        *_conv_norm(aspp + r"convs\.0\.0", aspp + r"convs\.0\.1", "aspp.branches.0"),
        *_conv3x3(aspp + r"convs\.([123])\.0", aspp + r"convs\.([123])\.1", r"aspp.branches.\1", separable),
        *_conv_norm(aspp + r"convs\.4\.1", aspp + r"convs\.4\.2", "aspp.pool"),
        *_conv_norm(aspp + r"project\.0", aspp + r"project\.1", "aspp.project"),
        *_conv3x3(fuse, norm, ours, separable),
    ]
    if plus:
        rules += _conv_norm(r"classifier\.project\.0", r"classifier\.project\.1", "decoder.low")
    return rules


def _conv3x3(conv: str, norm: str, new: str, separable: bool) -> list[tuple[str, str]]:
    if not separable:
        return _conv_norm(conv, norm, new)
    depthwise = (conv + r"\.body\.0\.weight", new + ".depthwise.weight")
    return [depthwise, *_conv_norm(conv + r"\.body\.1", norm, new + ".pointwise")]


def _conv_norm(conv: str, norm: str, new: str) -> list[tuple[str, str]]:
    return [(conv + r"\.weight", new + ".conv.weight"), (norm + r"\." + NORM, new + r".norm.\g<value>")]
