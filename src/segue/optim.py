"""Optimisers and the learning rate as a pure function of the iteration."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from segue.config import OptimConfig, ScheduleConfig, merge
from segue.errors import UserError
from segue.models.base import ParamGroup, SegModel
from segue.settings import check


def build_optimizers(networks: dict[str, nn.Module], config: OptimConfig) -> dict[str, Optimizer]:
    """One optimiser a network, from ``optim`` and ``optim.networks``."""
    unknown = set(config.networks) - set(networks)
    if unknown:
        raise UserError(f"optim.networks names {sorted(unknown)}, this method has {sorted(networks)}")
    base = config.model_dump(exclude_unset=True, exclude={"networks"})
    return {
        name: _optimizer(
            network, check(OptimConfig, merge(base, config.networks.get(name, {})), f"optim.networks.{name}")
        )
        for name, network in networks.items()
    }


def _optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    found = _groups(network)
    if not found:
        raise UserError("nothing is left to train: model.freeze, train_only, kinds and norm exclude every parameter")
    for pattern in config.lr_factors:
        if not any(re.search(pattern, group.name) for group in found):
            names = ", ".join(group.name for group in found)
            raise UserError(f"optim.lr_factors pattern {pattern!r} matches no parameter group (known: {names})")
    groups = [_settings_of(group, config) for group in found]
    # The fused kernels make one pass over parameters, gradients and state; torch has none for RMSprop.
    fused = all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    if config.name == "sgd":
        return _sgd(groups, config, fused)
    if config.name == "adam":
        return Adam(groups, lr=config.lr, betas=config.betas, fused=fused)
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    return RMSprop(groups, lr=config.lr, momentum=config.momentum)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig, fused: bool) -> SGD:
    optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    for parameter in (p for g in groups if config.momentum and fused for p in g["params"]):
        # The fused kernel cannot take in a parameter whose first gradient comes later than others' (gradual thawing).
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(network: nn.Module) -> list[ParamGroup]:
    if isinstance(network, SegModel):
        return network.param_groups()
    return [ParamGroup("all", [p for p in network.parameters() if p.requires_grad], 1.0, True)]


def _settings_of(group: ParamGroup, config: OptimConfig) -> dict[str, Any]:
    lr = config.lr * group.lr_factor
    for pattern, factor in config.lr_factors.items():
        lr *= factor if re.search(pattern, group.name) else 1.0
    decay = config.weight_decay if group.decay else 0.0
    return {"params": group.params, "name": group.name, "lr": lr, "base_lr": lr, "weight_decay": decay}


def lr_factor(schedule: ScheduleConfig, iteration: int, total: int, per_epoch: float) -> float:
    """Factor of the base learning rate at an iteration (0-based).

    ``poly``: (1 - t/T)^power (Chen et al., 2017); warm-up multiplies it by 1 - (1 - t/W)(1 - w) (mmcv's linear form).
    With ``unit: epoch`` t is the first iteration of the running epoch; ``count_from: 1`` takes one unit off it.
    """
    unit = 1 if schedule.unit == "iteration" else per_epoch
    t = (iteration // unit - schedule.count_from) * unit
    factor = 1.0
    if schedule.name == "poly":
        factor = (1 - t / total) ** schedule.power
    elif schedule.name == "step":
        factor = schedule.step_factor ** sum(t >= share * total for share in schedule.step_at)
    if iteration < schedule.warmup_iterations:
        factor *= 1 - (1 - iteration / schedule.warmup_iterations) * (1 - schedule.warmup_factor)
    return factor


def set_lr(
    optimizers: dict[str, Optimizer], config: OptimConfig, iteration: int, total: int, per_epoch: float
) -> float:
    """Set the learning rate of every group for an iteration; returns that of the model's first group."""
    for name, optimizer in optimizers.items():
        own = config.networks.get(name, {}).get("schedule")
        schedule = config.schedule if own is None else check(ScheduleConfig, own, f"optim.networks.{name}.schedule")
        factor = lr_factor(schedule, iteration, total, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
    groups = optimizers["model"].param_groups if "model" in optimizers else []
    return float(groups[0]["lr"]) if groups else 0.0


class LossScaler:
    """One dynamic loss scale for all networks: unscale all, check all, step all or none, update once an iteration.

    Scale halves after an overflow and doubles after 2000 clean steps, as torch's ``GradScaler``, which however decides
    for each optimiser alone, so that one network would step where the other skips.
    """

    def __init__(self, enabled: bool, growth_interval: int = 2000) -> None:
        self.enabled = enabled
        self.scale = 65536.0 if enabled else 1.0
        self.good_steps = 0
        self.growth_interval = growth_interval

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1.0 / self.scale)

    def update(self, overflow: bool) -> None:
        """After an iteration's step was taken or skipped."""
        if not self.enabled:
            return
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.scale = max(self.scale / 2, 1.0)
        elif self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        """Plain numbers for the checkpoint."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """Take the numbers of a checkpoint."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
