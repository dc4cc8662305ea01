"""Learning-rate schedules against published values, parameter groups, the loss scaler."""

from __future__ import annotations

import pytest
import torch

from segue.config import OptimConfig, ScheduleConfig
from segue.errors import UserError
from segue.models.build import build_model
from segue.optim import LossScaler, build_optimizers, lr_factor


@pytest.mark.parametrize(
    ("iteration", "published"), [(49, 1.958e-6), (99, 3.950e-6), (149, 5.938e-6), (199, 7.920e-6), (249, 9.898e-6)]
)
def test_poly_with_warmup_equals_the_log_of_daformer(iteration: int, published: float) -> None:
    schedule = ScheduleConfig(power=1.0, warmup_iterations=1500, warmup_factor=1e-6)
    assert 6e-5 * lr_factor(schedule, iteration, 40000, 1) == pytest.approx(published, rel=5e-4)


def test_step_and_epoch_units() -> None:
    step = ScheduleConfig(name="step", step_at=(0.5, 0.75), step_factor=0.1)
    assert [lr_factor(step, t, 100, 1) for t in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    by_epoch = ScheduleConfig(unit="epoch")
    factors = [lr_factor(by_epoch, t, 100, 25) for t in range(100)]
    assert len(set(factors)) == 4
    assert factors[0] == 1
    assert factors[25] == pytest.approx(0.75**0.9)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_groups_factors_and_decay(name: str) -> None:
    model = build_model({"name": "bisenet", "width": 0.125, "head_lr_factor": 10}, 5)
    optimizer = build_optimizers({"model": model}, OptimConfig(name=name, lr=0.1, lr_factors={"encoder": 0.5}))["model"]  # type: ignore[arg-type]
    by_name = {g["name"]: g for g in optimizer.param_groups}
    assert by_name["encoder"]["base_lr"] == pytest.approx(0.05)
    assert by_name["head"]["base_lr"] == pytest.approx(1.0)
    assert by_name["head_no_decay"]["weight_decay"] == 0
    assert by_name["head"]["weight_decay"] == pytest.approx(5e-4)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters()
    )


def test_other_networks_and_unknown_ones() -> None:
    networks = {"model": torch.nn.Linear(2, 2), "critic": torch.nn.Linear(2, 1)}
    config = OptimConfig(lr=0.1, networks={"critic": {"name": "adam", "lr": 1e-4}})
    built = build_optimizers(networks, config)
    assert isinstance(built["critic"], torch.optim.Adam)
    assert built["critic"].param_groups[0]["lr"] == 1e-4
    assert built["model"].param_groups[0]["lr"] == 0.1
    with pytest.raises(UserError, match="criticc"):
        build_optimizers(networks, OptimConfig(networks={"criticc": {}}))
    with pytest.raises(UserError, match="matches no parameter group"):
        build_optimizers(networks, OptimConfig(lr_factors={"nothing": 2.0}))


def test_scaler_halves_doubles_and_restores() -> None:
    scaler = LossScaler(True, growth_interval=2)
    gradient = torch.full((3,), scaler.scale)
    scaler.unscale([gradient])
    assert gradient.tolist() == [1, 1, 1]
    scaler.update(overflow=True)
    assert scaler.scale == 32768
    scaler.update(overflow=False)
    saved = scaler.state()
    scaler.update(overflow=False)
    assert scaler.scale == 65536
    scaler.restore(saved)
    scaler.update(overflow=False)
    assert scaler.scale == 65536


def test_epochs_counted_from_one_as_in_cil() -> None:
    """5.0225e-4 in the first of 200 epochs, the base rate in the second."""
    schedule = ScheduleConfig(unit="epoch", count_from=1)
    rates = [5e-4 * lr_factor(schedule, epoch * 159 + 3, 200 * 159, 159) for epoch in (0, 1, 100, 199)]
    assert rates == pytest.approx([5.0225e-4, 5e-4, 2.7035e-4, 7.92e-6], rel=1e-3)
