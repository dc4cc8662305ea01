"""Distance to a frozen foundation transformer: the student's deepest map, projected, resembles the transformer's.

Englert et al., "VFM-UDA++", 2025. A projection (1x1 convolution to ``expansion`` times the channels, layer norm, GELU,
1x1 convolution) brings the map to the transformer's channels and grid; the distance of two vectors is 0.1 smooth L1,
the mean over channels, and 0.9 (1 - cosine), its mean is over all that is picture, whatever its class. The source term
shares the source graph, the target term has a graph of its own where the host shows no target. Not here: the weak
jitter of the student's images. The transformer is no part of what is saved; a resumed run reads its file again. Knobs
that matter: ``encoder``, ``weights``, ``source_weight``, ``target_weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import Batches, Method, Terms
from segue.methods.levels import outline
from segue.methods.parts.base import PARTS, Part, PartConfig, View, reference
from segue.models.base import Output, SegModel
from segue.models.build import build_model
from segue.ops.picture import picture_mean
from segue.ops.precision import full
from segue.ops.resize import bilinear

SMOOTH_SHARE = 0.1
"""Share of smooth L1 in the distance, the cosine has the rest (VFM-UDA++)."""
SMALLEST_PX = 32


class FoundationDistanceConfig(PartConfig):
    """Settings of ``foundation_distance``; defaults are those of VFM-UDA++."""

    source_weight: float = Field(0.1, ge=0)
    """Factor of the mean distance on source images; 0: none."""
    target_weight: float = Field(0.1, ge=0)
    """The same on target images."""
    encoder: str = "vit_large_patch14_reg4_dinov2"
    """The frozen transformer, a name of timm."""
    weights: str = "imagenet"
    """Its weights: ``imagenet`` (through timm), a file, or ``none`` (random, for tests)."""
    reference: str | None = None
    """A network of the stage's ``references`` in place of a transformer; its deepest map counts."""
    image_px: int = Field(406, ge=SMALLEST_PX)
    """Shorter side of the images that the frozen network sees; both sides are rounded to multiples of its patch."""
    expansion: int = Field(4, ge=1)
    """Channels inside the projection, as a multiple of the student's."""


class Frozen(nn.Module):
    """A network that moves with its owner and is neither trained nor saved with it."""

    def __init__(self, network: SegModel) -> None:
        super().__init__()
        self._held = (network.requires_grad_(False).eval(),)  # in a tuple: no submodule

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self._held[0]._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @property
    def network(self) -> SegModel:
        """The network itself."""
        return self._held[0]


@PARTS.register("foundation_distance")
class FoundationDistance(Part):
    """The deepest map stays close to a frozen foundation transformer's (VFM-UDA++)."""

    Config = FoundationDistanceConfig
    config: FoundationDistanceConfig

    def __init__(self, config: FoundationDistanceConfig, host: Method) -> None:
        super().__init__(config, host)
        self.views = ("source",) if config.source_weight else ()
        self.streams = ("target",) if config.target_weight else ()
        stages = outline(host.model).stages
        if not stages:
            raise UserError(
                f"part 'foundation_distance' needs encoder maps, model {host.model.config.name!r} gives none"
            )
        self.frozen = None if config.reference else Frozen(_transformer(config))
        given, wanted = stages[-1].shape[1], outline(self._network(host)).stages[-1].shape[1]
        self.projection = nn.Sequential(
            nn.Conv2d(given, config.expansion * given, 1),
            LayerNorm2d(config.expansion * given),
            nn.GELU(),
            nn.Conv2d(config.expansion * given, wanted, 1),
        )

    def networks(self) -> dict[str, nn.Module]:
        """The projection."""
        return {"foundation_projection": self.projection}

    def terms(self, view: View, host: Method) -> Terms | None:
        """The weighted distance on source images, and on target images where the host shows them."""
        weights = {"source": self.config.source_weight, "target": self.config.target_weight}
        if not weights.get(view.name):
            return None
        terms = Terms()
        terms[f"foundation_{view.name}"] = weights[view.name] * self.distance(view.batch, view.output, host)
        return terms

    def graphs(self, batches: Batches, host: Method, iteration: int) -> Iterator[Terms]:
        """The student on target images, under a host that does not show them."""
        if self.config.target_weight and "target" not in host.views:
            target = batches["target"]
            distance = self.distance(target, host.model(target.image), host)
            yield Terms(foundation_target=self.config.target_weight * distance)

    def distance(self, batch: Batch, output: Output, host: Method) -> Tensor:
        """Mean distance over the picture of each image, then over images; 0 where there is no picture."""
        network = self._network(host)
        height, width = batch.image.shape[-2:]
        ratio = self.config.image_px / min(height, width)
        size = (_side(height * ratio, network.multiple), _side(width * ratio, network.multiple))
        with torch.no_grad():
            kept = full(network.features(bilinear(batch.image, size))[-1])
        found = full(self.projection(output.stages[-1]))
        found = output.upsample(found, (kept.shape[-2], kept.shape[-1]))
        smooth = F.smooth_l1_loss(found, kept, reduction="none").mean(1)
        cosine = F.cosine_similarity(found, kept, dim=1)
        return picture_mean(SMOOTH_SHARE * smooth + (1 - SMOOTH_SHARE) * (1 - cosine), batch.pixel)

    def _network(self, host: Method) -> SegModel:
        if self.frozen is not None:
            return self.frozen.network
        return reference(host, self.config.reference or "", "foundation_distance")


def _transformer(config: FoundationDistanceConfig) -> SegModel:
    settings = {"name": "vit", "encoder": config.encoder, "weights": config.weights, "decoder": "linear"}
    try:
        return build_model(settings, 1)
    except UserError as error:
        raise UserError(f"part 'foundation_distance', its frozen network (encoder, weights): {error}") from error


def _side(side_px: float, multiple: int) -> int:
    return max(round(side_px / multiple), -(-SMALLEST_PX // multiple)) * multiple
