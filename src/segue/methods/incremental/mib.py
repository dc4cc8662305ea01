"""MiB: what is unlabelled may be an old class, and what the teacher calls background may be a new one.

Cermelli et al., "Modeling the Background for Incremental Learning in Semantic Segmentation", CVPR 2020. With p the
student's softmax over all outputs, q the teacher's over the K old classes (background, b, among them), means over all
pixels I of the picture:

* unbiased cross-entropy (eq. 5): -log p_y of a new class y, -log sum_{c old} p_c of a pixel labelled b. As in the
  authors' code a label of any other old class counts as b. 255 is void, outside the sum and its count.
* unbiased distillation (eq. 7): -(1/K) sum_c q_c log r_c, r_b = p_b + sum_{c new} p_c and r_c = p_c else, at every
  pixel. (1/K and the weight 10 are the code's.)
* the outputs of new classes start as the background's (eq. 10; ``SegModel.grow_head``).

In a label space without background (treatment ``ignore``) 255 reads "one of the old classes". Cross-entropy is then
-log sum_{c old} p_c at 255, and all pixels of the picture are its count, as b's pixels are in |I| above. Distillation:
the teacher can name old classes alone, so q is conditional on "old", and so must the student's side be,
r_c = p_c / sum_{old} p, a softmax over the old outputs. It is taken where that condition holds, at 255, and divided by
the same |I|; in the published form every pixel counts, because a teacher can truly say b of a new class. The two terms
then complete each other: -log sum_{old} p - sum_c q_c log r_c = -sum_c q_c log p_c, which is what ``cil`` distils.
There is no background to start new outputs from (eq. 10), so they start at random there.

Knobs that matter: ``weight`` (10; 100 where steps bring a single class, as in VOC 15-1).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.labels import IGNORE
from segue.methods.base import METHODS, MethodConfig
from segue.methods.incremental import Distillation
from segue.models.base import Output
from segue.ops.incremental import Among, at_pixels, distillation, mean_over, old_as_one
from segue.ops.losses import segmentation


class MiBConfig(MethodConfig):
    """Settings of ``mib``; the default is the published one."""

    weight: float = Field(10.0, ge=0)
    """Factor of the unbiased distillation."""


@METHODS.register("mib")
class MiB(Distillation):
    """Unbiased cross-entropy and unbiased distillation."""

    Config = MiBConfig
    config: MiBConfig
    head = "background"

    def learnt(self, output: Output, batch: Batch) -> Tensor:
        """Cross-entropy on outputs of which the first is "one of the old classes"."""
        old = (batch.label < self.old) | self.unlabelled[batch.label]
        label = torch.where(batch.label == IGNORE, IGNORE, batch.label - self.old + 1).masked_fill(old, 0)
        count = batch.label_count if self.labels.background else batch.tally().sum()
        merged = old_as_one(output, self.old, (label.shape[-2], label.shape[-1]))
        return segmentation(merged, label, batch.weight, pixel=batch.pixel, denominator=count)

    def kept(self, output: Output, remembered: Output, batch: Batch) -> dict[str, Tensor]:
        """Distillation among the old outputs, or with the background as all that is not old."""
        size = (batch.label.shape[-2], batch.label.shape[-1])
        published = self.labels.background is not None
        among: Among = "background" if published else "old"
        values = at_pixels(output, remembered, size, lambda z, t: distillation(z, t, among))
        chosen = batch.pixel if published else batch.pixel & self.unlabelled[batch.label]
        return {"distillation": self.config.weight / self.old * mean_over(values, chosen, batch.tally().sum())}
