"""HRDA around every kind of network: what it takes over from the base, its settings, its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.wrapped import CLASSES, image, make, register
from segue import checkpoint
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.levels import level_logits
from segue.models.base import MODELS
from segue.models.build import build_model
from segue.models.hrda import HRDA
from segue.ops.losses import segmentation

SPACE = LabelSpace("three", ("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), (0, 1, 2))
BASES: dict[str, dict[str, Any]] = {
    "deeplabv2": {},
    "deeplabv2 at 32": {"name": "deeplabv2", "output_stride": 32},
    "deeplabv3plus": {},
    "segformer": {},
    "bisenet": {"detail": True},
    "erfnet": {},
    "vit": {"layer_decay": 0.5},
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def tiny(name: str) -> dict[str, Any]:
    given = {"name": name, **BASES.get(name, {})}
    return {**MODELS.get(given["name"]).tiny(), **given}


@pytest.mark.parametrize("name", BASES)
def test_any_base(name: str) -> None:
    model = make(tiny(name), head_lr_factor=3.0).train()
    assert model.encoder_prefix == f"base.{model.base.encoder_prefix}"
    picture = image(2, 3, 90, 140)
    output = model(picture)
    own = model.base.train().decode(torch.zeros(2, 3, 64, 64))
    assert {h.name for h in output.heads} == {"window", *(h.name for h in own.heads)}
    stride = 64 // own.logits.shape[-1]
    assert output.logits.shape[-2:] == tuple(side // stride for side in output.padded)
    assert all(output.upsample(h.logits).shape[-2:] == (90, 140) for h in output.heads if h.window is None)
    levels = {h.name for h in own.heads if h.target == "classes"} | {"main"}
    assert set(level_logits(output, levels)) == levels
    label = torch.zeros(2, 90, 140, dtype=torch.int64)
    segmentation(output, label, pixel=label == 0, denominator="pixels").backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    groups = {group.name: group for group in model.param_groups()}
    assert set(groups) == {group.name for group in model.base.param_groups()} and len(groups) >= 4
    attention = {id(p) for p in model.attention.parameters()}
    assert attention <= {id(p) for name in ("head", "head_no_decay") for p in groups[name].params}
    assert sum(len(group.params) for group in groups.values()) == len(list(model.parameters()))
    assert {group.lr_factor for group in groups.values() if group.name.startswith("head")} == {3.0}
    model.eval()
    with torch.no_grad():
        found = model(picture)
        for a, b in zip(model.features(picture), found.stages, strict=True):
            torch.testing.assert_close(a, b)
        assert found.logits.shape == output.logits.shape
        assert found.heads == ()


@pytest.mark.parametrize("name", ["bisenet", "deeplabv2"])
def test_what_serves_training_only_is_the_bases(name: str) -> None:
    model = make(tiny(name)).eval()
    model.grow_head(2, "background")
    small = model.deployed()
    assert len(small.state_dict()) < len(model.state_dict())
    assert set(small.layout()) - set(model.layout()) == {"base"}
    torch.manual_seed(9)
    twin = build_model(model.config, CLASSES + 2, small.layout()).eval()
    twin.load_state_dict(small.state_dict())
    with torch.no_grad():
        picture = image(1, 3, 64, 96)
        assert torch.equal(twin(picture).logits, model(picture).logits)


def test_published_settings() -> None:
    config = HRDA.Config.model_validate({"name": "hrda"}).model_dump()
    assert config["base"]["name"] == "daformer" and config["base"]["variant"] == "b5"
    assert (config["context_scale"], config["window_px"], config["window_step"]) == (0.5, (512, 512), 0.5)
    assert (config["detail_weight"], config["attention"], config["attention_channels"]) == (0.1, "classwise", 256)
    model = build_model({"name": "hrda", "base": {"name": "daformer", "variant": "b0"}}, 19)
    attention = {k: v.shape for k, v in model.state_dict().items() if k.startswith("attention.")}
    assert attention["attention.decoder.embed.levels.3.weight"] == (256, 256)
    assert attention["attention.decoder.fuse.conv.weight"] == (256, 1024, 1, 1)
    assert attention["attention.classifier.weight"] == (19, 256, 1, 1)
    assert {k.split(".")[1] for k in model.state_dict() if k.startswith("base.")} == {
        "encoder",
        "decoder",
        "classifier",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": {"name": "hrda"}}, "cannot wrap itself"),
        ({"base": {"name": "cels"}}, "did you mean 'cells'"),
        ({"base": {}}, "model.base needs a name"),
        ({"base": {"name": "erfnet", "dropout_dep": 1}}, "unknown key 'model.base.dropout_dep'"),
        ({"base": {"name": "cells", "weights": "imagenet"}}, "set model.weights"),
        ({"base": {"name": "bare"}}, "gives no encoder maps"),
        ({"context_scale": 0.6}, "whole number"),
        ({"window_px": (500, 512)}, "use \\[496, 512\\]"),
        ({"window_px": (0, 64)}, "use \\[16, 64\\]"),
        ({"base": {"name": "deeplabv2", "encoder": "resnet50", "encoder_style": "caffe"}}, "encoder_style to timm"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**{"base": {"name": "cells"}, **settings})


def test_weights_of_the_base_alone_and_of_another_wrapper(tmp_path: Path) -> None:
    torch.manual_seed(3)
    alone = build_model(tiny("segformer"), CLASSES)
    alone.mean.fill_(0.3)
    wrapped = make(tiny("segformer"))
    nn.init.normal_(wrapped.base.encoder.stages[0].patches.conv.weight)
    for name, donor in (("alone", alone), ("wrapped", wrapped)):
        (tmp_path / name).mkdir()
        checkpoint.save_model(tmp_path / name, donor, SPACE, {})
        state = donor.get_submodule(donor.encoder_prefix[:-1]).state_dict()
        save_file(dict(state), str(tmp_path / f"{name}.safetensors"))
        for file in (f"{name}/model.safetensors", f"{name}.safetensors"):
            for model in (
                make(tiny("segformer"), weights=str(tmp_path / file)),
                build_model({**tiny("segformer"), "weights": str(tmp_path / file)}, CLASSES),
            ):
                found = model.get_submodule(model.encoder_prefix[:-1]).state_dict()
                assert all(torch.equal(found[k], v) for k, v in state.items())
                if "/" in file:
                    assert torch.equal(model.mean, donor.mean)


@pytest.mark.parametrize("name", ["bisenet", "deeplabv2"])
def test_a_stored_network_needs_its_folder_alone(name: str, tmp_path: Path) -> None:
    model = make(tiny(name), norm="frozen", head_lr_factor=10.0)
    model.add_unknown()
    model = model.deployed()
    checkpoint.save_model(tmp_path, model, SPACE, {})
    found, labels, info = checkpoint.load_model(tmp_path)
    assert labels == SPACE and info["model"]["base"]["name"] == name
    with torch.no_grad():
        assert torch.equal(found(image(1, 3, 64, 96)).logits, model(image(1, 3, 64, 96)).logits)


def test_imagenet_weights_are_the_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    donor = build_model(tiny("deeplabv2"), CLASSES)
    monkeypatch.setattr(type(donor), "imagenet_state", lambda self: donor.encoder.state_dict())
    model = make(tiny("deeplabv2"), weights="imagenet")
    assert torch.equal(model.base.encoder.conv_stem.weight, donor.encoder.conv_stem.weight)
    with pytest.raises(UserError, match="no library has ImageNet weights for model 'cells'"):
        make(weights="imagenet")


def test_normalisation_happens_once() -> None:
    model = make().eval()
    state = model.state_dict()
    assert "mean" in state and "base.mean" not in state
    twin = copy.deepcopy(model)
    twin.mean.add_(0.1)
    with torch.no_grad():
        torch.testing.assert_close(twin(image(1, 3, 64, 64) + 0.1).logits, model(image(1, 3, 64, 64)).logits)
