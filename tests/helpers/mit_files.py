"""Files of SegFormer's authors and of the DAFormer code, synthesised, and their networks restated on the files' names.

Nothing here knows ``segue``: the encoder from the paper's Table 6 and equations 2 and 3, the decoders from the layer
lists of the DAFormer, HRDA and mmsegmentation papers and code. :func:`hub_names` and :func:`openmmlab_names` give an
authors' table the names (and shapes) of other projects.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.published import Maker, State, batch_norm

DEPTHS = {"b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3), "b5": (3, 6, 40, 3)}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
RATES = (1, 6, 12, 18)
POOLS = (1, 2, 3, 6)


def widths(variant: str) -> tuple[int, ...]:
    return (32, 64, 160, 256) if variant == "b0" else (64, 128, 320, 512)


class File(Maker):
    """Grows a state dict; ``values=False``: tensors without memory, for shapes only."""

    def __init__(self, seed: int = 0, values: bool = True) -> None:
        super().__init__(seed)
        self.values = values

    def conv(self, name: str, shape: tuple[int, ...], bias: bool = False, out_dim: int = 0) -> None:
        if self.values:
            return super().conv(name, shape, bias, out_dim)
        self.state[f"{name}.weight"] = torch.zeros(()).expand(shape)
        if bias:
            self.state[f"{name}.bias"] = torch.zeros(()).expand(shape[0])

    def layer_norm(self, name: str, size: int) -> None:
        self.state[f"{name}.weight"] = self.uniform(size, 0.5, 1.5)
        self.state[f"{name}.bias"] = self.uniform(size, -0.3, 0.3)

    def unit(self, name: str, before: int, after: int, kernel: int = 1) -> None:
        """A convolution with batch norm."""
        self.conv(f"{name}.conv", (after, before, kernel, kernel))
        self.norm(f"{name}.bn", after)

    def encoder(self, prefix: str, variant: str = "b0") -> None:
        before = 3
        for i, (c, depth) in enumerate(zip(widths(variant), DEPTHS[variant], strict=True)):
            kernel = 3 if i else 7
            self.conv(f"{prefix}patch_embed{i + 1}.proj", (c, before, kernel, kernel), bias=True)
            self.layer_norm(f"{prefix}patch_embed{i + 1}.norm", c)
            for block in (f"{prefix}block{i + 1}.{j}." for j in range(depth)):
                self.layer_norm(f"{block}norm1", c)
                self.conv(f"{block}attn.q", (c, c), bias=True)
                self.conv(f"{block}attn.kv", (2 * c, c), bias=True)
                self.conv(f"{block}attn.proj", (c, c), bias=True)
                if REDUCTIONS[i] > 1:
                    self.conv(f"{block}attn.sr", (c, c, REDUCTIONS[i], REDUCTIONS[i]), bias=True)
                    self.layer_norm(f"{block}attn.norm", c)
                self.layer_norm(f"{block}norm2", c)
                self.conv(f"{block}mlp.fc1", (4 * c, c), bias=True)
                self.conv(f"{block}mlp.dwconv.dwconv", (4 * c, 1, 3, 3), bias=True)
                self.conv(f"{block}mlp.fc2", (c, 4 * c), bias=True)
            self.layer_norm(f"{prefix}norm{i + 1}", c)
            before = c

    def daformer(self, head: str, classes: int, fusion: str, width: int = 16, variant: str = "b0") -> None:
        if fusion == "upernet":
            self.upernet(head, width, variant)
        else:
            for i, c in enumerate(widths(variant)):
                self.conv(f"{head}embed_layers.{i}.proj", (width, c), bias=True)
        fuse, wide = f"{head}fuse_layer", 4 * width
        if fusion == "conv1":
            self.unit(fuse, wide, width)
        elif fusion != "upernet":
            self.unit(f"{fuse}.aspp_modules.0", wide, width)
            for i in (1, 2, 3):
                if fusion == "aspp":
                    self.unit(f"{fuse}.aspp_modules.{i}", wide, width, 3)
                    continue
                self.conv(f"{fuse}.aspp_modules.{i}.depthwise_conv.conv", (wide, 1, 3, 3))
                self.norm(f"{fuse}.aspp_modules.{i}.depthwise_conv.bn", wide)
                self.unit(f"{fuse}.aspp_modules.{i}.pointwise_conv", wide, width)
            self.unit(f"{fuse}.bottleneck", wide, width, 3)
        self.conv(f"{head}conv_seg", (classes, width, 1, 1), bias=True)

    def upernet(self, head: str, width: int, variant: str) -> None:
        *fine, coarse = widths(variant)
        for i in range(4):
            self.unit(f"{head}psp_modules.{i}.1", coarse, width)
        self.unit(f"{head}bottleneck", coarse + 4 * width, width, 3)
        for i, c in enumerate(fine):
            self.unit(f"{head}lateral_convs.{i}", c, width)
            self.unit(f"{head}fpn_convs.{i}", width, width, 3)
        self.unit(f"{head}fpn_bottleneck", 4 * width, width, 3)

    def segformer(self, head: str, classes: int, names: str, width: int = 16, variant: str = "b0") -> None:
        """``names`` of the levels: ``linear_c{}`` from 1 (the authors) or ``linear_c.{}`` from 0 (DAFormer's code)."""
        first = 1 if names == "linear_c{}" else 0
        for i, c in enumerate(widths(variant)):
            self.conv(f"{head}{names.format(i + first)}.proj", (width, c), bias=True)
        self.unit(f"{head}linear_fuse", 4 * width, width)
        self.conv(f"{head}linear_pred", (classes, width, 1, 1), bias=True)
        self.conv(f"{head}conv_seg", (classes, 12, 1, 1), bias=True)


# --- what they compute ------------------------------------------------------------------------------------------------


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


def norm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)


def encoder_maps(s: State, prefix: str, x: Tensor) -> list[Tensor]:
    """Four maps (N,C,h,w) of a normalised image."""
    maps = []
    for i in range(4):
        patch = f"{prefix}patch_embed{i + 1}"
        kernel = s[f"{patch}.proj.weight"].shape[-1]
        x = F.conv2d(x, s[f"{patch}.proj.weight"], s[f"{patch}.proj.bias"], 2 if i else 4, kernel // 2)
        size = (x.shape[2], x.shape[3])
        x = norm(s, f"{patch}.norm", x.flatten(2).mT, 1e-5)
        block = 0
        while f"{prefix}block{i + 1}.{block}.norm1.weight" in s:
            name = f"{prefix}block{i + 1}.{block}"
            x = x + _attention(s, f"{name}.attn", norm(s, f"{name}.norm1", x, 1e-6), size, i)
            y, depthwise = linear(s, f"{name}.mlp.fc1", norm(s, f"{name}.norm2", x, 1e-6)), f"{name}.mlp.dwconv.dwconv"
            y = F.conv2d(
                y.mT.unflatten(2, size),
                s[f"{depthwise}.weight"],
                s[f"{depthwise}.bias"],
                padding=1,
                groups=y.shape[-1],
            )
            x = x + linear(s, f"{name}.mlp.fc2", F.gelu(y).flatten(2).mT)
            block += 1
        x = norm(s, f"{prefix}norm{i + 1}", x, 1e-6).mT.unflatten(2, size)
        maps.append(x)
    return maps


def _attention(s: State, name: str, x: Tensor, size: tuple[int, int], stage: int) -> Tensor:
    small, ratio, heads = x, REDUCTIONS[stage], HEADS[stage]
    if ratio > 1:
        grid = F.conv2d(x.mT.unflatten(2, size), s[f"{name}.sr.weight"], s[f"{name}.sr.bias"], ratio)
        small = norm(s, f"{name}.norm", grid.flatten(2).mT, 1e-5)
    query = linear(s, f"{name}.q", x).unflatten(-1, (heads, -1)).movedim(2, 1)
    key, value = (t.unflatten(-1, (heads, -1)).movedim(2, 1) for t in linear(s, f"{name}.kv", small).chunk(2, -1))
    weight = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    return linear(s, f"{name}.proj", (weight @ value).movedim(1, 2).flatten(2))


def unit(s: State, name: str, x: Tensor, rate: int = 1) -> Tensor:
    weight = s[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, None, 1, rate * (weight.shape[-1] // 2), rate, x.shape[1] // weight.shape[1])
    return F.relu(batch_norm(s, f"{name}.bn", x))


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def classify(s: State, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"])


def levels(s: State, names: list[str], maps: list[Tensor]) -> list[Tensor]:
    """Every map through the linear layer of its name, at the size of the first."""
    pairs = zip(names, maps, strict=True)
    return [up(linear(s, f"{name}.proj", x.movedim(1, -1)).movedim(-1, 1), maps[0]) for name, x in pairs]


def daformer_logits(s: State, head: str, maps: list[Tensor]) -> Tensor:
    if f"{head}fpn_bottleneck.conv.weight" in s:
        return classify(s, f"{head}conv_seg", _upernet(s, head, maps))
    x = torch.cat(levels(s, [f"{head}embed_layers.{i}" for i in range(4)], maps), 1)
    fuse = f"{head}fuse_layer"
    if f"{fuse}.conv.weight" in s:
        return classify(s, f"{head}conv_seg", unit(s, fuse, x))
    branches = []
    for i, rate in enumerate(RATES):
        name = f"{fuse}.aspp_modules.{i}"
        if f"{name}.conv.weight" in s:
            branches.append(unit(s, name, x, rate))
        else:
            branches.append(unit(s, f"{name}.pointwise_conv", unit(s, f"{name}.depthwise_conv", x, rate)))
    return classify(s, f"{head}conv_seg", unit(s, f"{fuse}.bottleneck", torch.cat(branches, 1)))


def _upernet(s: State, head: str, maps: list[Tensor]) -> Tensor:
    coarse = maps[3]
    pools = [unit(s, f"{head}psp_modules.{i}.1", F.adaptive_avg_pool2d(coarse, side)) for i, side in enumerate(POOLS)]
    top = unit(s, f"{head}bottleneck", torch.cat([coarse, *(up(x, coarse) for x in pools)], 1))
    sums = [*(unit(s, f"{head}lateral_convs.{i}", maps[i]) for i in range(3)), top]
    for i in (2, 1, 0):
        sums[i] = sums[i] + up(sums[i + 1], sums[i])
    smooth = [*(unit(s, f"{head}fpn_convs.{i}", sums[i]) for i in range(3)), top]
    return unit(s, f"{head}fpn_bottleneck", torch.cat([up(x, maps[0]) for x in smooth], 1))


def segformer_logits(s: State, head: str, maps: list[Tensor]) -> Tensor:
    if f"{head}linear_c1.proj.weight" in s:  # the authors concatenate from the coarsest
        embedded = levels(s, [f"{head}linear_c{i}" for i in (1, 2, 3, 4)], maps)[::-1]
    else:
        embedded = levels(s, [f"{head}linear_c.{i}" for i in range(4)], maps)
    return classify(s, f"{head}linear_pred", unit(s, f"{head}linear_fuse", torch.cat(embedded, 1)))


def hrda_logits(s: State, prefix: str, x: Tensor, window: int, share: Tensor | None = None) -> Tensor:
    """Fused logits of an image at stride 4: windows with half their side as step, each scored once, averaged."""
    head = f"{prefix}decode_head."
    maps = encoder_maps(s, f"{prefix}backbone.", F.interpolate(x, scale_factor=0.5, mode="bilinear"))
    context = daformer_logits(s, f"{head}head.", maps)
    gate = daformer_logits(s, f"{head}scale_attention.", maps).sigmoid() if share is None else share
    total = x.new_zeros(x.shape[0], context.shape[1], x.shape[2] // 4, x.shape[3] // 4)
    count = torch.zeros_like(total)
    for top in range(0, x.shape[2] - window + 1, window // 2):
        for left in range(0, x.shape[3] - window + 1, window // 2):
            part = encoder_maps(s, f"{prefix}backbone.", x[..., top : top + window, left : left + window])
            cells = (..., slice(top // 4, (top + window) // 4), slice(left // 4, (left + window) // 4))
            total[cells] += daformer_logits(s, f"{head}head.", part)
            count[cells] += 1
    return up((1 - gate) * context, total) + up(gate, total) * total / count


# --- names of other projects ------------------------------------------------------------------------------------------

HUB = {
    ".norm1.": (".layer_norm_1.", ".layernorm_before."),
    ".attn.q.": (".attention.self.query.", ".attention.q_proj."),
    ".attn.k.": (".attention.self.key.", ".attention.k_proj."),
    ".attn.v.": (".attention.self.value.", ".attention.v_proj."),
    ".attn.proj.": (".attention.output.dense.", ".attention.o_proj."),
    ".attn.sr.": (".attention.self.sr.", ".attention.sequence_reduction.sequence_reduction."),
    ".attn.norm.": (".attention.self.layer_norm.", ".attention.sequence_reduction.layer_norm."),
    ".norm2.": (".layer_norm_2.", ".layernorm_after."),
    ".mlp.fc": (".mlp.dense", ".mlp.fc"),
}


def hub_names(state: State, new: bool) -> State:
    """A plain SegFormer of its authors (``backbone.*``, ``linear_c1``) as transformers stores it; ``new``: since 5."""
    out: State = {}
    for key, tensor in state.items():
        if ".attn.kv." in key:
            k, v = tensor.chunk(2)
            out |= {_hub(key.replace(".kv.", ".k."), new): k, _hub(key.replace(".kv.", ".v."), new): v}
        elif ".conv_seg." not in key:
            out[_hub(key, new)] = tensor
    return out


def _hub(key: str, new: bool) -> str:
    if key.startswith("decode_head."):
        level = "decode_head.linear_projections." if new else "decode_head.linear_c."
        key = re.sub(r"decode_head\.linear_c(\d)\.", lambda m: f"{level}{int(m[1]) - 1}.", key)
        key = key.replace("linear_fuse.conv", "linear_fuse").replace("linear_fuse.bn", "batch_norm")
        return key.replace("linear_pred", "classifier")
    found = re.fullmatch(r"backbone\.(patch_embed|block|norm)(\d)\.(.+)", key)
    assert found is not None
    part, stage, rest = found[1], int(found[2]) - 1, found[3]
    if part == "block":
        for authors, names in HUB.items():
            rest = rest.replace(authors, names[new])
        return f"segformer.stages.{stage}.blocks.{rest}" if new else f"segformer.encoder.block.{stage}.{rest}"
    name = "patch_embeddings" if part == "patch_embed" else "layer_norm"
    name = f"stages.{stage}.{name}" if new else f"encoder.{name}.{stage}"
    return f"segformer.{name}.{rest.replace('norm', 'layer_norm')}"


def openmmlab_names(state: State, prefix: str = "") -> State:
    """An encoder of SegFormer's authors as open-mmlab's converter writes it."""
    out: State = {}
    for key, tensor in state.items():
        if ".attn.kv." in key:
            continue
        stage = re.match(r"(?:patch_embed|block|norm)(\d)\.", key)
        assert stage is not None
        number = int(stage[1]) - 1
        rest = key[stage.end() :]
        if key.startswith("norm"):
            name = f"2.{rest}"
        elif key.startswith("patch_embed"):
            name = f"0.{rest.replace('proj', 'projection')}"
        else:
            if ".attn.q." in key:
                rest, tensor = (
                    rest.replace("q.", "attn.in_proj_"),
                    torch.cat([tensor, state[key.replace(".q.", ".kv.")]]),
                )
            if ".mlp.fc" in key and key.endswith("weight"):
                tensor = tensor[..., None, None]
            rest = rest.replace("attn.proj", "attn.attn.out_proj").replace("mlp.fc1", "ffn.layers.0")
            name = "1." + rest.replace("mlp.dwconv.dwconv", "ffn.layers.1").replace("mlp.fc2", "ffn.layers.4")
        out[f"{prefix}layers.{number}.{name}"] = tensor
    return out
