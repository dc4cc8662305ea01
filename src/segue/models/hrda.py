"""HRDA: any network, once on the whole image at low and once on a window at full resolution (Hoyer et al., "HRDA:
Context-Aware High-Resolution Domain-Adaptive Semantic Segmentation", ECCV 2022).

``base`` answers twice, with the same weights: y_c on the context, the image made 1/k as large (k = 2: ``context_scale``
0.5), and y_d on the detail. An attention a in 0..1, read from the context's maps, chooses between them class by class:
fused = Up_k((1 - a) y_c) + Up_k(a) y_d at the stride of the detail.

*Training*: the detail is one random window for the batch, y_d and a are 0 outside it, and the loss is
(1 - detail_weight) of the fused logits plus ``detail_weight`` of y_d inside the window. A window that covers
the image is a window like any other; the original then adds a loss of the context whose logits are already multiplied
by 1 - a. Heads that the base has in training are those of the context, at their own weights.
*Eval mode* (teachers too): y_d is the average of overlapping windows over the whole image, each scored once.

What describes the image is the context's: ``embedding`` (the base's classifier makes y_c of it, not the fused logits)
and ``stages``. Logits are cells side by side: ``align_corners`` is False whatever the base's own is. Norm layers in
training mode see context and windows as separate batches. Along the window's border the mask is interpolated, so logits
are smaller just outside it, as published. Knobs that matter: ``window_px``, ``detail_weight``, ``window_step``,
``windows_per_pass`` (memory).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.base import MODELS, Head, Output, ParamGroup, SegModel
from segue.models.blocks import ConvNorm
from segue.models.segformer import LevelDecoder
from segue.models.wrapped import Wrapped, WrappedConfig
from segue.ops.resize import bilinear
from segue.ops.sliding import slide

Window = tuple[int, int, int, int]
PROBE_PX = 64


class HRDAConfig(WrappedConfig):
    """Settings of ``hrda``."""

    base: dict[str, Any] = Field(default_factory=lambda: {"name": "daformer"}, validate_default=True)
    """Settings of the network that is wrapped, as those of ``model`` without a wrapper (the paper: DAFormer, b5)."""
    context_scale: float = Field(0.5, gt=0, le=1)
    """Size of the context relative to the image: 1/k for a whole k (0.5 in the paper)."""
    window_px: tuple[int, int] = (512, 512)
    """Height and width of the detail window, at most the image (512 for crops of 1024 in the paper)."""
    window_step: float = Field(0.5, gt=0, le=1)
    """Eval mode: distance from window to window, as a share of the window (half in the paper)."""
    windows_per_pass: int = Field(9, ge=1)
    """Eval mode: windows of each image that go through the base together; 9 are all of a 1024x1024 image."""
    detail_weight: float = Field(0.1, ge=0, le=1)
    """Share of the loss that the detail has by itself (lambda_d, 0.1 in the paper)."""
    attention: Literal["classwise", "single", "fixed"] = "classwise"
    """One attention for each class, one for all, or 0.5 everywhere (ablations of the paper)."""
    attention_channels: int = Field(256, ge=8)
    """Width of the attention's decoder (256 in the authors' code)."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Channel dropout before the attention's last convolution (0.1 in the authors' code)."""

    @field_validator("base")
    @classmethod
    def _another_base(cls, base: dict[str, Any]) -> dict[str, Any]:
        if base["name"] == "hrda":
            raise ValueError("model.base.name: hrda cannot wrap itself")
        return base

    @field_validator("context_scale")
    @classmethod
    def _whole_ratio(cls, scale: float) -> float:
        if abs(scale * round(1 / scale) - 1) > 0.01:
            raise ValueError(f"model.context_scale: 1/scale must be a whole number (1, 0.5, 0.25, …), it is {scale}")
        return scale


class Attention(nn.Module):
    """SegFormer's decoder on the context's maps and a sigmoid: how much of the detail is taken.

    ``outputs``: one for each class, or 1.
    """

    def __init__(self, channels: Sequence[int], width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.decoder = LevelDecoder(channels, width, ConvNorm(len(channels) * width, width, 1))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, outputs, 1)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps, of which the deepest are read, to (N,outputs,*size*) in 0..1."""
        maps = stages[-len(self.decoder.embed.levels) :]
        logits = self.classifier(self.dropout(self.decoder(maps)))
        return bilinear(logits, size).sigmoid()


@MODELS.register("hrda")
class HRDA(Wrapped):
    """HRDA around any network with logits on a grid of its own and encoder maps."""

    Config = HRDAConfig
    config: HRDAConfig
    wrappable = True

    def __init__(self, config: HRDAConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.ratio = round(1 / config.context_scale)
        self.multiple *= self.ratio
        self.fixed_size_graph = True
        self.align_corners = False
        if any(side < self.multiple or side % self.multiple for side in config.window_px):
            fitting = [max(1, round(side / self.multiple)) * self.multiple for side in config.window_px]
            raise UserError(
                f"model.window_px: sides must be multiples of {self.multiple} with this base and context_scale, "
                f"{list(config.window_px)} is not: use {fitting}"
            )
        outline = _outline(self.base)
        self.attention: Attention | None = None
        if config.attention != "fixed":
            outputs = num_classes if config.attention == "classwise" else 1
            width, dropout = config.attention_channels, config.attention_dropout
            self.attention = Attention(_channels(outline), width, outputs, dropout)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """The smallest DAFormer, windows of 64 pixels and a narrow attention."""
        base = {"name": "daformer", **MODELS.get("daformer").tiny()}
        return {"base": base, "window_px": (64, 64), "attention_channels": 16, "attention_dropout": 0.0}

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel` and the module: fused logits, and in training the detail's in head ``window``.

        The window is drawn from torch's global CPU generator.
        """
        context = self.base.decode(self._context(x))
        logits = context.logits
        if self.attention is None:
            share = logits.new_full((1, 1, *logits.shape[-2:]), 0.5)
        else:
            share = self.attention(context.stages, (logits.shape[-2], logits.shape[-1]))
        if not self.training:
            fused = _fuse(logits, share, self._details(x, logits))
            return Output(fused, context.embedding, context.stages)
        top, left, height, width = window = self._draw(x, logits)
        detail = self.base.decode(x[..., top : top + height, left : left + width]).logits
        fused = _fuse(logits, *self._inserted(x, window, share, detail))
        weight = self.config.detail_weight
        heads = (Head("window", detail, weight, window=window), *context.heads)
        return Output(fused, context.embedding, context.stages, heads, weight=1 - weight)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Those of the context."""
        return self.base.features(self._context(self._prepared(image)))

    def classifiers(self) -> dict[str, nn.Module]:
        """Those of the base, and the attention's when it has an output for each class, which makes no logits."""
        found = super().classifiers()
        if self.attention is not None and self.config.attention == "classwise":
            found["attention.classifier"] = self.attention.classifier
        return found

    def param_groups(self) -> list[ParamGroup]:
        """Those of the base, which may have several for its encoder; the attention belongs to the head."""
        groups = {group.name: group for group in self.base.param_groups()}
        trained = [p for p in self.attention.parameters() if p.requires_grad] if self.attention is not None else []
        for name, decay in (("head", True), ("head_no_decay", False)):
            if own := [p for p in trained if (p.ndim > 1) == decay]:
                others = groups[name].params if name in groups else []
                groups[name] = ParamGroup(name, others + own, self.config.head_lr_factor, decay)
        return list(groups.values())

    def _widen(self, added: int, init: str, generator: torch.Generator | None) -> None:
        super()._widen(added, init, generator)
        gates = self.classifiers().get("attention.classifier")
        if init == "background" and gates is not None:
            # Attention has no mass to share: background and new classes take as much of the detail as before.
            rows = [0, *range(self.num_classes, self.num_classes + added)]
            with torch.no_grad():
                gates.get_parameter("bias")[rows] += math.log(added + 1)

    def _context(self, x: Tensor) -> Tensor:
        size = (x.shape[-2] // self.ratio, x.shape[-1] // self.ratio)
        # Not ops.resize: its products make logits larger fast, this makes an image smaller (four times slower with it).
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def _details(self, x: Tensor, context: Tensor) -> Tensor:
        height, width = self._window(x)
        down, right = (
            max(grid, int(side * self.config.window_step) // grid * grid)
            for side, grid in zip((height, width), _grid(x, context), strict=True)
        )
        batch = self.config.windows_per_pass * x.shape[0]
        return slide(x, (height, width), (down, right), lambda part: self.base.decode(part).logits, batch)

    def _draw(self, x: Tensor, context: Tensor) -> Window:
        """A place for the window, all equally likely: every one where its cells are cells of the context."""
        size, grid = self._window(x), _grid(x, context)
        top, left = (
            step * int(torch.randint((full - side) // step + 1, ()))
            for full, side, step in zip(x.shape[-2:], size, grid, strict=True)
        )
        return top, left, *size

    def _window(self, x: Tensor) -> tuple[int, int]:
        height, width = self.config.window_px
        return min(height, x.shape[-2]), min(width, x.shape[-1])

    def _inserted(self, x: Tensor, window: Window, share: Tensor, detail: Tensor) -> tuple[Tensor, Tensor]:
        """Attention on the context's grid and logits on the detail's, both 0 outside the window."""
        rows, columns = share.shape[-2:]
        top, height = (px * rows // x.shape[-2] for px in window[::2])
        left, width = (px * columns // x.shape[-1] for px in window[1::2])
        margin = (left, columns - left - width, top, rows - top - height)
        inside = F.pad(share[..., top : top + height, left : left + width], margin)
        return inside, F.pad(detail, tuple(self.ratio * cells for cells in margin))


def _fuse(context: Tensor, share: Tensor, detail: Tensor) -> Tensor:
    size = (detail.shape[-2], detail.shape[-1])
    return bilinear((1 - share) * context, size) + bilinear(share, size) * detail


def _grid(x: Tensor, context: Tensor) -> tuple[int, int]:
    """Pixels (down, right) after which cells of the context begin at a pixel again: a cell, where it is whole."""
    return (
        x.shape[-2] // math.gcd(x.shape[-2], context.shape[-2]),
        x.shape[-1] // math.gcd(x.shape[-1], context.shape[-1]),
    )


def _outline(base: SegModel) -> Output:
    """Shapes of the answer to a wide image; ``UserError`` for a base that cannot be wrapped."""
    side = base.multiple * -(-PROBE_PX // base.multiple)
    twin = copy.deepcopy(base).to("meta").eval()
    output = twin.decode(torch.empty(1, 3, side, 2 * side, device="meta"))
    if output.logits.shape[-1] != 2 * output.logits.shape[-2]:
        raise UserError(
            f"model.base: windows do not fit into the grid of {base.config.name!r}, which has a point on every border "
            f"of an image; for a timm encoder set model.base.encoder_style to timm"
        )
    if not output.stages:
        raise UserError(f"model.base: {base.config.name!r} gives no encoder maps: hrda needs a base that does")
    return output


def _channels(outline: Output) -> list[int]:
    """Channels of the maps for the attention: those that are not finer than the logits, or the deepest."""
    coarse = [m.shape[1] for m in outline.stages if m.shape[-1] <= outline.logits.shape[-1]]
    return coarse or [outline.stages[-1].shape[1]]
