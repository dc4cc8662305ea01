"""Plain vision transformers: grids, published weight files against ``transformers``, levels, rates, refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.dino import official_dinov2, official_dinov3, oracle_of, randomised
from segue.errors import UserError
from segue.export import Export, export
from segue.export.session import open_session
from segue.labels import LabelSpace
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.models.vit import Pyramid
from segue.models.weights import WeightsError


def make(encoder: str = "mini_dinov2", **settings: Any) -> SegModel:
    torch.manual_seed(0)
    return build_model({"name": "vit", "encoder": encoder, "channels": 8, **settings}, 5)


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def resized(table: Tensor, old: int, new: tuple[int, int]) -> Tensor:
    grid = table.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    return F.interpolate(grid, new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "size", "side", "grid"),
    [
        ({}, (518, 518), 37, (37, 37)),
        ({}, (512, 512), 37, (37, 37)),
        ({}, (505, 70), 37, (37, 5)),
        ({"encoder": "mini_dinov2_reg4"}, (512, 512), 37, (37, 37)),
        ({"encoder": "mini_dinov2_reg4"}, (70, 98), 37, (5, 7)),
        ({"encoder": "test_vit", "image_px": 512}, (512, 512), 32, (32, 32)),
        ({"encoder": "test_vit", "image_px": 512}, (512, 256), 32, (32, 16)),
        ({"encoder": "test_vit"}, (160, 145), 10, (10, 10)),
    ],
)
def test_positions_are_kept_at_their_own_grid(
    settings: dict[str, Any], size: tuple[int, int], side: int, grid: tuple[int, int]
) -> None:
    model = make(**settings).eval()
    encoder = model.get_submodule("encoder")
    encoder.patch_embed.proj.weight.zero_()  # type: ignore[union-attr, operator]
    encoder.patch_embed.proj.bias.zero_()  # type: ignore[union-attr, operator]
    seen: list[Tensor] = []
    encoder.norm_pre.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # type: ignore[union-attr]
    model(image(1, 3, *size))
    table = encoder.pos_embed[:, -side * side :]  # type: ignore[index]
    wanted = table if grid == (side, side) else resized(table, side, grid)
    patches = seen[0][:, -grid[0] * grid[1] :]
    assert table.shape[1] == side * side
    assert torch.equal(patches, wanted) if grid == (side, side) else torch.allclose(patches, wanted, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder", "size"),
    [
        ("mini_dinov2", (518, 518)),
        ("mini_dinov2_reg4", (518, 518)),
        ("mini_dinov3", (64, 112)),
        ("mini_dinov3", (112, 64)),
        ("mini_dinov3_qkvb", (80, 64)),
    ],
)
def test_published_files_compute_what_the_oracle_computes(encoder: str, size: tuple[int, int], tmp_path: Path) -> None:
    oracle = oracle_of(encoder)
    rename = official_dinov3 if "dinov3" in encoder else official_dinov2
    torch.save(rename(oracle.state_dict()), tmp_path / "w.pth")
    model = make(encoder, weights=str(tmp_path / "w.pth")).eval()
    picture = image(2, 3, *size)
    tokens = oracle((picture - model.mean) / model.std).last_hidden_state
    patch = model.multiple
    grid = (size[0] // patch, size[1] // patch)
    expected = tokens[:, -grid[0] * grid[1] :].unflatten(1, grid).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.features(picture)[-1], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(picture).stages[-1], model.features(picture)[-1])


def timm_state(encoder: str, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    state: dict[str, Tensor] = timm.create_model(encoder, num_classes=0, **options).state_dict()
    return state


@pytest.mark.parametrize("whole", [False, True])
def test_a_table_of_another_grid_is_resampled(whole: bool, tmp_path: Path) -> None:
    state = timm_state("test_vit")
    held = {f"encoder.{k}": v for k, v in state.items()} | {"classifier.weight": torch.zeros(1)} if whole else state
    torch.save(held, tmp_path / "w.pth")
    own = make("test_vit", image_px=96, weights=str(tmp_path / "w.pth")).get_submodule("encoder").state_dict()
    table = state["pos_embed"]
    wanted = torch.cat([table[:, :1], resized(table[:, 1:], 10, (6, 6))], 1)
    torch.testing.assert_close(own["pos_embed"], wanted)
    assert all(torch.equal(own[key], state[key]) for key in state if key != "pos_embed")


def test_a_file_fits_below_a_wrapper_too(tmp_path: Path) -> None:
    torch.save(timm_state("test_vit"), tmp_path / "w.pth")
    base = {"name": "vit", "encoder": "test_vit", "image_px": 96, "channels": 8}
    settings = {"name": "hrda", "base": base, "window_px": [64, 64], "weights": str(tmp_path / "w.pth")}
    own = build_model(settings, 5).get_submodule("base.encoder").state_dict()
    assert torch.equal(own["blocks.3.mlp.fc1.weight"], timm_state("test_vit")["blocks.3.mlp.fc1.weight"])
    assert own["pos_embed"].shape == (1, 37, 64)


def damaged(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    return {k: v for k, v in (state | changes).items() if v is not None}


DAMAGES: dict[str, tuple[str, dict[str, Tensor], str]] = {
    "other width": ("mini_dinov2", timm_state("test_vit"), "does not fit the encoder"),
    "deeper": ("mini_dinov2", timm_state("mini_dinov2", depth=5), "unexpected: blocks.4"),
    "lacks a layer": (
        "mini_dinov2",
        damaged(timm_state("mini_dinov2"), **{"norm.weight": None}),
        "missing: norm.weight",
    ),
    "no grid": ("mini_dinov2", damaged(timm_state("mini_dinov2"), pos_embed=torch.zeros(1, 8, 32)), "cannot bring"),
    "bias that is not there": (
        "mini_dinov3",
        damaged(
            timm_state("mini_dinov3"),
            storage_tokens=torch.zeros(1, 4, 32),
            **{"blocks.0.attn.qkv.bias": torch.arange(96.0)},
        ),
        "mini_dinov3.*add _qkvb",
    ),
    "DINOv2 for DINOv3": ("mini_dinov3", timm_state("mini_dinov2"), "does not fit the encoder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_refused(damage: str, tmp_path: Path) -> None:
    encoder, state, message = DAMAGES[damage]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        make(encoder, weights=str(tmp_path / "w.pth"))


def test_timm_weights_are_taken_at_the_wanted_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    asked: list[dict[str, Any]] = []

    def cached(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append({"pretrained": pretrained, **options})
        if pretrained:
            torch.manual_seed(7)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", cached)
    own = make("test_vit", weights="imagenet", image_px=96, blocks=(0, 1, 2, 3)).get_submodule("encoder").state_dict()
    torch.manual_seed(7)
    theirs = create("test_vit", num_classes=0, img_size=96).state_dict()
    assert [a["pretrained"] for a in asked] == [False, True]
    assert all(torch.equal(value, theirs[key]) for key, value in own.items())
    assert own["pos_embed"].shape == (1, 37, 64)


def test_weights_that_cannot_be_had_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.models.weights._hub_answers", lambda: False)
    with pytest.raises(WeightsError, match=r"ImageNet weights of 'mini_dinov3' could not be had"):
        make("mini_dinov3", weights="imagenet")


@torch.no_grad()
def test_stages_are_the_normalised_tokens_of_the_chosen_blocks(tmp_path: Path) -> None:
    torch.save(timm_state("test_vit"), tmp_path / "w.pth")
    assert [len(make("test_vit").get_submodule("encoder.blocks")), len(make().get_submodule("encoder.blocks"))] == [
        6,
        4,
    ]
    model = make("test_vit", blocks=(0, 2, 3, 4), weights=str(tmp_path / "w.pth")).eval()
    encoder = model.get_submodule("encoder")
    assert len(encoder.blocks) == 5  # type: ignore[arg-type]
    assert torch.equal(encoder.blocks[4].mlp.fc1.weight, timm_state("test_vit")["blocks.4.mlp.fc1.weight"])  # type: ignore
    seen: list[Tensor] = []
    for block in encoder.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    stages = model(image(1, 3, 48, 80)).stages
    for stage, block in zip(stages, (0, 2, 3, 4), strict=True):
        wanted = F.layer_norm(seen[block], (64,), encoder.norm.weight, encoder.norm.bias, 1e-6)  # type: ignore
        torch.testing.assert_close(stage, wanted[:, 1:].unflatten(1, (3, 5)).permute(0, 3, 1, 2))


def test_default_blocks_are_the_last_of_each_quarter() -> None:
    found = {encoder: getattr(make(encoder), "blocks", None) for encoder in ("mini_dinov2", "test_vit")}
    assert found == {"mini_dinov2": (0, 1, 2, 3), "test_vit": (1, 2, 4, 5)}


@torch.no_grad()
@pytest.mark.parametrize(("decoder", "sides"), [("pyramid", (36, 28)), ("linear", (9, 7))])
def test_logits_have_the_stride_of_the_decoder(decoder: str, sides: tuple[int, int]) -> None:
    output = make(decoder=decoder).eval()(image(1, 3, 120, 98))
    assert output.padded == (126, 98)
    assert output.logits.shape[-2:] == output.embedding.shape[-2:] == sides
    assert [tuple(s.shape[1:]) for s in output.stages] == [(32, 9, 7)] * 4


@torch.no_grad()
def test_odd_grids_keep_their_places() -> None:
    """A side that is one token longer by repetition changes nothing far from that side."""
    torch.manual_seed(0)
    pyramid = randomised(Pyramid(16, 8))
    odd = [torch.randn(1, 16, 15, 13) for _ in range(4)]
    even = [F.pad(m, (0, 1, 0, 1), mode="replicate") for m in odd]
    a, b = pyramid(odd), pyramid(even)
    assert (a.shape, b.shape) == ((1, 8, 60, 52), (1, 8, 64, 56))
    torch.testing.assert_close(a[..., :44, :36], b[..., :44, :36])
    assert [m.shape[-2:] for m in pyramid.levels(odd)] == [(60, 52), (30, 26), (15, 13), (8, 7)]


def test_linear_is_linear_in_the_last_map() -> None:
    model = make(decoder="linear").eval()
    maps = [torch.randn(1, 32, 3, 4) for _ in range(4)]
    first, second = (model.get_submodule("decoder")([*maps[:3], m]) for m in (maps[3], 3 * maps[3]))
    zero = model.get_submodule("decoder")([*maps[:3], 0 * maps[3]])
    torch.testing.assert_close(second - zero, 3 * (first - zero))


def test_learning_rates_fall_from_the_top_block_to_the_stem() -> None:
    """VFM-UDA++: a tenth of the head's for the last block, 0.9 of that for each block below."""
    model = make("test_vit", encoder_lr_factor=0.1, layer_decay=0.9)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g.lr_factor, g.decay) for g in model.param_groups() for p in g.params}
    assert set(found) == set(names.values())
    for name, parameter in model.named_parameters():
        factor = 1.0
        if name.startswith("encoder.blocks."):
            factor = 0.1 * 0.9 ** (5 - int(name.split(".")[2]))
        elif name.startswith("encoder.norm."):
            factor = 0.1
        elif name.startswith("encoder."):
            assert re.match(r"encoder\.(cls_token|pos_embed|patch_embed\.)", name)
            factor = 0.1 * 0.9**6
        assert found[name] == (pytest.approx(factor, rel=1e-12), parameter.ndim > 1)
    assert len({g.name for g in model.param_groups()}) == len(model.param_groups())
    assert all(re.search("^encoder", g.name) for g in model.param_groups() if g.lr_factor < 1)


def test_learning_rates_without_decay_need_no_further_groups() -> None:
    factors = {g.name: g.lr_factor for g in make("test_vit", encoder_lr_factor=0.1, head_lr_factor=3).param_groups()}
    assert factors == {"encoder": 0.1, "encoder_no_decay": 0.1, "head": 3, "head_no_decay": 3}


def test_stochastic_depth_rises_to_its_rate() -> None:
    blocks = make("test_vit", drop_path=0.2).get_submodule("encoder.blocks")
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2])


def test_normalisation_is_that_of_the_weights() -> None:
    model = make("mini_dinov3")
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "vit_of_nobody"}, "has no model 'vit_of_nobody'"),
        ({"encoder": "resnet18"}, "no plain vision transformer"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "no plain vision transformer"),
        ({"image_px": 512}, "image_px 512 must be a multiple of 14"),
        ({"blocks": (0, 1, 2, 4)}, r"from 0 to 3: 'mini_dinov2' has 4 blocks"),
        ({"blocks": (0, 2, 1, 3)}, "rising"),
        ({"blocks": (-1, 0, 1, 2)}, "rising"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)


@pytest.mark.slow
def test_exported_rotary_positions_follow_the_size(tmp_path: Path) -> None:
    """The layer scale is large here: attention, and with it every wrong position, shows."""
    model = randomised(make("mini_dinov3"))
    assert isinstance(model, SegModel)
    labels = LabelSpace("five", tuple("abcde"), tuple((i, i, i) for i in range(5)), tuple(range(5)))
    export(model, labels, tmp_path / "m.onnx", Export(size=(70, 90)))
    session = open_session(tmp_path / "m.onnx")
    for size in [(32, 32), (129, 40), (64, 250)]:
        picture = image(3, 3, *size)
        with torch.no_grad():
            output = model(picture)
            wanted = output.upsample(output.logits)
        (logits,) = session.run(["logits"], {"image": picture.numpy()})
        assert (torch.from_numpy(logits) - wanted).abs().max() < 1e-5 * wanted.abs().max()
