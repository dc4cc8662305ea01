"""Whole ``checkpoint0X.tar`` files of D2ADA: network, optimiser and discriminator in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import refused, segue
from helpers.deeplab_files import File, State
from segue.checkpoint import load_model
from segue.convert import plan
from segue.foreign.files import read_foreign, read_tables
from segue.models.build import build_model
from segue.models.discriminators import Discriminator

R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
ENCODERS = {"resnet50": "resnet50", "resnet101": "resnet101", "mobilenet": "mobilenetv2_100"}
NAMES = [
    "deeplabv2_resnet101", "deeplabv2_mobilenet",
    "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet",
    "deeplabv3plus_resnet50", "deeplabv3plus_resnet101", "deeplabv3plus_mobilenet",
]  # fmt: skip
"""Every choice of ``--model`` in that code."""


def network(name: str, values: bool = False, separable: bool = False) -> State:
    """``model_state_dict`` of a network."""
    file, (head, _, backbone) = File(values), name.partition("_")
    if backbone == "mobilenet":
        file.mobilenet()
    else:
        file.resnet(R50 if backbone == "resnet50" else R101, "backbone.")
    channels, low = (320, 24) if backbone == "mobilenet" else (2048, 256)
    if head == "deeplabv2":
        file.region_head(channels, 19)
    else:
        file.v3_head(channels, low if head == "deeplabv3plus" else None, 19, final=True, separable=separable)
    return file.state


def discriminator() -> State:
    return Discriminator(19).state_dict()


def stored(path: Path, state: State, *, warmup: bool = False, legacy: bool = False) -> Path:
    """The file as ``save_checkpoint`` writes it, with momentum that is shaped like weights."""
    first = list(state)[:3]
    optimiser = {
        "state": {n: {"momentum_buffer": torch.zeros(state[key].shape)} for n, key in enumerate(first)},
        "param_groups": [{"lr": 2.5e-4, "params": list(range(len(first)))}],
    }
    content = {"model_state_dict": state, "opt_state_dict": optimiser}
    if warmup:
        content["model_D"] = discriminator()
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_every_network_has_a_place(name: str, separable: bool, tmp_path: Path) -> None:
    head, _, backbone = name.partition("_")
    if separable and head == "deeplabv2":
        return
    foreign = read_foreign(stored(tmp_path / "checkpoint01.tar", network(name, separable=separable)))
    assert foreign.layout == "d2ada" and foreign.unexpected == () and not foreign.dropped
    assert (foreign.model["name"], foreign.model["encoder"]) == (head, ENCODERS[backbone])
    assert foreign.classes is not None and foreign.classes[18] == "bicycle"
    assert any("batch norms were never trained" in note for note in foreign.notes)
    with torch.device("meta"):
        model = build_model(foreign.model, 19)
    own = {n: t.shape for n, t in model.state_dict().items() if n not in ("mean", "std")}
    assert own == {n: t.shape for n, t in foreign.state.items()}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_optimiser_is_no_weights_and_the_discriminator_is_told(legacy: bool, tmp_path: Path) -> None:
    path = stored(tmp_path / "checkpoint.tar", network("deeplabv2_mobilenet"), warmup=True, legacy=legacy)
    assert list(read_tables(path)) == ["model_state_dict", "model_D"]
    foreign = read_foreign(path)
    assert foreign.part == "model" and "model_D; --layout chooses" in foreign.notes[0]
    found = read_foreign(path, "discriminator")
    assert found.part == "discriminator" and found.num_classes == 19
    assert plan(path).faults == plan(path, "discriminator").faults == ()


def test_convert_makes_a_start_and_a_discriminator(tmp_path: Path) -> None:
    path = stored(tmp_path / "checkpoint00.tar", network("deeplabv3plus_mobilenet", values=True), warmup=True)
    done = segue("convert", path, tmp_path / "warmup")
    assert done.code == 0, done.err
    assert "norm: frozen" in done.out and "output stride" in done.out
    model, labels, _ = load_model(tmp_path / "warmup")
    assert labels.name == "cityscapes19" and type(model).__name__ == "DeepLabV3Plus"
    given = torch.load(path, weights_only=True)
    assert torch.equal(model.state_dict()["classifier.weight"], given["model_state_dict"]["classifier.final.weight"])
    done = segue("convert", path, tmp_path / "D.safetensors", "--layout", "discriminator")
    assert done.code == 0, done.err
    assert all(
        torch.equal(tensor, given["model_D"][name]) for name, tensor in load_file(tmp_path / "D.safetensors").items()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("classifier.final.bias"), ("missing", "classifier.bias")),
        (lambda s: s.update({"classifier.aspp.convs.9.0.weight": torch.zeros(1)}), ("unexpected", "convs.9")),
        (lambda s: s.clear(), ("holds no state dict",)),
    ],
)
def test_damaged_files_are_refused(change: Callable[[State], object], words: tuple[str, ...], tmp_path: Path) -> None:
    state = network("deeplabv2_mobilenet")
    path = stored(tmp_path / "checkpoint01.tar", state)
    change(state)
    torch.save({"model_state_dict": state, "opt_state_dict": {"state": {}, "param_groups": []}}, path)
    refused(segue("convert", path, tmp_path / "new"), str(path), *words)
    assert not (tmp_path / "new").exists()
