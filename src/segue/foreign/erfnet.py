"""ERFNet (Romera et al., T-ITS 2018): files of its authors and of class-incremental training (Klingner et al., 2020).

All have the same names (``encoder.…``, ``decoder.…``), which are ours too, and differ in what they expect: the authors
train on 0..1 images without normalisation and with a 20th output for pixels to ignore, the incremental project on
normalised images with the classes in its own order. Both licences are CC BY-NC 4.0.
"""

from __future__ import annotations

import re

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, cityscapes_order, outputs, translate
from segue.labels import load_space

LICENCE = "published ERFNet weights: CC BY-NC 4.0, non-commercial use only (github.com/Eromera/erfnet_pytorch)"
CIL_LICENCE = "published weights of CIL_Segmentation: CC BY-NC 4.0, non-commercial use only"
CIL_NOTE = "its outputs are in the order of CIL's tasks (road, sidewalk, vegetation, …), not in that of Cityscapes"
OUTPUT = "decoder.output_conv"
RENAME = ((r"((?:encoder|decoder)\.(?:initial_block|layers)\..+|decoder\.output_conv\..+)", r"\1"),)
ENCODER_HEAD = (r"encoder\.output_conv\..+", "classifier of the authors' encoder training, not used by the decoder")
IGNORED_OUTPUT = 19
# The order in which the three tasks of Klingner et al. (ITSC 2020) bring the 19 classes, by Cityscapes train id.
CIL_ORDER = (0, 1, 8, 9, 10, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
CIL_STEPS = (5, 11, 19)


def _is_network(state: State) -> bool:
    return any(re.match(r"(encoder|decoder)\.layers\.\d+\.conv(3x1|1x3)_[12]\.", key) for key in state)


def _is_official(state: State) -> bool:
    output = state.get(f"{OUTPUT}.bias")
    twenty = output is not None and output.numel() == IGNORED_OUTPUT + 1
    return twenty or any(key.startswith("encoder.output_conv.") for key in state)


def _num_classes(state: State) -> int:
    return outputs(state, f"{OUTPUT}.bias") if f"{OUTPUT}.bias" in state else outputs(state, f"{OUTPUT}.weight", dim=1)


@LAYOUTS.register("erfnet_official")
class ErfnetOfficial(Layout):
    """ERFNet as its authors publish it (``erfnet_pretrained.pth``): 20 outputs, images in 0..1 as they are."""

    def fits(self, state: State) -> bool:
        """ERFNet with 20 outputs or a classifier on the encoder."""
        return _is_network(state) and _is_official(state)

    def read(self, state: State) -> Foreign:
        """The network; of 20 outputs the last, for ignored pixels, is cut off."""
        kept, renamed, dropped = translate(state, RENAME, (ENCODER_HEAD,))
        num_classes = _num_classes(state)
        notes: tuple[str, ...] = (LICENCE,)
        if num_classes == IGNORED_OUTPUT + 1:
            num_classes = IGNORED_OUTPUT
            notes += ("output 19, for pixels to ignore, is cut off",)
            for name, dim in ((f"{OUTPUT}.weight", 1), (f"{OUTPUT}.bias", 0)):
                if name in kept and kept[name].ndim > dim:
                    kept[name] = kept[name].narrow(dim, 0, min(IGNORED_OUTPUT, kept[name].shape[dim]))
        return Foreign(
            part="model",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model={"name": "erfnet"},
            num_classes=num_classes,
            classes=cityscapes_order(num_classes),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            notes=notes,
        )


@LAYOUTS.register("erfnet_cil")
class ErfnetCil(Layout):
    """ERFNet of CIL_Segmentation (``model.pth``): 5, 11 or 19 classes in the order of its tasks."""

    def fits(self, state: State) -> bool:
        """ERFNet without what the authors' files have."""
        return _is_network(state) and not _is_official(state)

    def read(self, state: State) -> Foreign:
        """The network under its own names."""
        kept, renamed, dropped = translate(state, RENAME)
        num_classes = _num_classes(state)
        classes = load_space("cityscapes19").classes
        known = num_classes in CIL_STEPS
        return Foreign(
            part="model",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model={"name": "erfnet"},
            num_classes=num_classes,
            classes=tuple(classes[i] for i in CIL_ORDER[:num_classes]) if known else None,
            notes=(CIL_LICENCE, CIL_NOTE) if known else (CIL_LICENCE,),
        )


@LAYOUTS.register("erfnet_imagenet")
class ErfnetImageNet(Layout):
    """ImageNet encoder of ERFNet (``erfnet_encoder_pretrained.pth.tar``)."""

    def fits(self, state: State) -> bool:
        """The encoder under ``features.encoder``."""
        return any(key.startswith("features.encoder.") for key in state)

    def read(self, state: State) -> Foreign:
        """The encoder without the classifier."""
        kept, renamed, dropped = translate(
            state,
            ((r"features\.encoder\.(.+)", r"\1"),),
            ((r"classifier\..+", "ImageNet classifier, not used for segmentation"),),
        )
        return Foreign(
            part="encoder",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model={"name": "erfnet"},
            notes=(LICENCE,),
        )
