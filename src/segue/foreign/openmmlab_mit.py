"""Mix Transformers of open-mmlab's mmsegmentation (``layers.0.1.0.attn.attn.in_proj_weight``): encoders.

Its converted ImageNet files and its SegFormers rename the authors' encoder, join query, key and value to one matrix and
make 1x1 convolutions of the feed-forward layers. Its SegFormer head has a batch norm and a ReLU in every level, the
paper's and ``segformer`` have neither, so of a whole network the encoder is read.
"""

from __future__ import annotations

import re

from torch import Tensor

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, translate
from segue.foreign.mit import mit_rules, mit_variant
from segue.foreign.mmseg_mit import TRAINED_FROM
from segue.foreign.trunks import IMAGENET_MEAN, IMAGENET_STD

START = r"(?:backbone\.)?layers\."
KEY = START + r"[0-3]\.(?:0\.projection|1\.\d+\.(?:attn\.(?:attn|sr|norm)|ffn\.layers|norm[12]))\..+"
BLOCK = {
    "norm1": "norm1",
    "attn.attn.in_proj": "attn.qkv",
    "attn.attn.out_proj": "attn.proj",
    "attn.sr": "attn.sr",
    "attn.norm": "attn.norm",
    "norm2": "norm2",
    "ffn.layers.0": "mlp.fc1",
    "ffn.layers.1": "mlp.dwconv.dwconv",
    "ffn.layers.4": "mlp.fc2",
}
"""Names in a block: open-mmlab's and the authors'."""
EPS_NOTE = "norms of patches and reductions have epsilon 1e-5 here and 1e-6 in mmsegmentation"


def _rules() -> list[tuple[str, str]]:
    rules = []
    for number in range(1, 5):
        stage = rf"{START}{number - 1}\."
        rules.append((stage + r"0\.projection\.(weight|bias)", rf"patch_embed{number}.proj.\1"))
        rules.append((stage + r"0\.norm\.(weight|bias)", rf"patch_embed{number}.norm.\1"))
        rules.append((stage + r"2\.(weight|bias)", rf"norm{number}.\1"))
        for old, authors in BLOCK.items():
            dot = "_" if old.endswith("in_proj") else r"\."
            key = rf"{stage}1\.(\d+)\.{re.escape(old)}{dot}(weight|bias)"
            rules.append((key, rf"block{number}.\1.{authors}.\2"))
    return rules


RULES = tuple(_rules())
DROP = (
    (r"decode_head\..+", "its levels have norms and ReLUs, which no decoder here has"),
    (r"auxiliary_head\..+", "head of the training alone"),
)


@LAYOUTS.register("openmmlab_mit")
class OpenMMLabMiT(Layout):
    """Mix Transformers of open-mmlab's mmsegmentation, alone or in its SegFormer: an encoder."""

    def fits(self, state: State) -> bool:
        """Blocks of the encoder, with or without ``backbone``."""
        return any(re.fullmatch(KEY, key) for key in state)

    def read(self, state: State) -> Foreign:
        """The encoder under the authors' names, then under ours."""
        table, names, dropped = translate(state, RULES, DROP)
        authors: dict[str, Tensor] = {}
        for key, name in names.items():
            parts = _separated(name, table[name])
            authors |= parts
            names[key] = next((part for part, tensor in parts.items() if not tensor.isfinite().all()), [*parts][-1])
        kept, renamed, _ = translate(authors, mit_rules())
        return Foreign(
            part="encoder",
            state=kept,
            renamed={key: renamed[name] for key, name in names.items()},
            dropped=dropped,
            model={"name": "segformer", "variant": mit_variant(authors)},
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            notes=(TRAINED_FROM, EPS_NOTE),
        )


def _separated(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """An entry as the authors have it; one of a wrong shape stays as it is and is reported."""
    if ".attn.qkv." in name:
        query, key_value = (name.replace(".qkv.", f".{part}.") for part in ("q", "kv"))
        if tensor.ndim == 0 or tensor.shape[0] % 3:
            return {key_value: tensor}
        third = tensor.shape[0] // 3
        return {query: tensor[:third], key_value: tensor[third:]}
    is_linear = tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and ".mlp.fc" in name
    return {name: tensor.flatten(1) if is_linear else tensor}
