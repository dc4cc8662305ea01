"""ImageNet files of STDC: ``STDCNet813M_73.91.tar`` and ``STDCNet1446_76.47.tar`` (Fan et al., CVPR 2021, their code).

The classification tail is left out. The network names its backbone stages a second time (``x2`` … ``x32``); these
tensors are checked to be the same.
"""

from __future__ import annotations

import re

import torch

from segue.foreign.base import LAYOUTS, Foreign, ForeignError, Layout, State, translate

RENAME = (
    (r"features\.(\d+)\.conv\.(.+)", r"features.\1.conv.\2"),
    (r"features\.(\d+)\.bn\.(.+)", r"features.\1.norm.\2"),
    (r"features\.(\d+)\.conv_list\.(\d)\.conv\.(.+)", r"features.\1.convs.\2.conv.\3"),
    (r"features\.(\d+)\.conv_list\.(\d)\.bn\.(.+)", r"features.\1.convs.\2.norm.\3"),
    (r"features\.(\d+)\.avd_layer\.0\.(.+)", r"features.\1.down.conv.\2"),
    (r"features\.(\d+)\.avd_layer\.1\.(.+)", r"features.\1.down.norm.\2"),
)
TAIL = (r"(conv_last|fc|bn|linear)\..+", "ImageNet classification tail, not used for segmentation")


def aliases(state: State, prefix: str = "") -> dict[str, str]:
    """Why each ``x8.0.2.…`` is left out; ``ForeignError`` when it differs from its ``features.2.…``."""
    found = {}
    for key, tensor in state.items():
        match = re.fullmatch(re.escape(prefix) + r"x(?:2|4|8|16|32)\.0\.(.+)", key)
        original = f"{prefix}features.{match[1]}" if match else ""
        if original not in state:
            continue
        if not torch.equal(tensor, state[original]):
            raise ForeignError(f"{key} differs from {original}, although both name one tensor: the file is damaged")
        found[key] = f"the same tensor as {original}"
    return found


def backbone_name(state: State, prefix: str = "") -> str:
    """``stdc1446`` when the file has more than the eight blocks of ``stdc813``."""
    return "stdc1446" if any(key.startswith(f"{prefix}features.13.") for key in state) else "stdc813"


@LAYOUTS.register("stdc_imagenet")
class StdcImageNet(Layout):
    """STDC classification (official): an encoder for ``bisenet``."""

    def fits(self, state: State) -> bool:
        """Blocks of the backbone without a prefix."""
        return any(re.match(r"features\.\d+\.conv_list\.", key) for key in state)

    def read(self, state: State) -> Foreign:
        """The backbone; stages named twice and the tail left out."""
        kept, renamed, dropped = translate(state, RENAME, (TAIL,))
        return Foreign(
            part="encoder",
            state=kept,
            renamed=renamed,
            dropped={**dropped, **aliases(state)},
            model={"name": "bisenet", "backbone": backbone_name(state)},
        )
