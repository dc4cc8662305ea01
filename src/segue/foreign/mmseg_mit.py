"""Networks on a Mix Transformer in mmseg's key layout: SegFormer (its authors' files), DAFormer, HRDA, MIC and DIDA.

The encoder is ``backbone`` under SegFormer's own names, the rest ``decode_head``. Adaptation (Hoyer et al., CVPR 2022,
ECCV 2022, CVPR 2023) stores the student as ``model.*`` beside its teacher, a frozen ImageNet copy and discriminators;
published numbers are the student's. Files that the authors' tool published hold ``model.*`` alone. The SegFormer head
of its authors (``linear_c1``) concatenates maps coarse to fine, that of the DAFormer code (``linear_c.0``) fine to
coarse, as networks here do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segue.foreign.base import (
    LAYOUTS,
    Foreign,
    ForeignError,
    Layout,
    Rules,
    State,
    cityscapes_order,
    outputs,
    translate,
)
from segue.foreign.mit import BLOCK_KEY, mit_rules, mit_variant
from segue.foreign.trunks import IMAGENET_MEAN, IMAGENET_STD, NORM

STUDENTS = ("model.", "")
TEACHERS = ("ema_model.", "mic.teacher.ema_model.")
"""Masked consistency has a teacher of its own where its host has none."""
OTHERS = {
    "model.": "the student: layout mmseg_mit",
    "ema_model.": "the teacher: layout mmseg_mit_teacher",
    "mic.teacher.ema_model.": "the teacher of masked consistency: layout mmseg_mit_teacher",
    "imnet_model.": "frozen ImageNet copy of the feature distance",
    "model_D.": "discriminators of the adversarial training",
}
KINDS = ("weight", "bias")
FUSIONS = {
    r"(psp_modules|fpn_bottleneck)\.": "upernet",
    r"fuse_layer\.aspp_modules\.[1-3]\.(depth|point)wise_conv\.": "sepaspp",
    r"fuse_layer\.aspp_modules\.[1-3]\.(conv|bn)\.": "aspp",
    r"fuse_layer\.(conv|bn)\.": "conv1",
}
"""What only the decoder of a fusion has."""
UNITS = (
    (r"fuse_layer\.aspp_modules\.([0-3])", r"fuse.branches.\1"),
    (r"fuse_layer\.aspp_modules\.([1-3])\.depthwise_conv", r"fuse.branches.\1.depthwise"),
    (r"fuse_layer\.aspp_modules\.([1-3])\.pointwise_conv", r"fuse.branches.\1.pointwise"),
    (r"fuse_layer\.bottleneck", "fuse.join"),
    (r"(?:fuse_layer|linear_fuse)", "fuse"),
    (r"psp_modules\.([0-3])\.1", r"pools.\1"),
    (r"bottleneck", "top"),
    (r"lateral_convs\.([0-2])", r"laterals.\1"),
    (r"fpn_convs\.([0-2])", r"smooth.\1"),
    (r"fpn_bottleneck", "join"),
)
"""A convolution with its batch norm: names in ``decode_head`` and in our ``decoder``; no head has two of one name."""
TRAINED_FROM = "trained from weights of SegFormer's authors: NVIDIA Source Code License, no commercial use"
NO_DECODER = "no decoder here is like it"


def fine_first(weight: Tensor) -> Tensor:
    """A fusing convolution (C,4D,k,k) whose input maps go coarse to fine, for maps that go fine to coarse."""
    if weight.ndim != 4 or weight.shape[1] % 4:
        return weight  # reported as a wrong shape
    return torch.cat(weight.chunk(4, 1)[::-1], 1)


def level_width(state: State, start: str) -> int:
    """Channels to which a decoder brings its levels, under our names: what most of its layers say."""
    layers = re.escape(start) + r"(?:embed\.levels|laterals|smooth)\..+"
    sizes = Counter(tensor.shape[0] for name, tensor in state.items() if re.fullmatch(layers, name) and tensor.ndim)
    if not sizes:
        raise ForeignError(f"the width of the decoder cannot be told: the file has no usable level of {start}")
    return sizes.most_common(1)[0][0]


class _Network(NamedTuple):
    model: dict[str, Any]
    rules: Rules
    """Of all but the encoder."""
    drop: Rules = ()
    encoder: str = "encoder."
    """Where our encoder is; empty: the decoder is unknown and the encoder is read alone."""


def _has(state: State, start: str, pattern: str = "") -> bool:
    return any(re.match(re.escape(start) + pattern, key) for key in state)


def _network(state: State, head: str, variant: str) -> _Network:
    if not _has(state, head, r"(head|scale_attention)\."):
        return _decoded(state, head, variant)
    base = _decoded(state, f"{head}head.", variant, "base.")
    model: dict[str, Any] = {"name": "hrda", "base": base.model}
    gates = f"{head}scale_attention."
    if not base.encoder:
        return base._replace(drop=[(re.escape(head) + ".+", NO_DECODER)])
    if not _has(state, gates):
        return base._replace(model=model | {"attention": "fixed"})
    shares, classes = (outputs(state, *(f"{part}conv_seg.{k}" for k in KINDS)) for part in (gates, f"{head}head."))
    kind = "single" if shares == 1 < classes else "classwise"
    rules = [*base.rules, *_rules(gates, "attention.", "conv_seg")]
    return base._replace(model=model | {"attention": kind}, rules=rules)


def _decoded(state: State, head: str, variant: str, new: str = "") -> _Network:
    encoder = f"{new}encoder."
    if _has(state, head, r"linear_(c|fuse)"):
        model = {"name": "segformer", "variant": variant}
        drop = [(re.escape(head) + r"conv_seg\..+", "this head has its outputs from linear_pred")]
        return _Network(model, _rules(head, new, "linear_pred"), drop, encoder)
    fusion = next((name for part, name in FUSIONS.items() if _has(state, head, part)), None)
    if fusion is None:
        return _Network({"name": "segformer", "variant": variant}, (), [(re.escape(head) + ".+", NO_DECODER)], "")
    model = {"name": "daformer", "variant": variant, "fusion": fusion}
    return _Network(model, _rules(head, new, "conv_seg"), (), encoder)


def _rules(head: str, new: str, last: str) -> Rules:
    key, decoder = re.escape(head), f"{new}decoder."
    rules = [(rf"{key}{last}\.(weight|bias)", rf"{new}classifier.\1")]
    levels = [(rf"(?:embed_layers|linear_c)\.{i}|linear_c{i + 1}", i) for i in range(4)]
    rules += [(rf"{key}(?:{theirs})\.proj\.(weight|bias)", rf"{decoder}embed.levels.{i}.\1") for theirs, i in levels]
    for theirs, ours in UNITS:
        rules.append((rf"{key}{theirs}\.conv\.weight", f"{decoder}{ours}.conv.weight"))
        rules.append((rf"{key}{theirs}\.bn\.{NORM}", rf"{decoder}{ours}.norm.\g<value>"))
    return rules


class _MMSegMiT(Layout):
    prefixes: tuple[str, ...]

    def fits(self, state: State) -> bool:
        """Blocks of the encoder below ``backbone`` of the wanted network."""
        return self._prefix(state) is not None

    def read(self, state: State) -> Foreign:
        """The wanted network whole; its encoder alone when the decoder is another's."""
        prefix = self._prefix(state)
        if prefix is None:
            names = " or ".join(f"{name}backbone" for name in self.prefixes)
            raise ForeignError(f"the file has no Mix Transformer as {names}")
        backbone, head = f"{prefix}backbone.", f"{prefix}decode_head."
        network = _network(state, head, mit_variant(state, backbone))
        rules = [*network.rules, *mit_rules(re.escape(backbone), network.encoder)]
        others = [(re.escape(other) + ".+", reason) for other, reason in OTHERS.items() if other != prefix]
        kept, renamed, dropped = translate(state, rules, [*others, *network.drop])
        fuse = "decoder.fuse.conv.weight"
        if fuse in kept and _has(state, head, r"linear_c[1-4]\."):
            kept[fuse] = fine_first(kept[fuse])
        classifiers = (f"{part}classifier.{kind}" for part in ("", "base.") for kind in KINDS)
        num_classes = outputs(kept, *classifiers) if network.encoder else None
        return Foreign(
            part="model" if network.encoder else "encoder",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model=_sized(network.model, kept) if network.encoder else network.model,
            num_classes=num_classes,
            classes=cityscapes_order(num_classes) if num_classes else None,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            notes=_notes(network, dropped),
        )

    def _prefix(self, state: State) -> str | None:
        blocks = [key.partition("backbone.") for key in state]
        found = {start for start, _, rest in blocks if re.fullmatch(BLOCK_KEY, rest)}
        return next((prefix for prefix in self.prefixes if prefix in found), None)


def _sized(model: dict[str, Any], kept: State) -> dict[str, Any]:
    if "base" not in model:
        return model | {"channels": level_width(kept, "decoder.")}
    sized = model | {"base": model["base"] | {"channels": level_width(kept, "base.decoder.")}}
    return (
        sized
        if model["attention"] == "fixed"
        else sized | {"attention_channels": level_width(kept, "attention.decoder.")}
    )


def _notes(network: _Network, dropped: Mapping[str, str]) -> tuple[str, ...]:
    notes = [TRAINED_FROM]
    if NO_DECODER in dropped.values():
        notes.append("no decoder here is like the file's: its encoder alone is read")
    if network.model["name"] == "hrda":
        notes.append("published scores of HRDA slide windows of 1024x1024 pixels by 512")
    if any(key.startswith(TEACHERS) for key in dropped):
        notes.append("the file also holds a teacher: --layout mmseg_mit_teacher")
    return tuple(notes)


@LAYOUTS.register("mmseg_mit")
class MMSegMiT(_MMSegMiT):
    """SegFormer (its authors' files), DAFormer, HRDA, MIC and DIDA on a Mix Transformer: the student."""

    prefixes = STUDENTS


@LAYOUTS.register("mmseg_mit_teacher")
class MMSegMiTTeacher(_MMSegMiT):
    """The teacher in a file of DAFormer, HRDA, MIC or DIDA (with ``--layout``, or when it is alone)."""

    prefixes = TEACHERS

    def fits(self, state: State) -> bool:
        """A teacher without a student, which is what the file is for."""
        return super().fits(state) and not MMSegMiT().fits(state)
