"""Direct entropy minimisation: supervised on source, certain on target.

Vu et al., "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation", CVPR 2019, eq. 1
to 4 (their MinEnt). Knobs that matter: ``levels``; too large a weight makes every pixel the largest class. Published:
``{main: 0.001}``, with DeepLabV2's auxiliary level ``{main: 0.001, auxiliary: 0.0002}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from segue.data.batch import Batch
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.methods.levels import MAIN, Levels, level_logits, require_levels
from segue.methods.parts.base import View
from segue.models.base import SegModel
from segue.ops.entropy import mean_entropy
from segue.ops.losses import CriterionConfig


class MinEntConfig(MethodConfig):
    """Settings of ``minent``; defaults are the published ones for one level."""

    criterion: CriterionConfig = CriterionConfig()
    levels: Levels = Field(default={MAIN: 0.001})
    """Level -> weight of its mean entropy: ``main``, and heads of the model by name (0.001; auxiliary 0.0002)."""


@METHODS.register("minent")
class MinEnt(Method):
    """Supervised loss on source plus the mean entropy of target predictions."""

    Config = MinEntConfig
    config: MinEntConfig
    needs = ("source", "target")
    views = ("source", "target")

    def __init__(
        self, config: MinEntConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        require_levels(model, config.levels)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Two graphs: source labels; entropy of every level on target images. Then those of parts."""
        source, target = batches["source"], batches["target"]
        yield self.taught(source, self.config.criterion, iteration)
        yield self._entropy(target, iteration)
        yield from self.part_graphs(batches, iteration)

    def _entropy(self, target: Batch, iteration: int) -> Terms:
        output, terms = self.model(target.image), Terms()
        for name, logits in level_logits(output, self.config.levels).items():
            terms[f"entropy_{name}"] = self.config.levels[name] * mean_entropy(output, logits, target.pixel)
        return self.joined(terms, View("target", target, output, iteration))
