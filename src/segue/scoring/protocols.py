"""Evaluation rules by name: ours and the published ones whose numbers are compared with. Every score names its own.

A rule says how the network's input is made, how it is asked (whole, windows, mirrored, several scales), how its logits
come to the label's size before the argmax, and how absent classes and pixels outside a view are counted. Where two
rules give another number from the same network, the difference is one of these fields.

``varied`` makes a named variant: ``mmseg+flip`` is never stored as ``mmseg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from segue.errors import UserError
from segue.labels import nearest

Size = tuple[int, int]
Kernel = Literal["area", "linear", "triangle", "corners"]
Upsample = Literal["model", "corners", "nearest"]
Average = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Window:
    """Windows of ``size`` every ``stride`` pixels of the network's input, and what is averaged where they overlap."""

    size: Size
    stride: Size
    average: Average = "logits"


@dataclass(frozen=True)
class Protocol:
    """One evaluation rule; sizes are (height, width) in pixels.

    ``size``: the input's, None as the picture is; ``keep_ratio``: the picture fits into it, in either orientation;
    ``factor``: on the picture's size. ``kernel`` of the input's resize: ``area`` (area averages when shrinking, else
    linear), ``linear`` (cv2), ``triangle`` (Pillow's bilinear, smoothing when it shrinks), ``corners`` (linear, the
    corner pixels' centres fixed). ``scales`` (on the input's size) and ``flip``: probabilities are averaged.

    ``upsample`` of the logits to the label's size: bilinear as the model's own, bilinear with ``corners`` fixed, or
    ``nearest``; ``through_input``: to the input's size first. ``label_size``: labels and predictions are compared
    there (None: the label's own). ``absent``: IoU of a class without ground truth (None: in no mean, 0 when it is
    predicted). ``lenient``: when the classes are restricted, pixels of others are ignored.
    """

    name: str
    source: str
    size: Size | None = None
    keep_ratio: bool = False
    factor: float = 1.0
    kernel: Kernel = "area"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: Window | None = None
    upsample: Upsample = "model"
    through_input: bool = False
    label_size: Size | None = None
    absent: float | None = None
    lenient: bool = False

    def input_size(self, picture: Size, scale: float = 1.0) -> Size:
        """Size of the network's input for a picture's size."""
        if self.size is None:
            # int() as in STDC-Seg, for its factors; a scale of ours is rounded
            height, width = int(picture[0] * self.factor), int(picture[1] * self.factor)
            return (height, width) if scale == 1 else (round(height * scale), round(width * scale))
        bound = int(self.size[0] * scale), int(self.size[1] * scale)
        if not self.keep_ratio:
            return bound
        ratio = min(max(bound) / max(picture), min(bound) / min(picture))
        return int(picture[0] * ratio + 0.5), int(picture[1] * ratio + 0.5)

    def varied(
        self,
        size: Size | None = None,
        scales: Sequence[float] = (),
        flip: bool = False,
        window: Window | None = None,
    ) -> Protocol:
        """This rule with other settings, which its name then tells."""
        out = self
        if size is not None:
            out = replace(out, size=size, factor=1.0, name=f"{out.name}+size={_text(size)}")
        if scales and tuple(scales) != self.scales:
            text = ",".join(f"{s:g}" for s in scales)
            out = replace(out, scales=tuple(scales), name=f"{out.name}+scales={text}")
        if flip and not self.flip:
            out = replace(out, flip=True, name=f"{out.name}+flip")
        if window is not None and window != self.window:
            text = f"{_text(window.size)}/{_text(window.stride)}"
            out = replace(out, window=window, name=f"{out.name}+slide={text}")
        return out


NATIVE = Protocol(
    "native",
    "Segue: scored at the label's own resolution, bilinear on the logits, argmax last, absent classes left out",
)
_STDC = Protocol(
    "stdc",
    "STDC-Seg (Fan et al., CVPR 2021), evaluation.py MscEvalV0 at scale 0.5: the '50' numbers",
    factor=0.5,
    kernel="corners",
    upsample="corners",
    through_input=True,
)
PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        NATIVE,
        Protocol(
            "mmseg",
            "mmsegmentation 0.x as configured for Cityscapes in DAFormer (Hoyer et al., CVPR 2022): the picture fits "
            "into 1024x512, whole image, logits to the input's size and on to the picture's",
            size=(512, 1024),
            keep_ratio=True,
            kernel="linear",
            through_input=True,
        ),
        Protocol(
            "d2ada",
            "D2ADA (Wu et al., ECCV 2022), validation: everything at 1024x2048, a class without ground truth scores 1",
            size=(1024, 2048),
            kernel="triangle",
            through_input=True,
            label_size=(1024, 2048),
            absent=1.0,
        ),
        _STDC,
        replace(_STDC, name="stdc75", source=_STDC.source.replace("0.5: the '50'", "0.75: the '75'"), factor=0.75),
        Protocol(
            "cil",
            "CIL (Klingner et al., ITSC 2020), evaluate_erfnet.py: input 512x1024, argmax over the task's classes, "
            "nearest to the label's size, pixels of other classes ignored",
            size=(512, 1024),
            kernel="triangle",
            upsample="nearest",
            lenient=True,
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """A rule by name; ``UserError`` with the nearest name when there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{nearest(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
