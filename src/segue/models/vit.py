"""Plain vision transformers of timm (DINOv2, DINOv3, CLIP, MAE, …) under a light decoder, as VFM-UDA has them.

The tokens of four blocks become maps; ``pyramid`` brings them to strides near 4, 8, 16 and 32 as ViTDet does (Li et
al., ECCV 2022, section 3) and joins them top-down, the decoder of VFM-UDA++ (Englert et al., 2025) without its
adapter; ``linear`` is the probe of DINOv2 (Oquab et al., TMLR 2024, section 7.4). Positional tables are interpolated
by timm (bicubic, antialiased) unless the padded image has their grid: 505 to 518 pixels for DINOv2, ``image_px``
otherwise. Knobs that matter: ``encoder``, ``weights``, and the learning rates, which are lower for lower blocks in the
published training: AdamW 5e-5, weight decay 0.01, ``encoder_lr_factor`` 0.1, ``layer_decay`` 0.9.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.base import MODELS, ModelConfig, Output, ParamGroup, SegModel
from segue.models.blocks import ConvNorm, init_conv
from segue.models.norms import BatchNorm

LEVELS = 4


class ViTConfig(ModelConfig):
    """Settings of ``vit``."""

    encoder: str = "vit_base_patch14_dinov2"
    """Name of a timm vision transformer, such as ``vit_small_patch14_reg4_dinov2``, ``vit_base_patch16_dinov3``."""
    blocks: tuple[int, int, int, int] | None = None
    """Which blocks (counted from 0) give the four maps; unset: the last of each quarter. Later blocks are left out."""
    image_px: int | None = Field(None, ge=32)
    """Side of the square image whose positional grid is stored; unset: as in the weights (518 for DINOv2)."""
    decoder: Literal["pyramid", "linear"] = "pyramid"
    """``pyramid``: four levels, logits at a quarter of the patch's stride. ``linear``: batch norm and a 1x1 convolution
    on the last map, logits at the patch's stride."""
    channels: int = Field(256, ge=8)
    """Width of the pyramid's levels."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Chance that the last block is skipped in training; it rises linearly from 0 at the first."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Channel dropout before the classifier."""
    encoder_lr_factor: float = Field(1.0, gt=0)
    """Learning rate of the encoder's last block, as a multiple of ``optim.lr`` (0.1 in VFM-UDA++)."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor from every block to the one below it, the lowest of all is the patch embedding (0.9 in VFM-UDA++)."""


class Rotary(RotaryEmbeddingDinoV3):
    """timm's rotary embedding of DINOv3, with sides that stay free in an export, where ``float()`` would fix them."""

    def _create_embed(self, feat_shape: list[int], no_aug: bool = False) -> Tensor:
        if not torch.compiler.is_exporting():
            embed: Tensor = super()._create_embed(feat_shape, no_aug)
            return embed
        places = [torch.arange(0.5, side, dtype=torch.float32) + self.grid_offset for side in feat_shape]
        sides: list[Any] = [torch.sym_float(side) for side in feat_shape]
        shares = [place / side for place, side in zip(places, sides, strict=True)]
        grid = 2 * torch.stack(torch.meshgrid(shares, indexing="ij"), -1).flatten(0, 1) - 1
        return torch.cat(self._get_pos_embed_from_coords(grid), -1)


class Levels(nn.Module):
    """Maps of one stride at four: transposed convolutions, identity, pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, 2, bias=False),
            BatchNorm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
        self.fine = nn.ConvTranspose2d(channels, half, 2, 2)
        self.channels = (quarter, half, channels, channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Four (N,D,h,w) to (N,D/4,4h,4w), (N,D/2,2h,2w), (N,D,h,w) and (N,D,ceil(h/2),ceil(w/2))."""
        a, b, c, d = maps
        even = F.pad(d, (0, d.shape[-1] % 2, 0, d.shape[-2] % 2), mode="replicate")
        return self.finest(a), self.fine(b), c, F.max_pool2d(even, 2)


class Pyramid(nn.Module):
    """Levels read from coarse to fine: add the 1x1 convolution of the finer one, smooth by a 3x3 one, norm, ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.levels = Levels(channels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in self.levels.channels)
        self.smooth = nn.ModuleList(ConvNorm(width, width) for _ in self.levels.channels[:-1])
        init_conv(self, 0.0, "fan_out")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four (N,D,h,w) to (N,width,4h,4w)."""
        levels = self.levels(maps)
        x: Tensor = self.laterals[-1](levels[-1])
        for level, lateral, smooth in reversed(list(zip(levels[:-1], self.laterals[:-1], self.smooth, strict=True))):
            height, width = level.shape[-2:]
            # Doubled and cut, not resized: a side that was rounded up keeps its places.
            x = smooth(lateral(level) + F.interpolate(x, scale_factor=2, mode="bilinear")[..., :height, :width])
        return x


class Probe(nn.Module):
    """Batch norm of the last map: all that stands before the classifier in DINOv2's linear evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N,D,h,w) to (N,D,h,w)."""
        out: Tensor = self.norm(maps[-1])
        return out


@MODELS.register("vit")
class ViT(SegModel):
    """A plain vision transformer with a light decoder."""

    Config = ViTConfig
    config: ViTConfig
    encoder_prefix = "encoder."

    def __init__(self, config: ViTConfig, num_classes: int) -> None:
        encoder, self.depth = create_vit(config)
        super().__init__(config, num_classes, encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"])
        self.blocks = _chosen(config, self.depth)
        self.encoder = encoder
        self.multiple = _stride(encoder)
        width: int = encoder.embed_dim
        pyramid = config.decoder == "pyramid"
        self.decoder = Pyramid(width, config.channels) if pyramid else Probe(width)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels if pyramid else width, num_classes, 1)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """timm's own network for tests (6 blocks of 64 channels) under a narrow pyramid."""
        return {"encoder": "test_vit", "channels": 16}

    def decode(self, x: Tensor) -> Output:
        """See :class:`SegModel`; stages are the normalised tokens of the four blocks, all at the patch's stride."""
        stages = _maps(self.encoder, x, self.blocks)
        embedding = self.decoder(stages)
        return Output(self.classifier(self.dropout(embedding)), embedding, stages)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """See :class:`SegModel`; timm's own ``forward`` ends in a pooled vector."""
        return _maps(self.encoder, self._prepared(image), self.blocks)

    def classifiers(self) -> dict[str, nn.Module]:
        """The only classifier."""
        return {"classifier": self.classifier}

    def imagenet_state(self) -> dict[str, Tensor]:
        """timm's weights of that name, whatever they were trained on; downloads unless they are cached."""
        state: dict[str, Tensor] = create_vit(self.config, pretrained=True)[0].state_dict()
        return state

    def encoder_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights in the layout of DINOv2, DINOv3 or timm under our names, at our positional grid, by timm's rules.

        Blocks that ``blocks`` leaves out are dropped. ``UserError`` when timm cannot read them.
        """
        state = converted(self.encoder, self.config.encoder, state)
        unused = tuple(f"blocks.{index}." for index in range(self.blocks[-1] + 1, self.depth))
        return {key: value for key, value in state.items() if not key.startswith(unused)}

    def param_groups(self) -> list[ParamGroup]:
        """As for every model; the encoder's are split by block when ``layer_decay`` is not 1."""
        factor, decay = self.config.encoder_lr_factor, self.config.layer_decay
        names = {id(p): n.removeprefix(self.encoder_prefix) for n, p in self.named_parameters()}
        out: list[ParamGroup] = []
        for group in super().param_groups():
            if not group.name.startswith("encoder"):
                out.append(group)
            elif decay == 1:
                out.append(replace(group, lr_factor=factor))
            else:
                out.extend(_layers(group, names, len(self.encoder.blocks), factor, decay))
        return out


def create_vit(config: ViTConfig, pretrained: bool = False) -> tuple[Any, int]:
    """timm's network for images of any size, without blocks that are not needed, and how many it had with them.

    ``UserError`` when timm has none of that name, or one that is no plain transformer.
    """
    name = config.encoder
    way_out = "choose a plain vision transformer for model.encoder (timm.list_models('vit_*') lists them)"
    if not timm.is_model(name):
        raise UserError(f"model.encoder: timm {timm.__version__} has no model {name!r}; {way_out}")
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": config.drop_path}
    if config.image_px is not None:
        options["img_size"] = config.image_px
    try:
        encoder: Any = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:  # how timm's other families refuse an option
        raise UserError(f"model.encoder {name!r} is no plain vision transformer ({error}); {way_out}") from error
    if not hasattr(encoder, "forward_intermediates") or not hasattr(encoder, "blocks"):
        raise UserError(f"model.encoder {name!r} is no plain vision transformer; {way_out}")
    depth = len(encoder.blocks)
    blocks = _chosen(config, depth)
    if config.image_px is not None and config.image_px % _stride(encoder):
        raise UserError(f"model.image_px {config.image_px} must be a multiple of {_stride(encoder)}, {name!r}'s patch")
    encoder.prune_intermediate_layers(list(blocks))
    rope = getattr(encoder, "rope", None)
    if type(rope) is RotaryEmbeddingDinoV3 and (rope.normalize_coords, rope.grid_indexing) == ("separate", "ij"):
        rope.__class__ = Rotary
    _probe(encoder, name, blocks, way_out)
    return encoder, depth


def converted(encoder: nn.Module, name: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights under the names of timm's ``encoder`` and at its positional grid; ``UserError`` when they cannot be.

    What timm has no rule for stays as it is.
    """
    convert = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    own = encoder.state_dict()
    given = dict(state)
    if "storage_tokens" in given and not any(key.endswith("q_bias") for key in own):
        for key in [key for key in given if key.endswith("qkv.bias")]:
            query, _, value = given.pop(key).chunk(3)  # the keys' part is masked in DINOv3
            if query.any() or value.any():
                raise UserError(
                    f"model.weights: {key} is not zero and {name!r} has no such bias: add _qkvb to its name"
                )
    try:
        out: dict[str, Tensor] = convert(given, encoder)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"model.weights: timm cannot bring these weights to {name!r} ({first}): "
            f"choose the model.encoder that they are of"
        ) from error
    return out


def _maps(encoder: Any, x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
    """(N,3,H,W) to the normalised patch tokens of the chosen blocks, each (N,D,h,w), channels last in memory."""
    stride = _stride(encoder)
    shape = (x.shape[-2] // stride, x.shape[-1] // stride)
    tokens = encoder.forward_intermediates(
        x, indices=list(blocks), norm=True, output_fmt="NLC", intermediates_only=True
    )
    # Contiguous: what is left beside class and register tokens is not.
    return tuple(t.unflatten(1, shape).contiguous().permute(0, 3, 1, 2) for t in tokens)


def _stride(encoder: Any) -> int:
    found: int = encoder.feature_info[0]["reduction"]
    return found


def _chosen(config: ViTConfig, depth: int) -> tuple[int, ...]:
    blocks = config.blocks or tuple(-(-depth * k // LEVELS) - 1 for k in range(1, LEVELS + 1))
    if list(blocks) != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < depth:
        raise UserError(
            f"model.blocks {list(blocks)} must be {LEVELS} rising numbers from 0 to {depth - 1}: "
            f"{config.encoder!r} has {depth} blocks"
        )
    return blocks


@torch.no_grad()
def _probe(encoder: Any, name: str, blocks: Sequence[int], way_out: str) -> None:
    stride = _stride(encoder)
    wanted = [(1, encoder.embed_dim, 2, 3)] * LEVELS
    try:
        found = [tuple(m.shape) for m in _maps(encoder.eval(), torch.zeros(1, 3, 2 * stride, 3 * stride), blocks)]
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"model.encoder {name!r} cannot take images of any size ({error}); {way_out}") from error
    encoder.train()
    if found != wanted:
        raise UserError(f"model.encoder {name!r} returns maps of shape {found}, not {wanted}; {way_out}")


def _layers(group: ParamGroup, names: Mapping[int, str], depth: int, factor: float, decay: float) -> list[ParamGroup]:
    """One group a layer: 0 is all before the blocks, ``depth`` the last block and the norm after it."""
    layers: dict[int, list[nn.Parameter]] = {}
    for parameter in group.params:
        name = names[id(parameter)]
        found = re.match(r"blocks\.(\d+)\.", name)
        layer = int(found[1]) + 1 if found else depth if name.startswith("norm.") else 0
        layers.setdefault(layer, []).append(parameter)
    return [
        replace(group, name=f"{group.name}_layer{layer}", params=params, lr_factor=factor * decay ** (depth - layer))
        for layer, params in sorted(layers.items())
    ]
