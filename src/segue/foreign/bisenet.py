"""BiSeNet on STDC: the official segmentation files (Fan et al., CVPR 2021) and those of plain batch norm derivatives.

Official heads use in-place batch norm without activation (Rota Bulò et al., CVPR 2018), whose kernel scales by
``|weight| + eps`` with eps 1e-5 and which keeps no batch counter; that is how the two kinds are told apart. The
boundary head at stride 8 becomes ``detail``; those at other strides are not part of the published training.
"""

from __future__ import annotations

import re

from segue.foreign import stdc
from segue.foreign.base import LAYOUTS, Foreign, Layout, State, cityscapes_order, outputs, translate

INPLACE_EPS = 1e-5
INPLACE_NOTE = "norms of the heads scale by |weight| + 1e-5 there; these numbers are their weights here"
BACKBONE = "cp.backbone."
HEAD_NORM = r"(cp\.(arm|conv_)|ffm\.|conv_out).*\.bn(_atten)?\."
CONV_NORM = (("conv", "conv"), ("bn", "norm"))
UNITS = (
    (r"cp\.arm(16|32)\.conv\.{}\.(.+)", r"context.arm\1.conv.{}.\2"),
    (r"cp\.conv_head(16|32)\.{}\.(.+)", r"context.smooth\1.{}.\2"),
    (r"cp\.conv_avg\.{}\.(.+)", r"context.average.{}.\1"),
    (r"ffm\.convblk\.{}\.(.+)", r"fusion.mix.{}.\1"),
    (r"conv_out(16|32)?\.conv\.{}\.(.+)", r"head\1.conv.{}.\2"),
    (r"conv_out_sp8\.conv\.{}\.(.+)", r"detail.conv.{}.\1"),
)
"""A convolution with its norm: their names in the file and ours go into the braces."""
RENAME = (
    *((r"cp\.backbone\." + theirs, "backbone." + ours) for theirs, ours in stdc.RENAME),
    *((theirs.format(a), ours.format(b)) for theirs, ours in UNITS for a, b in CONV_NORM),
    (r"cp\.arm(16|32)\.conv_atten\.(.+)", r"context.arm\1.attention.\2"),
    (r"cp\.arm(16|32)\.bn_atten\.(.+)", r"context.arm\1.norm.\2"),
    (r"ffm\.conv1\.(.+)", r"fusion.reduce.\1"),
    (r"ffm\.conv2\.(.+)", r"fusion.expand.\1"),
    (r"conv_out(16|32)?\.conv_out\.(.+)", r"head\1.classifier.\2"),
    (r"conv_out_sp8\.conv_out\.(.+)", r"detail.classifier.\1"),
)
DROP = (
    (r"cp\.backbone\." + stdc.TAIL[0], stdc.TAIL[1]),
    (r"conv_out_sp(2|4|16)\..+", "boundary head of a stride that the published training does not use"),
)


class _BiSeNetLayout(Layout):
    inplace: bool

    def fits(self, state: State) -> bool:
        """Context path and output heads, whose norms have counters or have none."""
        norms = [key for key in state if re.match(HEAD_NORM, key)]
        counted = any(key.endswith("num_batches_tracked") for key in norms)
        return bool(norms) and any(key.startswith("cp.") for key in state) and counted != self.inplace

    def read(self, state: State) -> Foreign:
        """The whole network, with a detail head when the file has it."""
        kept, renamed, dropped = translate(state, RENAME, DROP)
        if self.inplace:
            scales = [key for key in kept if key.endswith("norm.weight") and not key.startswith("backbone.")]
            kept |= {key: kept[key].abs() + INPLACE_EPS for key in scales}
        num_classes = outputs(state, *(f"conv_out{head}.conv_out.weight" for head in ("", "16", "32")))
        return Foreign(
            part="model",
            state=kept,
            renamed=renamed,
            dropped={**dropped, **stdc.aliases(state, BACKBONE)},
            model={
                "name": "bisenet",
                "backbone": stdc.backbone_name(state, BACKBONE),
                "detail": any(key.startswith("conv_out_sp8.") for key in state),
            },
            num_classes=num_classes,
            classes=cityscapes_order(num_classes),
            notes=(INPLACE_NOTE,) if self.inplace else (),
        )


@LAYOUTS.register("bisenet_official")
class BiSeNetOfficial(_BiSeNetLayout):
    """STDC segmentation (official): in-place norms in the heads, boundary heads at four strides."""

    inplace = True


@LAYOUTS.register("bisenet_plain")
class BiSeNetPlain(_BiSeNetLayout):
    """The same network with plain batch norm, as in derived projects; the ImageNet tail may be in the file."""

    inplace = False
