"""ImageNet files of Mix Transformers, ``mit_b0.pth`` to ``mit_b5.pth`` (Xie et al., NeurIPS 2021, their code)."""

from __future__ import annotations

import re

from segue.foreign.base import LAYOUTS, Foreign, ForeignError, Layout, State, outputs, translate
from segue.foreign.trunks import IMAGENET_MEAN, IMAGENET_STD

BLOCK_KEY = r"block([1-4])\.(\d+)\.(?:attn|mlp|norm[12])\..+"
SIZES: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (2, 2, 2, 2)): "b0",
    (64, (2, 2, 2, 2)): "b1",
    (64, (3, 4, 6, 3)): "b2",
    (64, (3, 4, 18, 3)): "b3",
    (64, (3, 8, 27, 3)): "b4",
    (64, (3, 6, 40, 3)): "b5",
}
"""Channels of the first stage and blocks of all four."""
BLOCK = {
    "norm1": "norm1",
    "attn.q": "attention.query",
    "attn.kv": "attention.key_value",
    "attn.proj": "attention.project",
    "attn.sr": "attention.reduce.conv",
    "attn.norm": "attention.reduce.norm",
    "norm2": "norm2",
    "mlp.fc1": "ffn.expand",
    "mlp.dwconv.dwconv": "ffn.depthwise",
    "mlp.fc2": "ffn.contract",
}
NOTE = "ImageNet weights of SegFormer's authors: NVIDIA Source Code License, no commercial use"


def mit_rules(prefix: str = "", new: str = "") -> list[tuple[str, str]]:
    """Renaming rules of a Mix Transformer from ``prefix`` (an expression without groups) to ``new``."""
    rules = []
    for number in range(1, 5):
        stage = f"{new}stages.{number - 1}."
        rules.append((rf"{prefix}patch_embed{number}\.proj\.(weight|bias)", stage + r"patches.conv.\1"))
        rules.append((rf"{prefix}patch_embed{number}\.norm\.(weight|bias)", stage + r"patches.norm.\1"))
        rules.append((rf"{prefix}norm{number}\.(weight|bias)", stage + r"norm.\1"))
        for old, ours in BLOCK.items():
            key = rf"{prefix}block{number}\.(\d+)\.{re.escape(old)}\.(weight|bias)"
            rules.append((key, rf"{stage}blocks.\1.{ours}.\2"))
    return rules


def mit_variant(state: State, prefix: str = "") -> str:
    """``b0`` to ``b5`` by widths and blocks; ``ForeignError`` when none published has these."""
    found = [re.fullmatch(re.escape(prefix) + BLOCK_KEY, key) for key in state]
    numbers = [(int(m[1]), int(m[2])) for m in found if m]
    depths = tuple(1 + max((block for stage, block in numbers if stage == n), default=-1) for n in range(1, 5))
    width = outputs(state, f"{prefix}patch_embed1.proj.weight", f"{prefix}norm1.weight")
    variant = SIZES.get((width, depths))
    if variant is None:
        known = ", ".join(f"{name} {size}" for size, name in SIZES.items())
        raise ForeignError(
            f"no Mix Transformer has {width} channels first and {depths} blocks in its four stages; known: {known}"
        )
    return variant


@LAYOUTS.register("mit_imagenet")
class MiTImageNet(Layout):
    """Mix Transformers of SegFormer's authors (``mit_b5.pth``): an encoder for ``daformer`` and ``segformer``."""

    def fits(self, state: State) -> bool:
        """Blocks of the encoder without a prefix."""
        return any(re.fullmatch(BLOCK_KEY, key) for key in state)

    def read(self, state: State) -> Foreign:
        """The encoder; the ImageNet classifier is dropped."""
        drop = [(r"head\.(weight|bias)", "ImageNet classifier")]
        kept, renamed, dropped = translate(state, mit_rules(), drop)
        return Foreign(
            part="encoder",
            state=kept,
            renamed=renamed,
            dropped=dropped,
            model={"name": "segformer", "variant": mit_variant(state)},
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            notes=(NOTE,),
        )
