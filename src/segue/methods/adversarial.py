"""Adversarial adaptation in output space: predictions on target images shall look like predictions on source images.

Tsai et al., "Learning to Adapt Structured Output Space", CVPR 2018 (AdaptSegNet), eq. 1 to 5, with ``input:
probability``; Vu et al., "ADVENT", CVPR 2019, section 3.2, with ``input: self_information``. A discriminator learns the
domain of a prediction, the model learns to be taken for source. Knobs that matter: ``levels``, the discriminator's
optimiser (``optim.networks.discriminator``), ``log/domain_accuracy_*`` (0.5: nothing left to tell apart).

Published: adam with learning rate 1e-4 and betas (0.9, 0.99) for the discriminator; weights ``{main: 0.001}``, with
DeepLabV2's auxiliary level ``{main: 0.001, auxiliary: 0.0002}`` (both papers); real-time networks and D2ADA train with
``{main: 0.0002}`` and ``{main: 0.0005}``. Padding is shown to the discriminator as zeros, what its convolutions see
beyond every border, and enters no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segue.data.batch import Batch
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms, frozen
from segue.methods.levels import MAIN, Levels, level_logits, require_levels, without_graph
from segue.methods.parts.base import View
from segue.models.base import Output, SegModel
from segue.models.discriminators import Discriminator
from segue.ops.domains import CHANCE, SOURCE, DomainLoss, balanced_accuracy, discriminator_loss, domain_loss
from segue.ops.entropy import self_information
from segue.ops.losses import CriterionConfig
from segue.ops.precision import full


class AdversarialConfig(MethodConfig):
    """Settings of ``adversarial``; defaults are AdaptSegNet's for one level."""

    criterion: CriterionConfig = CriterionConfig()
    levels: Levels = Field(default={MAIN: 0.001})
    """Level -> weight of its adversarial term, each with a discriminator of its own: ``main``, and heads of the model
    by name. Weight 0 watches: the discriminator learns, the model does not feel it."""
    loss: DomainLoss = "vanilla"
    """Binary cross-entropy (both papers), or least squares (LSGAN; AdaptSegNet's other option)."""
    input: Literal["probability", "self_information"] = "probability"
    """What discriminators look at: softmax (AdaptSegNet), or -p log p of every class (AdvEnt)."""


@METHODS.register("adversarial")
class Adversarial(Method):
    """Supervised on source; one discriminator a level tells target from source, the model deceives it."""

    Config = AdversarialConfig
    config: AdversarialConfig
    needs = ("source", "target")
    views = ("source", "target")

    def __init__(
        self, config: AdversarialConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        require_levels(model, config.levels)
        self.discriminator = nn.ModuleDict({name: Discriminator(model.num_classes) for name in config.levels})

    def networks(self) -> dict[str, nn.Module]:
        """The model, and all discriminators under one optimiser."""
        return super().networks() | {"discriminator": self.discriminator}

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Graphs: source labels; adversarial terms of all levels; each discriminator. Then those of parts."""
        source, target = batches["source"], batches["target"]
        terms, on_source = self._supervised(source, iteration)
        yield terms
        terms, on_target = self._adversarial(target, iteration)
        yield terms
        for name in self.config.levels:
            yield self.discriminate(name, (on_source, on_target), (source.pixel, target.pixel))
        yield from self.part_graphs(batches, iteration)

    def discriminate(self, name: str, outputs: tuple[Output, Output], pixels: tuple[Tensor, Tensor]) -> Terms:
        """Loss of one level's discriminator on (source, target), with how well it tells them apart.

        ``log/domain_loss_*`` is the loss over that of a discriminator which cannot (ln 2, or 1/4): below 1 it can.
        """
        kind = self.config.loss
        with torch.no_grad():
            maps = [self.maps(output, (name,), pixel)[name] for output, pixel in zip(outputs, pixels, strict=True)]
        source, target = (self.discriminator[name](shown) for shown in maps)
        loss = discriminator_loss(source, target, pixels, kind)
        logs = {
            f"domain_accuracy_{name}": balanced_accuracy(source, target, pixels, kind),
            f"domain_loss_{name}": loss.detach() / CHANCE[kind],
        }
        return Terms(logs, **{f"discriminator_{name}": loss})

    def maps(self, output: Output, names: tuple[str, ...], pixel: Tensor) -> dict[str, Tensor]:
        """What the discriminators of some levels look at: (N,C,H,W) at the image's size, 0 where is no picture."""
        found = {}
        for name, logits in level_logits(output, names).items():
            upsampled = output.upsample(full(logits))
            shown = upsampled.softmax(1) if self.config.input == "probability" else self_information(upsampled)
            found[name] = shown * pixel.unsqueeze(1)
        return found

    def domain_logits(self, output: Output) -> Tensor:
        """(N,1,h,w) logit that cells of a prediction are of the target, by the discriminator of ``main``."""
        pixel = torch.ones(len(output.logits), *output.size, dtype=torch.bool, device=output.logits.device)
        shown: Tensor = self.discriminator[MAIN](self.maps(output, (MAIN,), pixel)[MAIN])
        return shown if self.config.loss == "vanilla" else shown.logit(eps=1e-6)

    # The two below return what later graphs need, so that no local of the generator keeps a graph's tensors alive.
    def _supervised(self, source: Batch, iteration: int) -> tuple[Terms, Output]:
        output = self.model(source.image)
        terms = Terms(source=self.supervised(output, source, self.config.criterion))
        return self.joined(terms, View("source", source, output, iteration)), without_graph(output)

    def _adversarial(self, target: Batch, iteration: int) -> tuple[Terms, Output]:
        output, levels = self.model(target.image), self.config.levels
        terms = Terms()
        with frozen(self.discriminator):
            for name, shown in self.maps(output, tuple(levels), target.pixel).items():
                loss = domain_loss(self.discriminator[name](shown), SOURCE, target.pixel, self.config.loss)
                terms[f"adversarial_{name}"] = levels[name] * loss
        return self.joined(terms, View("target", target, output, iteration)), without_graph(output)
