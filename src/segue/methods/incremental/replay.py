"""Replay: some images of earlier steps, with the labels of their own step, are trained on beside the new ones.

The oldest remedy against forgetting, and the upper end of what the others are compared with: it keeps old data
(Rebuffi et al., "iCaRL", CVPR 2017, for classification; SSUL-M of Cha et al., NeurIPS 2021, for segmentation, whose
memories hold 100 images for VOC and 300 for ADE20K). Two supervised graphs, each a mean over its own labelled pixels.
What a step did not teach is ignored, or background where the label space has one: there plain cross-entropy contradicts
itself between the two streams, and this method does nothing about it.

Knobs that matter: the stage's ``memory``, the number of images kept of all earlier steps together, and ``weight``.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.ops.losses import CriterionConfig


class ReplayConfig(MethodConfig):
    """Settings of ``replay``."""

    criterion: CriterionConfig = CriterionConfig()
    weight: float = Field(1.0, ge=0)
    """Factor of the loss on them; 1 is SSUL-M's half of each batch."""


@METHODS.register("replay")
class Replay(Method):
    """Supervised loss on ``source``, the images of the step, and on ``replay``, the kept ones."""

    Config = ReplayConfig
    config: ReplayConfig
    needs = ("source", "replay")
    uses_labels = ("source", "replay")
    views = ("source",)
    old_data = True

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Two graphs: new images, kept images; then those of parts."""
        config, kept = self.config, batches["replay"]
        yield self.taught(batches["source"], config.criterion, iteration)
        yield Terms(replay=config.weight * self.supervised(self.model(kept.image), kept, config.criterion))
        yield from self.part_graphs(batches, iteration)
