"""What of a network is trained, from when on, and what its norm layers do meanwhile: settings by parameter names.

Patterns are regular expressions that are searched in names such as ``encoder.layer1.0.conv1.weight``. A parameter is
trained when ``train_only`` names it (or is empty), ``freeze`` does not, and ``kinds`` accepts it; ``gradual`` puts it
off. A norm layer outside of what is trained by now keeps its statistics; the published run from which most choices here
come (the DLL project, 2024: Cityscapes to KITTI-360 without labels) left all norm layers in training mode:
``frozen_norm: train``.

Knobs that matter: ``train_only``, and ``norm: affine_only``, which keeps the statistics of trained parts too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator
from torch import nn

from segue.errors import UserError
from segue.settings import Settings

NORM_TYPES = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
FIXED_STATISTICS = ("frozen", "affine_only")
"""Values of ``norm`` with which no statistics move."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class TrainedConfig(Settings):
    """Which parameters are trained, and when."""

    train_only: tuple[Pattern, ...] = ()
    """Regular expressions on parameter names; what none of them names is frozen. Default: everything is trained."""
    freeze: tuple[Pattern, ...] = ()
    """Regular expressions on parameter names that are not trained, whatever ``train_only`` says."""
    kinds: dict[Pattern, Literal["biases", "norms", "biases_and_norms"]] = Field(default_factory=dict)
    """Regular expression -> the only kind of parameters that is trained where it matches; a bare kind: everywhere."""
    gradual: dict[Pattern, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Regular expression -> share of the iterations after which what it names begins to be trained."""
    norm: Literal["train", "affine_only", "stats_only", "frozen", "sync"] = "train"
    """Norm layers: trained; affine only (statistics fixed); statistics only (affine fixed); both fixed; trained, with
    statistics synchronised over devices."""
    frozen_norm: Literal["eval", "train"] = "eval"
    """Norm statistics in frozen parts: fixed, or moving all the same (``train``, the published run)."""
    norm_momentum: dict[Pattern, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Regular expression on names of batch norms -> their momentum (0.01 in DeepLab's encoder in the published run)."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"": value} if isinstance(value, str) else value


def fix(model: nn.Module, config: TrainedConfig) -> None:
    """Take the gradient from what is never trained and set ``norm_momentum``; ``UserError``: a pattern without a match.

    What ``gradual`` puts off keeps its gradient: optimisers are built for all that is trained some time.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORM_TYPES)}
    _check(config, [n for n, _ in model.named_parameters()], [n for n, m in norms.items() if isinstance(m, BATCH_NORM)])
    in_norms = {id(p) for module in norms.values() for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        norm, bias = id(parameter) in in_norms, name.endswith("bias")
        accepted = {"biases": bias, "norms": norm, "biases_and_norms": bias or norm}
        by_kind = all(accepted[kind] for pattern, kind in config.kinds.items() if re.search(pattern, name))
        affine_fixed = norm and config.norm in ("frozen", "stats_only")
        if not selected(config, name) or not by_kind or affine_fixed:
            parameter.requires_grad_(False)
    for pattern, momentum in config.norm_momentum.items():
        for name, module in norms.items():
            if isinstance(module, BATCH_NORM) and re.search(pattern, name):
                module.momentum = momentum


def selected(config: TrainedConfig, name: str) -> bool:
    """Whether a name belongs to a part that is trained some time."""
    return (not config.train_only or matches(config.train_only, name)) and not matches(config.freeze, name)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns is found in a name."""
    return any(re.search(pattern, name) for pattern in patterns)


def still(model: nn.Module, config: TrainedConfig, late: Iterable[str]) -> None:
    """Put norm layers with fixed statistics into evaluation mode; ``late``: patterns of what is not trained yet."""
    for name, module in model.named_modules():
        if not isinstance(module, NORM_TYPES):
            continue
        weight = f"{name}.weight"
        frozen = config.frozen_norm == "eval" and (not selected(config, weight) or matches(late, weight))
        if frozen or config.norm in FIXED_STATISTICS:
            module.eval()


def _check(config: TrainedConfig, parameters: list[str], batch_norms: list[str]) -> None:
    for key in ("train_only", "freeze", "kinds", "gradual", "norm_momentum"):
        names, what = (batch_norms, "batch norm") if key == "norm_momentum" else (parameters, "parameter")
        for pattern in getattr(config, key):
            if not any(re.search(pattern, name) for name in names):
                begun = _outline(names)
                raise UserError(f"model.{key} pattern {pattern!r} matches no {what}; their names begin with {begun}")


def _outline(names: Iterable[str]) -> str:
    begun = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return ", ".join(begun[:12]) + (", …" if len(begun) > 12 else "")
