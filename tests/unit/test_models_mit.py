"""Mix Transformer, SegFormer head and DAFormer decoder against ``transformers`` and a restatement of the decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation, SegformerModel

from segue.models.build import build_model
from segue.models.mit import VARIANTS, Block, MiT, Variant

PARAMETERS = {
    "b0": 3_319_392,
    "b1": 13_151_424,
    "b2": 24_196_288,
    "b3": 44_072_128,
    "b4": 60_842_688,
    "b5": 81_443_008,
}
DECODER_PARAMETERS = {
    "embed": 263_168,
    "fuse.branches": 1_084_416,
    "fuse.join": 2_359_808,
}
BLOCK = {
    "layernorm_before": "norm1",
    "attention.q_proj": "attention.query",
    "attention.o_proj": "attention.project",
    "attention.sequence_reduction.sequence_reduction": "attention.reduce.conv",
    "attention.sequence_reduction.layer_norm": "attention.reduce.norm",
    "layernorm_after": "norm2",
    "mlp.fc1": "ffn.expand",
    "mlp.dwconv.dwconv": "ffn.depthwise",
    "mlp.fc2": "ffn.contract",
}
STAGE = {"patch_embeddings.proj": "patches.conv", "patch_embeddings.layer_norm": "patches.norm", "layer_norm": "norm"}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def oracle_config(variant: Variant, classes: int = 5) -> SegformerConfig:
    channels, depths = VARIANTS[variant]
    return SegformerConfig(hidden_sizes=channels, depths=depths, num_labels=classes)


def randomised(module: nn.Module) -> nn.Module:
    """Double precision, every value off its start: no bias is 0 and no norm the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.double().named_parameters():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.double)
            assert tensor.any(), name
        for tensor in module.buffers():
            if tensor.is_floating_point():
                tensor += torch.rand(tensor.shape, generator=generator, dtype=torch.double)
    return module.eval()


def with_published_epsilon(module: nn.Module) -> nn.Module:
    """The oracle has 1e-5 everywhere; published weights were trained with 1e-6 in norms of blocks and stages."""
    for name, norm in module.named_modules():
        if re.search(r"layernorm_(before|after)$|stages\.\d\.layer_norm$", name):
            norm.eps = 1e-6  # type: ignore[assignment]
    return module


def encoder_state(theirs: Mapping[str, Tensor], depths: tuple[int, ...], prefix: str = "") -> dict[str, Tensor]:
    """The oracle's encoder under our names; keys and values of attention are one layer of ours."""
    names: dict[str, str] = {}
    for i, depth in enumerate(depths):
        names |= {f"stages.{i}.{old}": f"stages.{i}.{new}" for old, new in STAGE.items()}
        for block in (f"stages.{i}.blocks.{j}." for j in range(depth)):
            names |= {block + old: block + new for old, new in BLOCK.items()}
    out = {}
    for kind in ("weight", "bias"):
        out |= {
            f"{n}.{kind}": theirs[f"{prefix}{o}.{kind}"] for o, n in names.items() if f"{prefix}{o}.{kind}" in theirs
        }
        for i, depth in enumerate(depths):
            for block in (f"stages.{i}.blocks.{j}.attention." for j in range(depth)):
                pair = [theirs[f"{prefix}{block}{name}_proj.{kind}"] for name in "kv"]
                out[f"{block}key_value.{kind}"] = torch.cat(pair)
    return out


def image(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.double)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (71, 93)])
def test_encoder_computes_what_the_oracle_computes(size: tuple[int, int]) -> None:
    theirs = with_published_epsilon(randomised(SegformerModel(oracle_config("b0"))))
    ours = MiT("b0", 0.1).double().eval()
    ours.load_state_dict(encoder_state(theirs.state_dict(), VARIANTS["b0"][1]))
    expected = theirs(image(*size), output_hidden_states=True).hidden_states
    found = ours(image(*size))
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_segformer_computes_what_the_oracle_computes() -> None:
    theirs = with_published_epsilon(randomised(SegformerForSemanticSegmentation(oracle_config("b0"))))
    state = theirs.state_dict()
    own = encoder_state(state, VARIANTS["b0"][1], "segformer.")
    renamed = {f"encoder.{key}": value for key, value in own.items()}
    for i in range(4):
        for kind in ("weight", "bias"):
            key = f"decode_head.linear_projections.{i}.proj.{kind}"
            renamed[f"decoder.embed.levels.{i}.{kind}"] = state[key]
    fine_last = state["decode_head.linear_fuse.weight"].chunk(4, 1)  # the oracle concatenates coarse to fine
    renamed["decoder.fuse.conv.weight"] = torch.cat(fine_last[::-1], 1)
    for key, value in state.items():
        head, _, kind = key.rpartition(".")
        if head == "decode_head.batch_norm":
            renamed[f"decoder.fuse.norm.{kind}"] = value
        if head == "decode_head.classifier":
            renamed[f"classifier.{kind}"] = value
    ours = build_model({"name": "segformer", "variant": "b0"}, 5).double().eval()
    ours.load_state_dict(renamed | {"mean": ours.mean, "std": ours.std})
    output = ours.decode(image(64, 96))
    torch.testing.assert_close(output.logits, theirs(image(64, 96)).logits, rtol=1e-9, atol=1e-9)
    assert output.logits.shape == (2, 5, 16, 24)
    assert output.embedding.shape == (2, 256, 16, 24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts(variant: Variant) -> None:
    with torch.device("meta"):
        assert (
            parameters(MiT(variant, 0.1)) == PARAMETERS[variant] == parameters(SegformerModel(oracle_config(variant)))
        )


def test_daformer_b5_has_the_published_size_and_maps() -> None:
    with torch.device("meta"):
        model = build_model({"name": "daformer"}, 19)
        maps = model.get_submodule("encoder")(torch.zeros(1, 3, 512, 512))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 128, 128), (128, 64, 64), (320, 32, 32), (512, 16, 16)]
    decoder = model.get_submodule("decoder")
    assert {name: parameters(decoder.get_submodule(name)) for name in DECODER_PARAMETERS} == DECODER_PARAMETERS
    assert parameters(decoder) + parameters(model.get_submodule("classifier")) == 3_712_275
    assert parameters(model) == PARAMETERS["b5"] + 3_712_275
    assert sum(isinstance(m, Block) for m in model.modules()) == 52


def test_norms_have_the_published_epsilon() -> None:
    for name, module in MiT("b0", 0.1).named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if ".patches." in name or ".reduce." in name else 1e-6), name


def conv_norm(s: Mapping[str, Tensor], name: str, x: Tensor, **conv: Any) -> Tensor:
    y = F.conv2d(x, s[f"{name}.conv.weight"], **conv)
    stats = (s[f"{name}.norm.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(y, *stats).relu()


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["sepaspp", "aspp", "conv1"])
def test_daformer_decoder_computes_its_formula(fusion: str) -> None:
    decoder = build_model({"name": "daformer", "variant": "b0", "channels": 8, "fusion": fusion}, 5).decoder
    s = randomised(decoder).state_dict()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    channels = VARIANTS["b0"][0]
    maps = [
        torch.randn(2, c, 24 >> i, 32 >> i, generator=generator, dtype=torch.double) for i, c in enumerate(channels)
    ]
    levels = []
    for i, m in enumerate(maps):
        weight, bias = s[f"embed.levels.{i}.weight"], s[f"embed.levels.{i}.bias"]
        level = F.conv2d(m, weight[:, :, None, None], bias)
        levels.append(F.interpolate(level, (24, 32), mode="bilinear", align_corners=False))
    x = torch.cat(levels, 1)
    if fusion == "conv1":
        expected = conv_norm(s, "fuse", x)
    else:
        branches = [conv_norm(s, "fuse.branches.0", x)]
        for i, rate in enumerate((6, 12, 18), start=1):
            dilated = {"padding": rate, "dilation": rate}
            if fusion == "aspp":
                branches.append(conv_norm(s, f"fuse.branches.{i}", x, **dilated))
                continue
            deep = conv_norm(s, f"fuse.branches.{i}.depthwise", x, **dilated, groups=x.shape[1])
            branches.append(conv_norm(s, f"fuse.branches.{i}.pointwise", deep))
        expected = conv_norm(s, "fuse.join", torch.cat(branches, 1), padding=1)
    assert expected.std() > 1e-3
    torch.testing.assert_close(decoder(maps), expected, rtol=1e-9, atol=1e-9)  # type: ignore[operator]


@pytest.mark.parametrize("fusion", ["sepaspp", "aspp", "conv1", "upernet"])
def test_every_fusion_trains_on_a_single_image(fusion: str) -> None:
    torch.manual_seed(0)
    model = build_model({"name": "daformer", "variant": "b0", "channels": 16, "fusion": fusion}, 5)
    output = model(torch.rand(1, 3, 65, 97))
    assert output.logits.shape == (1, 5, 24, 32)
    assert output.embedding.shape == (1, 16, 24, 32)
    assert output.embedding.min() >= 0
    (output.logits * torch.randn_like(output.logits)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_blocks_are_dropped_in_training_at_rates_that_rise_linearly() -> None:
    encoder = MiT("b0", 0.7)
    rates = [m.drop.drop_prob for m in encoder.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    x = torch.rand(2, 3, 32, 32)

    def last(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return encoder(x)[-1].detach()

    assert torch.equal(last(1), last(1))
    assert not torch.allclose(last(1), last(2))
    encoder.eval()
    assert torch.equal(last(1), last(2))


def test_width_of_the_segformer_head_follows_the_variant() -> None:
    with torch.device("meta"):
        widths = {v: build_model({"name": "segformer", "variant": v}, 19).classifiers() for v in ("b1", "b2")}
        narrow = build_model({"name": "segformer", "variant": "b2", "channels": 64}, 19).classifiers()
    assert [c["classifier"].in_channels for c in (*widths.values(), narrow)] == [256, 768, 64]
