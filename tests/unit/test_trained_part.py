"""What is trained moves and nothing else does, norm statistics included; when a part begins to train is exact."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.memory import SPACE
from segue.config import OptimConfig, TrainConfig
from segue.engine import Place, fit
from segue.errors import UserError
from segue.methods.base import METHODS
from segue.models.base import MODELS, SegModel
from segue.models.build import build_model
from segue.models.trained import BATCH_NORM
from unit.test_engine import Memory

TINY = {"name": "bisenet", "width": 0.125}
R101 = {"name": "deeplabv3plus", "encoder": "resnet101"}
HEAD = "^(aspp|decoder|classifier)"
SELECTED = r"^encoder\.(layer1\.[0-2]|layer2\.0|layer3\.[12])\."


def make(**settings: Any) -> SegModel:
    torch.manual_seed(0)
    return build_model({**TINY, **settings}, 7)


def names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def norms(model: nn.Module, training: bool) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, BATCH_NORM) and m.training == training}


def train(
    model: SegModel, folder: Path, iterations: int = 3, until: int | None = None, resume: bool = False, **optim: Any
) -> Mapping[str, Tensor]:
    cls = METHODS.get("supervised")
    method = cls(cls.Config(name="supervised"), model, SPACE, {})
    settings = TrainConfig(iterations=iterations, log_every=1, checkpoint_every=1)
    place = Place(folder=folder, device=torch.device("cpu"), labels=SPACE, info={})
    how = OptimConfig.model_validate({"lr": 0.05, "weight_decay": 0.01, **optim})
    fit(method, {"source": Memory(size=2)}, settings, how, place, resume=resume, until=until)
    return {k: v.clone() for k, v in model.state_dict().items()}


def moved(settings: dict[str, Any], folder: Path, **how: Any) -> set[str]:
    model = make(**settings)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = train(model, folder, **how)
    return {k for k, v in before.items() if not torch.equal(v, after[k])}


def test_only_the_head_moves_and_frozen_statistics_stay(tmp_path: Path) -> None:
    found = moved({"train_only": ["^head", "^fusion"]}, tmp_path)
    assert found and all(re.search("^(head|fusion)", name) for name in found)
    assert any(name.endswith("running_mean") for name in found), "those of the trained part move"


def test_the_published_way_lets_frozen_statistics_drift(tmp_path: Path) -> None:
    found = moved({"train_only": ["^head", "^fusion"], "frozen_norm": "train"}, tmp_path)
    drifted = {name for name in found if not re.search("^(head|fusion)", name)}
    assert drifted
    assert all(re.search("(running_mean|running_var|num_batches_tracked)$", name) for name in drifted)
    assert sum(name.startswith("backbone") for name in drifted) > 20


def test_affine_only_trains_norms_on_the_statistics_that_they_have(tmp_path: Path) -> None:
    found = moved({"norm": "affine_only"}, tmp_path)
    assert not any("running" in name or "tracked" in name for name in found)
    assert {n for n, _ in make().named_parameters() if ".norm." in n and n.startswith("head")} <= found


def test_biases_alone_move(tmp_path: Path) -> None:
    found = moved({"kinds": "biases", "norm": "affine_only"}, tmp_path)
    assert found and all(name.endswith("bias") for name in found)


@pytest.mark.parametrize("name", ["bisenet", "erfnet", "segformer"])
def test_kinds_know_every_network_s_norms(name: str) -> None:
    cls = MODELS.get(name)
    given = {"name": name, **cls.tiny()}
    whole = build_model(given, 7)
    owner = {n: whole.get_submodule(n.rpartition(".")[0]) for n in names(whole)}
    in_norms = {n for n, m in owner.items() if "Norm" in type(m).__name__}
    biases = {n for n in owner if n.endswith("bias")}
    assert in_norms and biases and in_norms != biases
    assert names(build_model({**given, "kinds": "norms"}, 7)) == in_norms
    assert names(build_model({**given, "kinds": "biases"}, 7)) == biases
    assert names(build_model({**given, "kinds": {"": "biases_and_norms"}}, 7)) == in_norms | biases
    head = names(build_model({**given, "train_only": [f"^(?!{re.escape(whole.encoder_prefix)})"]}, 7))
    assert head == {n for n in owner if not n.startswith(whole.encoder_prefix)}


def test_freeze_wins_over_train_only() -> None:
    model = make(train_only=["^head"], freeze=["^head16"])
    assert names(model) == {n for n, _ in make().named_parameters() if re.search("^head(32)?[.]", n)}
    assert norms(model, training=True) == {"head.conv.norm", "head32.conv.norm"}


def test_a_kind_may_be_asked_of_one_part() -> None:
    model = make(train_only=["^head[.]", "^fusion"], kinds={"^head": "biases_and_norms"})
    found = {n for n in names(model) if n.startswith("head")}
    assert found == {"head.conv.norm.weight", "head.conv.norm.bias"}
    assert "fusion.mix.conv.weight" in names(model)


def test_momentum_by_name() -> None:
    model = make(norm_momentum={"^backbone": 0.01, "^head": 0.2})
    found = {n: m.momentum for n, m in model.named_modules() if isinstance(m, BATCH_NORM)}
    assert {v for n, v in found.items() if n.startswith("backbone")} == {0.01}
    assert {v for n, v in found.items() if n.startswith("head")} == {0.2}
    assert not {0.01, 0.2} & {v for n, v in found.items() if n.startswith(("context", "fusion"))}


@pytest.mark.parametrize("key", ["train_only", "freeze", "kinds", "gradual", "norm_momentum"])
def test_a_pattern_without_a_match_is_told(key: str) -> None:
    values = {"kinds": {"^hed": "biases"}, "gradual": {"^hed": 0.5}, "norm_momentum": {"^hed": 0.5}}
    with pytest.raises(UserError, match=rf"model\.{key} pattern '\^hed' matches no .*begin with backbone"):
        make(**{key: values.get(key, ["^hed"])})


def test_a_pattern_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match=r"'\(' is no regular expression"):
        make(train_only=["("])


def test_nothing_to_train_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        train(make(train_only=["^head"], freeze=["^head"]), tmp_path)


def test_parts_thaw_when_their_share_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(gradual={"^backbone": 0.5, "^context": 0.25})
    everything = names(model)
    seen: list[tuple[set[str], bool]] = []
    real = SegModel.forward
    monkeypatch.setattr(
        SegModel,
        "forward",
        lambda self, image: seen.append((names(self), norms(self, True) != set())) or real(self, image),
    )
    train(model, tmp_path, iterations=8)
    parts = [{name.partition(".")[0] for name in found} for found, _ in seen]
    assert [("context" in p, "backbone" in p) for p in parts] == [(False, False)] * 2 + [(True, False)] * 2 + [
        (True, True)
    ] * 4
    assert seen[-1][0] == everything


def test_a_part_that_waits_does_not_move_and_then_does(tmp_path: Path) -> None:
    gradual = {"gradual": {"^backbone": 0.75}}
    early = moved(gradual, tmp_path / "a", iterations=4, until=3)
    assert early and not any(name.startswith("backbone") for name in early), "neither weights nor statistics"
    late = moved(gradual, tmp_path / "b", iterations=4)
    assert {n for n, _ in make().named_parameters() if n.startswith("backbone")} <= late
    assert "backbone.features.0.norm.running_mean" in late or any("backbone" in n and "running" in n for n in late)


@pytest.mark.parametrize(
    "optim",
    [{"name": "sgd"}, {"name": "adamw", "lr": 0.001}, {"name": "rmsprop", "lr": 0.001}],
    ids=lambda o: o["name"],
)
@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_across_a_thaw_changes_no_bit(stop: int, optim: dict[str, Any], tmp_path: Path) -> None:
    settings = {"gradual": {"^backbone": 0.5}}
    whole = train(make(**settings), tmp_path / "whole", iterations=4, **optim)
    train(make(**settings), tmp_path / "cut", iterations=4, until=stop, **optim)
    torch.manual_seed(99)
    resumed = train(build_model({**TINY, **settings}, 7), tmp_path / "cut", iterations=4, resume=True, **optim)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_a_method_froze_does_not_thaw() -> None:
    model = make(gradual={"^backbone": 0.5})
    assert model.thaw(0.0) is True and model.thaw(0.4) is False
    model = make(gradual={"^backbone": 0.5})
    model.requires_grad_(False)
    model.thaw(0.0)
    assert model.thaw(0.5) is True and names(model) == set()


@pytest.fixture(scope="module")
def published() -> dict[str, int]:
    """Sizes of all parameters of the published network, whose encoder is built without memory."""
    with torch.device("meta"):
        model = build_model(R101, 19)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({"train_only": [HEAD]}, set()),
        ({"train_only": [HEAD, r"^encoder\.layer4\."]}, {f"layer4.{k}" for k in range(3)}),
        ({"train_only": [HEAD, r"^encoder\.layer1\."]}, {f"layer1.{k}" for k in range(3)}),
        (
            {"train_only": [HEAD, SELECTED]},
            {"layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer3.1", "layer3.2"},
        ),
    ],
    ids=["head", "layer4", "layer1", "selected"],
)
def test_published_choices_of_what_to_train(
    settings: dict[str, Any], blocks: set[str], published: dict[str, int]
) -> None:
    with torch.device("meta"):
        model = build_model({**R101, **settings}, 19)
    trained = names(model)
    found = {m[1] for n in trained if (m := re.match(r"encoder\.(layer\d\.\d+)\.", n))}
    assert found == blocks
    assert not any(re.match(r"encoder\.(conv1|bn1)", n) for n in trained)
    assert {n for n in published if not n.startswith("encoder.")} <= trained


def test_published_biases_and_norms_of_the_head() -> None:
    settings = {"train_only": [HEAD, r"^encoder\.layer1\."], "kinds": {HEAD: "biases_and_norms"}}
    with torch.device("meta"):
        model = build_model({**R101, **settings}, 19)
    head = {n for n in names(model) if not n.startswith("encoder")}
    assert "classifier.bias" in head and "classifier.weight" not in head
    assert all(re.search(r"(\.norm\.(weight|bias)|\.bias)$", n) for n in head)
    assert "encoder.layer1.0.conv1.weight" in names(model)
