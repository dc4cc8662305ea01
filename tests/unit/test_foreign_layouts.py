"""Layouts on files synthesised in the published key layout: recognised, complete, and the same output as the original.

``helpers.published`` restates the originals from their layer tables; the layouts of DeepLab are tested elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import published
from segue.checkpoint import load_model
from segue.convert import Plan, plan, write
from segue.foreign.base import ForeignError, fitting, recognise
from segue.labels import load_space
from segue.models.base import IMAGENET_MEAN, IMAGENET_STD
from segue.models.build import build_model
from segue.models.discriminators import Discriminator

NAMED = ("conv1", "conv2", "conv3", "conv4", "classifier")
NUMBERED = ("0", "2", "4", "6", "8")
# The table of the incremental project: its id of each class, by Cityscapes train id.
CIL_OF_TRAIN_ID = [0, 1, 5, 6, 7, 8, 9, 10, 2, 3, 4, 11, 12, 13, 14, 15, 16, 17, 18]


def module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def erfnet_encoder() -> dict[str, Any]:
    make = published.Maker()
    published.erfnet_encoder(make, "module.features.encoder.", counter=False)
    make.conv("module.classifier.linear", (1000, 128), bias=True)
    return {"epoch": 3, "arch": "erfnet", "state_dict": make.state, "optimizer": {"state": {}, "param_groups": []}}


FILES: dict[str, tuple[str, Any]] = {
    "erfnet_cil": ("model.pth", lambda: published.erfnet(19)),
    "erfnet_official": ("erfnet_pretrained.pth", lambda: module(published.erfnet(20, encoder_head=True))),
    "erfnet_imagenet": ("erfnet_encoder_pretrained.pth.tar", erfnet_encoder),
    "stdc_imagenet": ("STDCNet813M_73.91.tar", lambda: {"state_dict": published.stdc("stdc813")}),
    "bisenet_official": ("model_maxmIOU50.pth", lambda: published.bisenet("stdc813", 19, True, (2, 4, 8, 16))),
    "bisenet_plain": ("ada-best.pth", lambda: published.bisenet("stdc813", 19, False)),
    "discriminator": ("ada-best_disc.pth", lambda: published.discriminator(NAMED, 19)),
    "discriminator_sequential": ("model_D_main.pth", lambda: module(published.discriminator(NUMBERED, 19))),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    for layout, (name, make) in FILES.items():
        torch.save(make(), folder / f"{layout}-{name}")
    return {layout: folder / f"{layout}-{name}" for layout, (name, _) in FILES.items()}


@pytest.fixture(scope="module")
def plans(files: dict[str, Path]) -> dict[str, Plan]:
    return {layout: plan(path) for layout, path in files.items()}


@pytest.mark.parametrize("layout", FILES)
def test_a_published_file_is_recognised_and_complete(layout: str, plans: dict[str, Plan]) -> None:
    found = plans[layout]
    assert found.foreign.layout == layout
    assert found.faults == ()
    assert {row.status for row in found.rows} <= {"matched", "renamed", "dropped"}


def keys_of(layout: str) -> dict[str, Tensor]:
    content = FILES[layout][1]()
    state = content.get("state_dict", content)
    return {key.removeprefix("module."): value for key, value in state.items()}


@pytest.mark.parametrize("layout", FILES)
def test_exactly_one_layout_fits_also_when_a_key_is_gone_or_added(layout: str) -> None:
    state = keys_of(layout)
    for gone in list(state)[:: max(1, len(state) // 40)]:
        assert fitting({k: v for k, v in state.items() if k != gone}) == [layout], gone
    extra = recognise(state | {"novel.weight": torch.ones(1)})
    assert extra.layout == layout
    assert extra.unexpected == ("novel.weight",)
    assert set(extra.renamed) | set(extra.dropped) == set(state)


def image(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(4))


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_incremental_erfnet_in_cityscapes_order(plans: dict[str, Plan], tmp_path: Path) -> None:
    model, labels, info = load_model(write(plans["erfnet_cil"], tmp_path / "new"))
    assert labels.classes == load_space("cityscapes19").classes
    assert info["source"]["outputs"] == CIL_OF_TRAIN_ID
    assert "CC BY-NC" in info["notes"][0]
    theirs = published.erfnet_forward(published.erfnet(19), normalised(image()))
    close(model(image()).logits, theirs[:, CIL_OF_TRAIN_ID])


@torch.no_grad()
@pytest.mark.parametrize("classes", [5, 11])
def test_incremental_erfnet_of_early_tasks_keeps_its_order(classes: int, tmp_path: Path) -> None:
    state = published.erfnet(classes)
    torch.save(state, tmp_path / "model.pth")
    model, labels, _ = load_model(write(plan(tmp_path / "model.pth"), tmp_path / "new"))
    first = ("road", "sidewalk", "vegetation", "terrain", "sky", "building", "wall", "fence", "pole")
    assert labels.classes == (*first, "traffic_light", "traffic_sign")[:classes]
    assert labels.ids[:5] == (7, 8, 21, 22, 23)
    assert labels.colors[4] == (70, 130, 180)
    close(model(image()).logits, published.erfnet_forward(state, normalised(image())))


@torch.no_grad()
def test_official_erfnet_sees_plain_images_and_loses_its_ignore_output(plans: dict[str, Plan], tmp_path: Path) -> None:
    found = plans["erfnet_official"]
    assert set(found.foreign.dropped) == {"encoder.output_conv.weight", "encoder.output_conv.bias"}
    model, labels, info = load_model(write(found, tmp_path / "new"))
    assert labels.name == "cityscapes19"
    assert info["normalisation"] == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert any("output 19" in note for note in info["notes"])
    theirs = published.erfnet_forward(published.erfnet(20, encoder_head=True), image())
    close(model(image()).logits, theirs[:, :19])


def test_official_erfnet_without_prefix_and_encoder_head(tmp_path: Path) -> None:
    torch.save(published.erfnet(20), tmp_path / "w.pth")
    found = plan(tmp_path / "w.pth")
    assert (found.foreign.layout, found.faults, found.foreign.num_classes) == ("erfnet_official", (), 19)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["bisenet_official", "bisenet_plain"])
def test_bisenet_computes_the_same(layout: str, plans: dict[str, Plan], tmp_path: Path) -> None:
    found, inplace = plans[layout], layout == "bisenet_official"
    model, labels, _ = load_model(write(found, tmp_path / "new"))
    assert labels.name == "cityscapes19"
    assert model.config.model_dump()["detail"] == inplace
    theirs = published.bisenet_forward(keys_of(layout), normalised(image()), "stdc813", inplace)
    ours = model.decode(normalised(image()))
    close(ours.logits, theirs["main"])
    model.train()
    for m in model.modules():
        m.training = isinstance(m, type(model))  # heads are made in training, norms must not be
    heads = {head.name: head.logits for head in model.decode(normalised(image())).heads}
    assert set(heads) == set(theirs) - {"main"}
    for name, logits in heads.items():
        close(logits, theirs[name])


def test_the_larger_backbone_is_told_by_its_blocks(tmp_path: Path) -> None:
    torch.save(published.bisenet("stdc1446", 19, True), tmp_path / "w.pth")
    found = plan(tmp_path / "w.pth")
    assert (found.foreign.model, found.faults) == ({"name": "bisenet", "backbone": "stdc1446", "detail": False}, ())
    assert sum(p.numel() for p in found.network.parameters()) == 12_455_712


def test_scales_of_inplace_norms_become_positive(plans: dict[str, Plan]) -> None:
    state, ours = keys_of("bisenet_official"), plans["bisenet_official"].foreign.state
    assert (state["ffm.convblk.bn.weight"] < 0).any()
    torch.testing.assert_close(ours["fusion.mix.norm.weight"], state["ffm.convblk.bn.weight"].abs() + 1e-5)
    torch.testing.assert_close(ours["context.arm16.norm.weight"], state["cp.arm16.bn_atten.weight"].abs() + 1e-5)
    backbone = "features.0.{}.weight"
    assert torch.equal(ours["backbone." + backbone.format("norm")], state["cp.backbone." + backbone.format("bn")])
    plain = plans["bisenet_plain"].foreign.state
    assert torch.equal(plain["fusion.mix.norm.weight"], keys_of("bisenet_plain")["ffm.convblk.bn.weight"])


def test_what_bisenet_files_hold_besides_is_dropped_for_a_reason(plans: dict[str, Plan]) -> None:
    dropped = plans["bisenet_official"].foreign.dropped
    assert "the same tensor" in dropped["cp.backbone.x8.0.2.conv_list.0.conv.weight"]
    assert "ImageNet" in dropped["cp.backbone.linear.weight"]
    assert "boundary" in dropped["conv_out_sp2.conv_out.weight"]
    assert not any(key.startswith("conv_out_sp8") for key in dropped)
    assert len(dropped) == len(keys_of("bisenet_official")) - len(plans["bisenet_official"].foreign.renamed)


@pytest.mark.parametrize("prefix", ["", "cp.backbone."])
def test_a_stage_that_differs_from_its_twin_is_refused(prefix: str) -> None:
    state = published.stdc("stdc813") if not prefix else published.bisenet("stdc813", 19, True)
    state[f"{prefix}x16.0.4.conv_list.1.conv.weight"] = state[f"{prefix}x16.0.4.conv_list.1.conv.weight"] + 1
    with pytest.raises(ForeignError, match=r"x16\.0\.4\.conv_list\.1\.conv\.weight differs from"):
        recognise(state)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["stdc813", "stdc1446"])
def test_stdc_encoder_computes_the_same(backbone: str, tmp_path: Path) -> None:
    state = published.stdc(backbone)
    torch.save({"state_dict": state}, tmp_path / "w.tar")
    file = write(plan(tmp_path / "w.tar"), tmp_path / "encoder.safetensors")
    for weights in (tmp_path / "w.tar", file):  # as published, and converted
        model = build_model({"name": "bisenet", "backbone": backbone, "weights": str(weights)}, 3).eval()
        maps = model.get_submodule("backbone")(normalised(image()))
        for ours, theirs in zip(maps, published.stdc_forward(state, normalised(image()), backbone), strict=True):
            close(ours, theirs)


@torch.no_grad()
def test_erfnet_imagenet_encoder(files: dict[str, Path], plans: dict[str, Plan], tmp_path: Path) -> None:
    file = write(plans["erfnet_imagenet"], tmp_path / "encoder.safetensors")
    make = published.Maker()
    published.erfnet_encoder(make, "module.features.encoder.", counter=False)
    for weights in (files["erfnet_imagenet"], file):
        encoder = build_model({"name": "erfnet", "weights": str(weights)}, 3).get_submodule("encoder").state_dict()
        counted = [key for key in encoder if not key.endswith("num_batches_tracked")]
        assert len(counted) == len(make.state)
        for key, value in make.state.items():
            assert torch.equal(encoder[key.removeprefix("module.features.encoder.")], value)


@torch.no_grad()
@pytest.mark.parametrize(("layout", "names"), [("discriminator", NAMED), ("discriminator_sequential", NUMBERED)])
def test_discriminators(layout: str, names: tuple[str, ...], plans: dict[str, Plan], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = write(plans[layout], tmp_path / "d.safetensors")
    network = Discriminator(19)
    network.load_state_dict(load_file(str(file)))
    x = torch.randn(1, 19, 64, 96, generator=torch.Generator().manual_seed(0))
    close(network(x), published.discriminator_forward(published.discriminator(names, 19), x))


def test_the_discriminator_beside_a_model(tmp_path: Path) -> None:
    discriminator = published.discriminator(NAMED, 19)
    content = {"model_state_dict": published.erfnet(19), "opt_state_dict": {"state": {}, "param_groups": []}}
    torch.save({**content, "model_D": discriminator}, tmp_path / "checkpoint.tar")
    main = plan(tmp_path / "checkpoint.tar")
    assert main.foreign.layout == "erfnet_cil"
    assert "model_D" in main.foreign.notes[0]
    beside = plan(tmp_path / "checkpoint.tar", "discriminator")
    assert beside.foreign.part == "discriminator"
    assert beside.faults == ()
    torch.save({"model_D": discriminator, "optimizer": {}}, tmp_path / "alone.pth")
    assert plan(tmp_path / "alone.pth").foreign.layout == "discriminator"
