"""Classic DeepLabV2 of AdaptSegNet (Tsai et al., CVPR 2018), ADVENT (Vu et al., CVPR 2019) and FDA (CVPR 2020).

Also the COCO start that they share (``…_resnet_pretrained_init-f81d91e8.pth``, keys under ``Scale.``). ``layer5`` and
``layer6`` are heads: with both, ``layer5`` is the auxiliary one on layer 3; alone, either is the main one (AdaptSegNet
and FDA ``layer5``, ADVENT ``layer6``). Images were BGR in 0..255 minus a mean colour: the channel order is folded into
the first convolution here, the rest is what ``encoder_style: caffe`` does.
"""

from __future__ import annotations

import re

from torch import Tensor

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, Triple, cityscapes_order, outputs, translate
from segue.foreign.trunks import resnet_name, resnet_rules

HEAD_KEY = r"(?:Scale\.)?layer([56])\.conv2d_list\.(\d+)\.(weight|bias)"
PREFIX = r"(?:Scale\.)?"
RATES = (6, 12, 18, 24)
MEAN: Triple = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
STD: Triple = (1 / 255, 1 / 255, 1 / 255)
SUMMED_BY_EARLY_RETURN = 2
INITIAL_STD = 0.01
NEVER_SUMMED = "still as drawn: the network was trained with AdaptSegNet's early return, which sums two branches only"


@LAYOUTS.register("adaptsegnet")
class AdaptSegNet(Layout):
    """DeepLabV2 of AdaptSegNet, ADVENT and FDA, single- and multi-level."""

    def fits(self, state: State) -> bool:
        """Whether a head of four convolutions is there."""
        return any(re.fullmatch(HEAD_KEY, key) for key in state)

    def read(self, state: State) -> Foreign:
        """The whole network; branches that its training never summed are dropped."""
        found = {m[1] for key in state if (m := re.fullmatch(HEAD_KEY, key))}
        heads = {max(found): "classifier"} | ({"5": "auxiliary"} if len(found) == 2 else {})
        early = all(_early_return(_branches(state, layer)) for layer in heads)
        rates = RATES[:SUMMED_BY_EARLY_RETURN] if early else RATES
        branch = rf"([0-{len(rates) - 1}])"
        rules = [
            (PREFIX + rf"layer{layer}\.conv2d_list\.{branch}\.(weight|bias)", name + r".convs.\1.\2")
            for layer, name in heads.items()
        ]
        drop = [(PREFIX + r"layer[56]\.conv2d_list\.[23]\.(?:weight|bias)", NEVER_SUMMED)] if early else []
        kept, renamed, dropped = translate(state, rules + resnet_rules(PREFIX, "encoder."), drop)
        first = kept.get("encoder.conv1.weight")
        if first is not None and first.ndim == 4:
            kept["encoder.conv1.weight"] = first.flip(1)  # BGR to RGB
        classes = outputs(kept, "classifier.convs.0.weight", "classifier.convs.0.bias")
        return Foreign(
            part="model",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model={
                "name": "deeplabv2",
                "encoder": resnet_name(state, PREFIX),
                "encoder_style": "caffe",
                "output_stride": 8,
                "rates": list(rates),
                "auxiliary": "auxiliary" in heads.values(),
            },
            num_classes=classes,
            classes=cityscapes_order(classes),
            mean=MEAN,
            std=STD,
            notes=(
                "licence: AdaptSegNet non-commercial, ADVENT Apache-2.0, FDA states none",
                "scale and shift of its batch norms were never trained: norm: stats_only continues that",
            ),
        )


def _branches(state: State, layer: str) -> dict[int, Tensor]:
    matches = ((re.fullmatch(HEAD_KEY, key), tensor) for key, tensor in state.items())
    return {int(m[2]): tensor for m, tensor in matches if m and m[1] == layer and m[3] == "weight"}


def _early_return(branches: dict[int, Tensor]) -> bool:
    return {n for n, weight in branches.items() if not _as_drawn(weight)} == {0, 1} and set(branches) == {0, 1, 2, 3}


def _as_drawn(weight: Tensor) -> bool:
    """Normal with the initial standard deviation: no training and no weight decay has touched these values.

    Of 1024 x 3 x 3 draws a class, both bounds are more than ten standard errors away at 19 classes, four at 3.
    """
    values = weight.double().flatten()
    centred = values - values.mean()
    variance = centred.square().mean()
    kurtosis = centred.pow(4).mean() / variance.square().clamp_min(1e-30)
    return bool((variance.sqrt() / INITIAL_STD - 1).abs() < 0.02 and (kurtosis - 3).abs() < 0.2)
