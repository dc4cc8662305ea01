"""Only the gate of model ``gated`` learns, from unlabelled images: certain predictions, an even gate.

After MoP: minimise the mean entropy of the predictions minus ``evenness`` times the entropy of the softmax of the gate,
both in 0..1, of the images whose style is outside the source's; the sum is multiplied by the share of their pixels that
are surer than ``confidence``, so that a network that knows nothing teaches itself nothing. The network itself is
frozen, norm statistics included: source images are answered as before, bit for bit, as far as their style is inside the
source's radius. Knobs that matter: ``evenness`` and the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.models.base import Output, SegModel
from segue.models.gated import Gated
from segue.ops.entropy import entropy
from segue.ops.picture import picture_mean


class PrototypeGateConfig(MethodConfig):
    """Settings of ``prototype_gate``."""

    evenness: float = Field(0.1, ge=0)
    """Weight of the gate's entropy (beta): larger keeps the gate from choosing few classes."""
    confidence: float = Field(0.9, ge=0, lt=1)
    """Softmax above which a pixel counts as sure (Q)."""


@METHODS.register("prototype_gate")
class PrototypeGate(Method):
    """Entropy minimisation through the gate of source prototypes; the network is frozen."""

    Config = PrototypeGateConfig
    config: PrototypeGateConfig
    model: Gated
    needs = ("target",)
    uses_labels = ()
    needs_anchor = True

    def __init__(
        self, config: MethodConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        if not isinstance(model, Gated):
            raise UserError(
                f"method 'prototype_gate' trains the gate of model 'gated', not {model.config.name!r}: set model to "
                f"{{name: gated, base: {{name: {model.config.name}}}}} and start it from a model with an anchor"
            )
        super().__init__(config, model, labels, references)
        model.base.requires_grad_(False)

    def train(self, mode: bool = True) -> PrototypeGate:
        """Training mode, but for the network that is frozen."""
        super().train(mode)
        self.model.base.eval()
        return self

    def prepare(self, streams: Mapping[str, object]) -> None:
        """See :class:`Method`; ``UserError`` when the prototypes are none of the source's."""
        super().prepare(streams)
        if self.model.anchor is None:
            raise UserError(
                "method 'prototype_gate' needs the prototypes of the source: start from a model that has an anchor "
                "(segue anchor MODEL --data NAME:train makes one)"
            )

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph, of the images whose style is outside the source's; without any, none."""
        batch = batches["target"]
        output: Output = self.model(batch.image)
        outside = self.model.outside
        open_share = outside.float().mean()
        if not bool(outside.any()):
            yield Terms(logs={"open_share": open_share})
            return
        logits = output.to_classes()[outside]
        margin = (0, output.padded[1] - output.size[1], 0, output.padded[0] - output.size[0])
        pixel = F.pad(batch.pixel[outside].to(logits), margin)
        with torch.no_grad():
            sure = picture_mean((logits.softmax(1).amax(1) > self.config.confidence).to(logits), pixel)
        gates, _ = self.model.gates(output.embedding[outside])
        even: Tensor = entropy(gates[:, :, None, None]).mean()
        terms = Terms(entropy=sure * picture_mean(entropy(logits), pixel), gate=-self.config.evenness * sure * even)
        terms.logs.update(open_share=open_share, sure_share=sure)
        yield terms
