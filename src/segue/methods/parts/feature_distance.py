"""Feature distance on things: on source images the encoder stays close to what it was (Hoyer et al., "DAFormer", CVPR
2022, section 3.3, eq. 7 to 9).

The deepest map of the student is compared with that of a frozen network, in cells that one thing class fills. Published
with ImageNet weights, from which the student starts; here the frozen network is the stage's start, or a reference. It
shares the source graph, and where no cell qualifies it is 0. Knobs that matter: ``weight``, ``classes``.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from segue.errors import UserError
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import Method, Terms
from segue.methods.levels import outline
from segue.methods.parts.base import PARTS, Part, PartConfig, View, reference
from segue.models.base import SegModel
from segue.ops.cells import cell_classes
from segue.ops.picture import at_least_one
from segue.ops.precision import full


class FeatureDistanceConfig(PartConfig):
    """Settings of ``feature_distance``; defaults are DAFormer's."""

    weight: float = Field(0.005, ge=0)
    """Factor of the mean distance."""
    classes: str | tuple[str, ...] | None = "things"
    """Classes whose cells count, a view of the label space or names; null: every cell."""
    min_share: float = Field(0.75, ge=0, le=1)
    """A cell belongs to a class that has this share of its pixels."""
    reference: str | None = None
    """The frozen network, one of the stage's ``references``; unset: the student as the stage starts."""
    mean_over: Literal["image", "batch"] = "image"
    """The mean over an image's cells, then over images; or, as published, over all cells of the (micro-)batch."""


@PARTS.register("feature_distance")
class FeatureDistance(Part):
    """Encoder features of things stay close to a frozen encoder's (DAFormer)."""

    Config = FeatureDistanceConfig
    config: FeatureDistanceConfig
    views = ("source",)

    def __init__(self, config: FeatureDistanceConfig, host: Method) -> None:
        super().__init__(config, host)
        stages = outline(host.model).stages
        if not stages:
            raise UserError(f"part 'feature_distance' needs encoder maps, model {host.model.config.name!r} gives none")
        if config.reference is not None:
            _check_reference(config.reference, host, stages[-1])
        wanted = torch.zeros(256, dtype=torch.bool)
        wanted[_ids(config.classes, host.labels)] = True
        self.register_buffer("wanted", wanted, persistent=False)
        self.frozen = None if config.reference else _encoder(host.model)

    def train(self, mode: bool = True) -> FeatureDistance:
        """The frozen network never trains."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    def terms(self, view: View, host: Method) -> Terms | None:
        """The weighted mean distance on source images."""
        if view.name != "source":
            return None
        frozen = host.references[self.config.reference] if self.config.reference else self.frozen
        assert isinstance(frozen, SegModel)
        with torch.no_grad():
            kept = full(frozen.features(view.batch.image.to(frozen.mean.dtype))[-1])
        distance = torch.linalg.vector_norm(full(view.output.stages[-1]) - kept, dim=1)
        count = self._cells(view, (kept.shape[-2], kept.shape[-1])).to(distance)
        axes = (1, 2) if self.config.mean_over == "image" else (0, 1, 2)
        mean = ((distance * count).sum(axes) / at_least_one(count.sum(axes))).mean()
        return Terms(feature_distance=self.config.weight * mean)

    def _cells(self, view: View, grid: tuple[int, int]) -> Tensor:
        """Cells of the deepest map that count, (N,h,w) bool."""
        batch, padded = view.batch, view.output.padded
        if self.config.classes is None:
            picture = torch.where(batch.pixel, 0, IGNORE)
            return cell_classes(picture, padded, grid, 1, 0.5) == 0
        label = batch.label.masked_fill(~batch.pixel, IGNORE)
        wanted: Tensor = self.get_buffer("wanted")
        return wanted[cell_classes(label, padded, grid, len(wanted) - 1, self.config.min_share)]


def _ids(classes: str | tuple[str, ...] | None, labels: LabelSpace) -> list[int]:
    if classes is None:
        return []
    return list(labels.view(classes)) if isinstance(classes, str) else [labels.index(name) for name in classes]


def _check_reference(name: str, host: Method, deepest: Tensor) -> None:
    theirs = outline(reference(host, name, "feature_distance")).stages
    if not theirs or theirs[-1].shape != deepest.shape:
        raise UserError(
            f"part 'feature_distance' needs a reference with the model's encoder; the deepest map of {name!r} is "
            f"{tuple(theirs[-1].shape[1:]) if theirs else 'none'}, the model's {tuple(deepest.shape[1:])}"
        )


def _encoder(model: SegModel) -> SegModel:
    """A frozen copy without what comes after the encoder."""
    frozen = copy.deepcopy(model).requires_grad_(False)
    for name, _ in list(frozen.named_children()):
        if not frozen.encoder_prefix.startswith(f"{name}."):
            delattr(frozen, name)
    return frozen.eval()
