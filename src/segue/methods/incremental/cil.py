"""CIL: new classes from their own labels, old ones by distillation where nothing is labelled, no old data.

Klingner et al., "Class-Incremental Learning for Semantic Segmentation Re-Using Neither Old Data Nor Old Labels", ITSC
2020. With L the pixels labelled in this step, U the unlabelled ones, q the softmax of teacher / T over the old classes,
p_T the student's softmax of z / T over all outputs, E the teacher's entropy in bits:

    (1/|L|) sum_L -log p_y  +  (T^2/|U|) sum_U (1 + lambda E) * -sum_{c old} q_c log p_T,c

U is label 255. In a label space with a background it is label 0, whose old or new meaning is unknown as well; 0 is then
no label of L, background is one of the old classes that q speaks of, and 255 is in neither sum. |L| and |U| are counts
of the global batch. Unlike the published code: a batch without labelled, or without unlabelled, pixels has a term of 0,
padding is in neither set, and lambda and T are real numbers.

Knobs that matter: ``entropy_weight`` (lambda); the rest are the ablations of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import METHODS, MethodConfig
from segue.methods.incremental import Distillation
from segue.models.base import Output, SegModel
from segue.ops.incremental import at_pixels, distillation, mean_over
from segue.ops.losses import CriterionConfig


class CILConfig(MethodConfig):
    """Settings of ``cil``; defaults are the published ones."""

    criterion: CriterionConfig = CriterionConfig()
    temperature: float = Field(1.0, gt=0)
    """T of both softmaxes in the distillation."""
    entropy_weight: float = Field(1.0, ge=0)
    """lambda_GS: by how much each bit of the teacher's entropy raises a pixel's weight; 0: plain distillation."""
    pixels: Literal["unlabelled", "not_new", "old", "new"] = "unlabelled"
    """Where to distil: U, or, after Michieli and Zanuttigh (ICCVW 2019), by what is labelled: anything but a new class,
    an old class, a new class."""
    factor: Literal["squared", "linear"] = "squared"
    """Factor of the distillation: T^2, or T as in the variants after Michieli and Zanuttigh."""


@METHODS.register("cil")
class CIL(Distillation):
    """Cross-entropy where new classes are labelled, entropy-weighted distillation where nothing is."""

    Config = CILConfig
    config: CILConfig
    taught_ids: Tensor
    distilled_ids: Tensor

    def __init__(
        self, config: CILConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        ids = torch.arange(IGNORE + 1)
        taught = (ids != IGNORE) & ~self.unlabelled
        sets = {
            "unlabelled": self.unlabelled,
            "not_new": self.unlabelled | (ids < self.old),
            "old": taught & (ids < self.old),
            "new": taught & (ids >= self.old),
        }
        self.register_buffer("taught_ids", taught, persistent=False)
        self.register_buffer("distilled_ids", sets[config.pixels], persistent=False)

    def learnt(self, output: Output, batch: Batch) -> Tensor:
        """Cross-entropy on L."""
        chosen, count = self.chosen(batch, self.taught_ids)
        label = batch.label.masked_fill(~chosen, IGNORE)
        return self.supervised(output, replace(batch, label=label, label_count=count), self.config.criterion)

    def kept(self, output: Output, remembered: Output, batch: Batch) -> dict[str, Tensor]:
        """Distillation on U, or where ``pixels`` says."""
        config, size = self.config, (batch.label.shape[-2], batch.label.shape[-1])

        def loss(z: Tensor, t: Tensor) -> Tensor:
            return distillation(z, t, "all", config.temperature, config.entropy_weight)

        power = 2 if config.factor == "squared" else 1
        mean = mean_over(at_pixels(output, remembered, size, loss), *self.chosen(batch, self.distilled_ids))
        return {"distillation": config.temperature**power * mean}
