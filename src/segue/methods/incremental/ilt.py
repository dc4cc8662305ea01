"""ILT: learning without forgetting, and the encoder's features stay what they were.

Michieli and Zanuttigh, "Incremental Learning Techniques for Semantic Segmentation", ICCVW 2019, with both weights of
the comparisons of MiB (Cermelli et al., CVPR 2020): ``lwf`` plus 100 times the mean squared difference between the
deepest encoder maps (``Output.stages[-1]``, after its activation) of student and teacher, over channels and the cells
of the picture. It presumes a student that starts from the teacher.

Knobs that matter: ``weight`` and ``feature_weight``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS
from segue.methods.incremental.lwf import LwF, LwFConfig
from segue.methods.levels import outline
from segue.models.base import Output, SegModel
from segue.ops.picture import picture_mean
from segue.ops.precision import full


class ILTConfig(LwFConfig):
    """Settings of ``ilt``; defaults are those of MiB's comparisons."""

    feature_weight: float = Field(100.0, ge=0)
    """Factor of the mean squared difference of the deepest encoder maps."""


@METHODS.register("ilt")
class ILT(LwF):
    """Distillation of outputs and of encoder features."""

    Config = ILTConfig
    config: ILTConfig

    def __init__(
        self, config: ILTConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        mine, theirs = ([m.shape[1:] for m in outline(net).stages[-1:]] for net in (model, references["teacher"]))
        if not mine or mine != theirs:
            raise UserError(
                f"method 'ilt' compares the deepest encoder maps of model and teacher, which must be alike: "
                f"{model.config.name!r} has {[tuple(m) for m in mine]}, the teacher {[tuple(m) for m in theirs]}; "
                f"use the teacher's model, or method 'lwf'"
            )

    def kept(self, output: Output, remembered: Output, batch: Batch) -> dict[str, Tensor]:
        """Distillation, and the mean squared difference of the deepest maps."""
        features = (full(output.stages[-1]) - full(remembered.stages[-1])).square().mean(1)
        margin = (0, output.padded[1] - output.size[1], 0, output.padded[0] - output.size[0])
        picture = F.pad(batch.pixel.to(features), margin)
        terms = super().kept(output, remembered, batch)
        return {**terms, "features": self.config.feature_weight * picture_mean(features, picture)}
