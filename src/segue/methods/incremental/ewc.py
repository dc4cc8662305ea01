"""EWC: parameters that mattered for the classes so far are held where they were.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, as compared in MiB (Cermelli et
al., CVPR 2020): cross-entropy plus 100 * sum F (theta - theta_old)^2. How much a parameter mattered, F, is gathered
while a step trains, F <- 0.9 g^2 + 0.1 F from 1 with g its gradient of the step's own loss; the next step takes it over
and scales it to 0..1 within each tensor. So the first step is trained by this method too. Outputs of new classes are
held nowhere.

g is averaged over micro-batches and devices, and clipped where ``train.clip_norm`` says so. The penalty's gradient,
200 F (theta - theta_old), is added after that, in ``before_step``: it needs no graph, and F does not see it. The logged
``penalty`` is not part of the logged loss. Differs from the compared code: a parameter without a gradient has g = 0,
and every device gathers, not the first alone.

The one knob that matters: ``weight``. With plain SGD it must stay below 1 / lr, or the penalty overshoots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.models.base import SegModel
from segue.ops.losses import CriterionConfig

NEW = 0.9
"""Share of the newest squared gradient in F, as published."""


class EWCConfig(MethodConfig):
    """Settings of ``ewc``."""

    criterion: CriterionConfig = CriterionConfig()
    weight: float = Field(100.0, ge=0)
    """Factor of the penalty (100 in MiB's comparisons)."""


class _PerParameter(nn.Module):
    """One buffer for each trained parameter, under its name."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            self.register_buffer(name.replace(".", "/"), tensor)  # a buffer's name has no dots

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()


@METHODS.register("ewc")
class EWC(Method):
    """Cross-entropy and elastic weight consolidation."""

    Config = EWCConfig
    config: EWCConfig
    views = ("source",)

    def __init__(
        self, config: EWCConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.names = frozenset(trained)
        self.gathered = _PerParameter({name: torch.ones_like(p) for name, p in trained.items()})
        self.importance = _PerParameter({name: torch.zeros_like(p) for name, p in trained.items()})
        self.start = _PerParameter({name: p.clone() for name, p in trained.items()})

    @torch.no_grad()
    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """What the step before has gathered becomes this one's importance; ``UserError`` if it gathered nothing."""
        prefix = "gathered."
        if not any(name.startswith(prefix) for name in state):
            raise UserError(
                "method 'ewc' continues a stage that did not gather what mattered: train that stage by 'ewc' as well "
                "(in the first step it is plain supervised training)"
            )
        for name, mine in self.importance.named_buffers():
            earlier = state.get(prefix + name)
            if earlier is None:  # a bias that growing has added
                continue
            if earlier.ndim != mine.ndim or any(a > b for a, b in zip(earlier.shape, mine.shape, strict=True)):
                raise UserError(
                    f"method 'ewc' continues a stage whose {name} has the shape {tuple(earlier.shape)}, the model's "
                    f"has {tuple(mine.shape)}: take the model of that stage"
                )
            low, high = earlier.min(), earlier.max()
            mine.zero_()
            # Old outputs come first: what is new in a grown classifier stays 0.
            mine[tuple(slice(0, n) for n in earlier.shape)] = (earlier - low) / (high - low + 1e-8)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph, the supervised loss; then those of parts."""
        terms = self.taught(batches["source"], self.config.criterion, iteration)
        terms.logs["penalty"] = self.penalty()
        yield terms
        yield from self.part_graphs(batches, iteration)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """weight * sum F (theta - theta_old)^2, a scalar without a graph."""
        rows = zip(self._trained(), self.importance, self.start, strict=True)
        return self.config.weight * torch.stack([(f * (p - old).square()).sum() for p, f, old in rows]).sum()

    @torch.no_grad()
    def before_step(self, iteration: int) -> None:
        """Gather squared gradients, then add the penalty's gradient."""
        rows = zip(self._trained(), self.gathered, self.importance, self.start, strict=True)
        for parameter, gathered, importance, start in rows:
            gathered.mul_(1 - NEW)
            if parameter.grad is None:  # nor will it move
                continue
            gathered.addcmul_(parameter.grad, parameter.grad, value=NEW)
            parameter.grad.addcmul_(importance, parameter - start, value=2 * self.config.weight)

    def stored_bytes(self) -> int:
        """One number a parameter."""
        return sum(f.numel() * f.element_size() for f in self.gathered)

    def _trained(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if name in self.names]
