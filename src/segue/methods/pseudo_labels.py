"""A self-supervised round: source labels, and pseudo-labels of the target as if they were labels.

Yang & Soatto, "FDA", CVPR 2020, section 3.2: CE(source in target style) + CE(target, pseudo-labels) + 0.005 robust
entropy(target). The target stream is a labelled data set whose label files are pseudo-labels, 255 where none was kept.
Knobs that matter: how many pixels the files keep, ``beta``, ``entropy_weight``. The official code draws a further
target image to lend the style; here the target images of the iteration lend it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from segue.data.batch import Batch
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.methods.fda import in_style_of
from segue.methods.parts.base import View
from segue.ops.entropy import robust_entropy
from segue.ops.losses import CriterionConfig


class PseudoLabelsConfig(MethodConfig):
    """Settings of ``pseudo_labels``; defaults are those of FDA's official rounds."""

    criterion: CriterionConfig = CriterionConfig()
    beta: float | None = Field(0.01, ge=0, lt=0.5)
    """Source images wear the target's low frequencies (0.01, 0.05, 0.09 published); null: they stay as they are."""
    pseudo_weight: float = Field(1.0, ge=0)
    """Weight of the loss on pseudo-labels, a mean over the pixels that have one."""
    entropy_weight: float = Field(0.005, ge=0)
    """Weight of the robust entropy of target predictions."""
    eta: float = Field(2.0, gt=0)
    """Exponent of the robust entropy."""


@METHODS.register("pseudo_labels")
class PseudoLabels(Method):
    """Supervised on source and on pseudo-labelled target, with robust entropy on the latter."""

    Config = PseudoLabelsConfig
    config: PseudoLabelsConfig
    needs = ("source", "target")
    uses_labels = ("source", "target")
    views = ("source", "target")

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Two graphs: source, in target style; pseudo-labels and entropy of the target. Then those of parts."""
        given, source, target = self.config, batches["source"], batches["target"]
        if given.beta is not None:
            source = replace(source, image=in_style_of(target, source, given.beta))
        yield self.taught(source, given.criterion, iteration)
        yield self._target(target, iteration)
        yield from self.part_graphs({"source": source, "target": target}, iteration)

    def _target(self, target: Batch, iteration: int) -> Terms:
        given, output = self.config, self.model(target.image)
        terms = Terms(pseudo=given.pseudo_weight * self.supervised(output, target, given.criterion))
        if given.entropy_weight:
            terms["entropy"] = given.entropy_weight * robust_entropy(output, target.pixel, given.eta)
        return self.joined(terms, View("target", target, output, iteration))
