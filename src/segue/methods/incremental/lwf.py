"""Learning without forgetting: labels, and the old outputs stay what the teacher says, at every pixel.

Li and Hoiem, ECCV 2016, in the form and with the weight of the comparisons of MiB (Cermelli et al., CVPR 2020): cross-
entropy on what is labelled plus 100 times the mean, over pixels and old classes, of -q_c log r_c, with q the teacher's
softmax and r the student's over its old outputs alone. All pixels of the picture count, labelled or not, and the
treatment of unlabelled pixels changes cross-entropy alone: 0 is a class there where the label space has a background.

The one knob that matters: ``weight``.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.methods.base import METHODS, MethodConfig
from segue.methods.incremental import Distillation
from segue.models.base import Output
from segue.ops.incremental import at_pixels, distillation, mean_over
from segue.ops.losses import CriterionConfig


class LwFConfig(MethodConfig):
    """Settings of ``lwf``; defaults are those of MiB's comparisons."""

    criterion: CriterionConfig = CriterionConfig()
    weight: float = Field(100.0, ge=0)
    """Factor of the distillation, a mean over pixels and old classes."""


@METHODS.register("lwf")
class LwF(Distillation):
    """Cross-entropy on the labels, distillation of the old outputs among themselves everywhere."""

    Config = LwFConfig
    config: LwFConfig

    def learnt(self, output: Output, batch: Batch) -> Tensor:
        """Cross-entropy on the labels."""
        return self.supervised(output, batch, self.config.criterion)

    def kept(self, output: Output, remembered: Output, batch: Batch) -> dict[str, Tensor]:
        """Distillation of the old outputs among themselves."""
        size = (batch.label.shape[-2], batch.label.shape[-1])
        values = at_pixels(output, remembered, size, lambda z, t: distillation(z, t, "old"))
        mean = mean_over(values, batch.pixel, batch.tally().sum()) / self.old
        return {"distillation": self.config.weight * mean}
