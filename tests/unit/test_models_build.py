"""From settings to a network: faults are told at once, weights come before freezing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segue.errors import UserError
from segue.models.base import MODELS, Head, ModelConfig, Output, SegModel
from segue.models.bisenet import BiSeNetConfig
from segue.models.build import build_model, validate
from segue.models.norms import SyncBatchNorm

TINY = {"name": "bisenet", "width": 0.125}


def test_every_fault_of_the_settings_is_told() -> None:
    with pytest.raises(UserError) as caught:
        build_model({"name": "bisenet", "widht": 0.5, "backbone": "stdc9"}, 3)
    assert "unknown key 'model.widht'" in str(caught.value)
    assert "did you mean 'width'" in str(caught.value)
    assert "model.backbone" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"), [({}, "needs a name"), ({"name": "bisenett"}, "did you mean 'bisenet'"), ({"name": 3}, "'3'")]
)
def test_name_must_be_known(config: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_model(config, 3)


def test_a_model_needs_classes() -> None:
    with pytest.raises(UserError, match="at least 1 class"):
        build_model(TINY, 0)


def test_settings_may_be_an_object_of_the_base_class() -> None:
    config = validate(ModelConfig(name="bisenet", norm="frozen"))
    assert isinstance(config, BiSeNetConfig)
    assert config.norm == "frozen"
    assert validate(BiSeNetConfig(name="bisenet", width=0.5)) == BiSeNetConfig(name="bisenet", width=0.5)


def test_sync_norms_stay_frozen_where_named() -> None:
    model = build_model({**TINY, "norm": "sync", "freeze": ["^backbone"]}, 3)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert all(isinstance(m, SyncBatchNorm) for m in norms.values())
    assert {n for n, m in norms.items() if not m.training} == {n for n in norms if n.startswith("backbone")}
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_encoder_weights_arrive_and_are_frozen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = build_model(TINY, 3)
    torch.save(other.backbone.state_dict(), tmp_path / "e.pth")
    model = build_model({**TINY, "weights": str(tmp_path / "e.pth"), "freeze": ["^backbone"]}, 7)
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    assert not any(n.startswith("backbone") for n, p in model.named_parameters() if p.requires_grad)


def test_a_frozen_head_stays_frozen_when_it_grows() -> None:
    model = build_model({**TINY, "freeze": ["^head16"]}, 3)
    model.grow_head(1, "background")
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {"head16.classifier.weight", "head16.classifier.bias"} <= frozen
    assert not any(n.startswith("head.") for n in frozen)


def test_growth_draws_from_the_given_generator_only() -> None:
    a, b = build_model(TINY, 3), build_model(TINY, 3)
    b.load_state_dict(a.state_dict())
    state = torch.get_rng_state()
    a.grow_head(2, "random", torch.Generator().manual_seed(5))
    torch.rand(1)
    b.grow_head(2, "random", torch.Generator().manual_seed(5))
    assert torch.equal(a.state_dict()["head.classifier.weight"], b.state_dict()["head.classifier.weight"])
    torch.set_rng_state(state)
    a.grow_head(2, "random", torch.Generator().manual_seed(6))
    assert torch.equal(torch.get_rng_state(), state)


def test_upsample_to_another_size_cuts_the_margin_in_proportion() -> None:
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 1, 64, 64)
    output = Output(ramp, ramp, size=(48, 40), padded=(64, 64))
    assert torch.equal(output.upsample(ramp), ramp[..., :48, :40])
    double = output.upsample(ramp, (96, 80))
    assert double.shape == (1, 1, 96, 80)
    assert double.max().item() == pytest.approx(39.25)  # pixel 79 of 128 lies at 39.25, not at the padded margin


def test_registry_knows_both_networks() -> None:
    assert {"bisenet", "deeplabv3plus"} <= set(MODELS.names())


class Generous(SegModel):
    """Returns its heads whatever the mode."""

    def decode(self, x: torch.Tensor) -> Output:
        return Output(x, x, heads=(Head("extra", x),))


def test_heads_are_dropped_in_eval_even_if_the_network_returns_them() -> None:
    model = Generous(ModelConfig(name="generous"), 3)
    assert len(model(torch.rand(1, 3, 32, 32)).heads) == 1
    assert model.eval()(torch.rand(1, 3, 32, 32)).heads == ()
