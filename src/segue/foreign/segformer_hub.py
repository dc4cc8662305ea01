"""SegFormer in Hugging Face's key layouts: files of the hub, and the names that transformers has since version 5.

Both hold the authors' networks: key and value of an attention are two matrices, and the head concatenates its maps
coarse to fine, so its fusing convolution is turned round. Files that ``save_pretrained`` writes have the first names,
``model.state_dict()`` has the second. The encoder may be alone or under an ImageNet classifier.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, cityscapes_order, outputs, translate
from segue.foreign.mit import mit_rules, mit_variant
from segue.foreign.mmseg_mit import TRAINED_FROM, fine_first, level_width
from segue.foreign.trunks import IMAGENET_MEAN, IMAGENET_STD, NORM

START = r"(?:segformer\.)?"
KEY = START + (
    r"(?:encoder\.block\.[0-3]\.\d+\.(?:layer_norm_[12]|attention\.(?:self|output)|mlp\.d)"
    r"|encoder\.patch_embeddings\.[0-3]\.(?:proj|layer_norm)\."
    r"|stages\.[0-3]\.patch_embeddings\.(?:proj|layer_norm)\."
    r"|stages\.[0-3]\.blocks\.\d+\.attention\.sequence_reduction\.).+"
)
STAGE = (
    ("encoder.patch_embeddings.{}.proj", "stages.{}.patch_embeddings.proj", "patch_embed{}.proj"),
    ("encoder.patch_embeddings.{}.layer_norm", "stages.{}.patch_embeddings.layer_norm", "patch_embed{}.norm"),
    ("encoder.layer_norm.{}", "stages.{}.layer_norm", "norm{}"),
)
BLOCK = (
    ("layer_norm_1", "layernorm_before", "norm1"),
    ("attention.self.query", "attention.q_proj", "attn.q"),
    ("attention.self.key", "attention.k_proj", "attn.k"),
    ("attention.self.value", "attention.v_proj", "attn.v"),
    ("attention.self.sr", "attention.sequence_reduction.sequence_reduction", "attn.sr"),
    ("attention.self.layer_norm", "attention.sequence_reduction.layer_norm", "attn.norm"),
    ("attention.output.dense", "attention.o_proj", "attn.proj"),
    ("layer_norm_2", "layernorm_after", "norm2"),
    ("mlp.dense1", "mlp.fc1", "mlp.fc1"),
    ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv", "mlp.dwconv.dwconv"),
    ("mlp.dense2", "mlp.fc2", "mlp.fc2"),
)
"""The hub's name, that of transformers since 5, the authors'."""
HEAD = (
    (r"decode_head\.linear_(?:c|projections)\.([0-3])\.proj\.(weight|bias)", r"decoder.embed.levels.\1.\2"),
    (r"decode_head\.linear_fuse\.weight", "decoder.fuse.conv.weight"),
    (r"decode_head\.batch_norm\." + NORM, r"decoder.fuse.norm.\g<value>"),
    (r"decode_head\.classifier\.(weight|bias)", r"classifier.\1"),
)
EPS_NOTE = (
    "norms of blocks and stages have epsilon 1e-6 here, as the authors trained the weights, and 1e-5 in transformers"
)


def _rules() -> list[tuple[str, str]]:
    rules = []
    for i in range(4):
        for hub, new, authors in STAGE:
            either = "|".join(re.escape(name.format(i)) for name in (hub, new))
            rules.append((rf"{START}(?:{either})\.(weight|bias)", rf"{authors.format(i + 1)}.\1"))
        for hub, new, authors in BLOCK:
            for old in (
                rf"encoder\.block\.{i}\.(\d+)\.{re.escape(hub)}",
                rf"stages\.{i}\.blocks\.(\d+)\.{re.escape(new)}",
            ):
                rules.append((rf"{START}{old}\.(weight|bias)", rf"block{i + 1}.\1.{authors}.\2"))
    return rules


RULES = tuple(_rules())
DROP = ((r"classifier\.(weight|bias)", "ImageNet classifier"),)


@LAYOUTS.register("segformer_hub")
class SegFormerHub(Layout):
    """SegFormer of Hugging Face (``nvidia/segformer-*``, ``nvidia/mit-*``) in both key layouts, or its encoder."""

    def fits(self, state: State) -> bool:
        """Parts of the encoder that no other network has under these names."""
        return any(re.fullmatch(KEY, key) for key in state)

    def read(self, state: State) -> Foreign:
        """The encoder under the authors' names and then ours; the head when there is one."""
        table, names, dropped = translate(state, RULES, DROP)
        head, in_head, _ = translate(state, HEAD)
        authors = _joined(table)
        kept, ours, _ = translate(authors, mit_rules(new="encoder." if head else ""))
        model: dict[str, Any] = {"name": "segformer", "variant": mit_variant(authors)}
        num_classes = None
        if head:
            fuse = "decoder.fuse.conv.weight"
            head |= {name: fine_first(head[name]) for name in (fuse,) if name in head}
            model["channels"] = level_width(head, "decoder.")
            num_classes = outputs(head, "classifier.weight", "classifier.bias")
        return Foreign(
            part="model" if head else "encoder",
            state=kept | head,
            renamed={key: ours[_whole(name)] for key, name in names.items()} | in_head,
            dropped=dropped,
            model=model,
            num_classes=num_classes,
            classes=cityscapes_order(num_classes) if num_classes else None,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            notes=(TRAINED_FROM, EPS_NOTE),
        )


def _whole(name: str) -> str:
    return re.sub(r"\.attn\.[kv]\.", ".attn.kv.", name)


def _joined(table: State) -> dict[str, Tensor]:
    """Keys and values as one; a half that finds no match keeps a dimension too many and is reported."""
    out: dict[str, Tensor] = {}
    for name, tensor in table.items():
        whole = _whole(name)
        halves = [table.get(whole.replace(".attn.kv.", f".attn.{half}.")) for half in "kv"] if whole != name else []
        found = [half for half in halves if half is not None and half.ndim and half.shape == tensor.shape]
        if not halves:
            out[name] = tensor
        elif whole not in out:
            out[whole] = torch.cat(found) if len(found) == 2 else tensor[None]
    return out
