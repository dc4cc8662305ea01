"""Small DINOv2 and DINOv3 transformers in timm, oracles in ``transformers``, and the names of the published files."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import _create_eva
from timm.models.vision_transformer import _create_vision_transformer
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "init_values": 1e-5}


@register_model
def mini_dinov2(pretrained: bool = False, **given: Any) -> nn.Module:
    options = {"patch_size": 14, **SMALL, **given}
    return _create_vision_transformer("vit_small_patch14_dinov2", pretrained=pretrained, **options)


@register_model
def mini_dinov2_reg4(pretrained: bool = False, **given: Any) -> nn.Module:
    options = {"patch_size": 14, "reg_tokens": 4, "no_embed_class": True, **SMALL, **given}
    return _create_vision_transformer("vit_small_patch14_reg4_dinov2", pretrained=pretrained, **options)


@register_model
def mini_dinov3(pretrained: bool = False, **given: Any) -> nn.Module:
    options = {
        **SMALL,
        "qkv_bias": False,
        "num_reg_tokens": 4,
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": False,
        "rope_type": "dinov3",
        "rope_temperature": 100,
        "rope_rotate_half": True,
        "use_fc_norm": False,
        "norm_layer": partial(LayerNorm, eps=1e-5),
        **given,
    }
    return _create_eva("vit_small_patch16_dinov3", pretrained=pretrained, **options)


@register_model
def mini_dinov3_qkvb(pretrained: bool = False, **given: Any) -> nn.Module:
    return mini_dinov3(pretrained, **{"qkv_bias": True, **given})


def randomised(module: nn.Module) -> nn.Module:
    """Every value off its start: no bias is 0, no layer scale tiny, no norm the identity."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def oracle_of(encoder: str) -> nn.Module:
    """Another library's network of the same shape, randomised."""
    common: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    torch.manual_seed(4)
    if "dinov3" in encoder:
        bias = encoder.endswith("qkvb")
        common |= {"intermediate_size": 128, "num_register_tokens": 4, "patch_size": 16}
        return randomised(DINOv3ViTModel(DINOv3ViTConfig(**common, query_bias=bias, value_bias=bias, key_bias=False)))
    common |= {"image_size": 518, "patch_size": 14}
    if "reg4" in encoder:
        return randomised(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**common, num_register_tokens=4)))
    return randomised(Dinov2Model(Dinov2Config(**common)))


def official_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``transformers`` under the names of dinov2_vits14_pretrain.pth and ..._reg4_pretrain.pth."""
    names = {
        r"embeddings\.cls_token": "cls_token",
        r"embeddings\.mask_token": "mask_token",
        r"embeddings\.register_tokens": "register_tokens",
        r"embeddings\.position_embeddings": "pos_embed",
        r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
        r"encoder\.layer\.": "blocks.",
        r"layers\.": "blocks.",
        r"layernorm\.": "norm.",
        r"attention\.(output\.dense|o_proj)": "attn.proj",
        r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    }
    return joined(state, names, r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.")


def official_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of dinov3_vits16_pretrain_*.pth, with what else these hold."""
    names = {
        r"embeddings\.cls_token": "cls_token",
        r"embeddings\.mask_token": "mask_token",
        r"embeddings\.register_tokens": "storage_tokens",
        r"embeddings\.patch_embeddings\.": "patch_embed.proj.",
        r"(model\.)?layer\.": "blocks.",
        r"attention\.o_proj": "attn.proj",
        r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
        r"mlp\.up_proj": "mlp.fc1",
        r"mlp\.down_proj": "mlp.fc2",
    }
    out = joined(state, names, r"attention\.(q_proj|k_proj|v_proj)\.")
    for key in [key for key in out if key.endswith("qkv.bias")]:
        out[key + "_mask"] = torch.ones_like(out[key])
    return out | {"rope_embed.periods": torch.ones(4), "mask_token": torch.zeros(1, 32)}


def joined(state: dict[str, Tensor], names: dict[str, str], attention: str) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for old, value in state.items():
        key = old
        for pattern, new in names.items():
            key = re.sub(r"(?:^|(?<=\.))" + pattern, new, key)
        if found := re.search(attention, key):
            thirds.setdefault(re.sub(attention, "attn.qkv.", key), {})[found[1][0]] = value
        else:
            out[key] = value
    for key, parts in thirds.items():
        missing = torch.zeros_like(parts["q"])  # the keys of DINOv3 have no bias
        out[key] = torch.cat([parts.get(part, missing) for part in "qkv"])
    return out
