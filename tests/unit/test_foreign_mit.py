"""Files in the key layout of SegFormer's authors, synthesised: recognised, complete, and computing what they did."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.convert import plan, write
from segue.foreign.base import ForeignError, fitting, recognise
from segue.foreign.mit import SIZES
from segue.models.build import build_model
from segue.models.mit import VARIANTS, Variant
from segue.models.weights import WeightsError

State = dict[str, Tensor]
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)


def shapes(variant: Variant) -> dict[str, tuple[int, ...]]:
    """Weights that have a bias of their first size, from the paper's Table 6."""
    channels, depths = VARIANTS[variant]
    found: dict[str, tuple[int, ...]] = {"head": (1000, channels[-1])}
    for i, (c, depth) in enumerate(zip(channels, depths, strict=True)):
        kernel, before = (3, channels[i - 1]) if i else (7, 3)
        found |= {f"patch_embed{i + 1}.proj": (c, before, kernel, kernel), f"patch_embed{i + 1}.norm": (c,)}
        found[f"norm{i + 1}"] = (c,)
        for block in (f"block{i + 1}.{j}." for j in range(depth)):
            found |= {f"{block}norm1": (c,), f"{block}norm2": (c,)}
            found |= {f"{block}attn.q": (c, c), f"{block}attn.kv": (2 * c, c), f"{block}attn.proj": (c, c)}
            if i < 3:
                found |= {f"{block}attn.sr": (c, c, REDUCTIONS[i], REDUCTIONS[i]), f"{block}attn.norm": (c,)}
            found |= {f"{block}mlp.fc1": (4 * c, c), f"{block}mlp.fc2": (c, 4 * c)}
            found[f"{block}mlp.dwconv.dwconv"] = (4 * c, 1, 3, 3)
    return found


def published(variant: Variant) -> State:
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for name, shape in shapes(variant).items():
        noise = torch.randn(shape, generator=generator)
        norm = len(shape) == 1
        state[f"{name}.weight"] = 1 + 0.2 * noise if norm else noise * math.sqrt(shape[0] / math.prod(shape))
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return state


def layer_norm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (var + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].t() + s[f"{name}.bias"]


def attention(s: State, name: str, x: Tensor, size: tuple[int, int], stage: int) -> Tensor:
    heads, small = HEADS[stage], x
    n, tokens, channels = x.shape
    if stage < 3:
        grid = x.transpose(1, 2).reshape(n, channels, *size)
        grid = F.conv2d(grid, s[f"{name}sr.weight"], s[f"{name}sr.bias"], REDUCTIONS[stage])
        small = layer_norm(s, f"{name}norm", grid.flatten(2).transpose(1, 2), 1e-5)
    query = linear(s, f"{name}q", x).reshape(n, tokens, heads, -1)
    key, value = linear(s, f"{name}kv", small).chunk(2, -1)
    key, value = (t.reshape(n, small.shape[1], heads, -1) for t in (key, value))
    weight = (torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(channels // heads)).softmax(-1)
    return linear(s, f"{name}proj", torch.einsum("nhqk,nkhd->nqhd", weight, value).reshape(n, tokens, channels))


def forward(s: State, x: Tensor, depths: tuple[int, ...]) -> list[Tensor]:
    maps = []
    for i, depth in enumerate(depths):
        patch = f"patch_embed{i + 1}."
        stride, padding = (2, 1) if i else (4, 3)
        x = F.conv2d(x, s[f"{patch}proj.weight"], s[f"{patch}proj.bias"], stride, padding)
        size = (x.shape[2], x.shape[3])
        x = layer_norm(s, f"{patch}norm", x.flatten(2).transpose(1, 2), 1e-5)
        for block in (f"block{i + 1}.{j}." for j in range(depth)):
            x = x + attention(s, f"{block}attn.", layer_norm(s, f"{block}norm1", x, 1e-6), size, i)
            y = linear(s, f"{block}mlp.fc1", layer_norm(s, f"{block}norm2", x, 1e-6)).transpose(1, 2)
            depthwise = f"{block}mlp.dwconv.dwconv"
            y = F.conv2d(
                y.unflatten(2, size), s[f"{depthwise}.weight"], s[f"{depthwise}.bias"], padding=1, groups=y.shape[1]
            )
            x = x + linear(s, f"{block}mlp.fc2", F.gelu(y).flatten(2).transpose(1, 2))
        x = layer_norm(s, f"norm{i + 1}", x, 1e-6).transpose(1, 2).unflatten(2, size)
        maps.append(x)
    return maps


@pytest.fixture(scope="module")
def state() -> State:
    return published("b0")


@torch.no_grad()
@pytest.mark.parametrize("name", ["segformer", "daformer"])
def test_a_published_encoder_computes_the_same(name: str, state: State, tmp_path: Path) -> None:
    old = tmp_path / "mit_b0.pth"
    torch.save(state, old)
    found = plan(old)
    assert found.foreign.layout == "mit_imagenet"
    assert found.foreign.model["variant"] == "b0"
    assert "no commercial use" in found.foreign.notes[0]
    assert found.faults == ()
    assert found.counts() == {"renamed": len(state) - 2, "dropped": 2}
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    expected = forward(state, x, VARIANTS["b0"][1])
    for weights in (old, write(found, tmp_path / "encoder.safetensors")):  # as published, and converted
        model = build_model({"name": name, "variant": "b0", "channels": 8, "weights": str(weights)}, 3).eval()
        for ours, theirs in zip(model.get_submodule("encoder")(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_exactly_one_layout_fits_also_when_a_key_is_gone_or_added(state: State) -> None:
    for gone in list(state)[::20]:
        assert fitting({k: v for k, v in state.items() if k != gone}) == ["mit_imagenet"], gone
    extra = recognise(state | {"novel.weight": torch.ones(1)})
    assert extra.unexpected == ("novel.weight",)
    assert set(extra.renamed) | set(extra.dropped) == set(state)


KEY = "block2.1.attn.kv.weight"
OURS = "stages.1.blocks.1.attention.key_value.weight"


@pytest.mark.parametrize(
    ("change", "status", "name"),
    [
        ({KEY: None}, "missing", OURS),
        ({KEY: torch.ones(64, 64)}, "wrong shape", KEY),
        ({KEY: torch.full((128, 64), torch.nan)}, "not finite", KEY),
        ({"block4.1.attn.sr.weight": torch.ones(256, 256, 1, 1)}, "unexpected", "block4.1.attn.sr.weight"),
        ({"block4.1.attn.gate": torch.ones(1)}, "unexpected", "block4.1.attn.gate"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, Tensor | None], status: str, name: str, tmp_path: Path) -> None:
    changed = {**published("b0"), **change}
    torch.save({k: v for k, v in changed.items() if v is not None}, tmp_path / "w.pth")
    faults = plan(tmp_path / "w.pth").faults
    assert [(row.status, row.key or row.ours) for row in faults] == [(status, name)]
    if "gate" in name:  # of no name of ours: load_encoder ignores what a file holds beside the encoder
        return
    with pytest.raises(WeightsError, match=status):
        build_model({"name": "segformer", "variant": "b0", "channels": 8, "weights": str(tmp_path / "w.pth")}, 3)


def test_weights_of_another_variant_are_refused(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "mit_b0.pth")
    weights = {"name": "segformer", "variant": "b1", "channels": 8, "weights": str(tmp_path / "mit_b0.pth")}
    with pytest.raises(WeightsError, match="wrong shape"):
        build_model(weights, 3)


def test_every_variant_is_told_by_its_sizes() -> None:
    assert {name: (width, depths) for (width, depths), name in SIZES.items()} == {
        name: (channels[0], depths) for name, (channels, depths) in VARIANTS.items()
    }
    for variant in VARIANTS:
        keys = {f"{name}.weight": torch.empty(shape, device="meta") for name, shape in shapes(variant).items()}
        assert recognise(keys).model == {"name": "segformer", "variant": variant}


def test_an_unknown_depth_is_refused(state: State) -> None:
    deeper = state | {"block3.2.attn.q.weight": torch.ones(160, 160)}
    with pytest.raises(ForeignError, match=r"no Mix Transformer has 32 channels first and \(2, 2, 3, 2\) blocks"):
        recognise(deeper)
