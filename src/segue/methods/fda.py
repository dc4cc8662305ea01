"""FDA: train on source images that wear the low-frequency amplitudes of target images.

Yang & Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020, eq. 1-3. Knobs that matter:
``beta`` (half-width of the exchanged window as a share of the shorter side), ``entropy_weight``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field
from torch import Tensor

from segue.data.batch import Batch
from segue.errors import UserError
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.ops.entropy import robust_entropy
from segue.ops.fourier import exchange
from segue.ops.losses import CriterionConfig


class FDAConfig(MethodConfig):
    """Settings of ``fda``; defaults are the published ones (entropy from iteration 0)."""

    criterion: CriterionConfig = CriterionConfig()
    beta: float = Field(0.01, ge=0, lt=0.5)
    """0.01, 0.05 and 0.09 are the published values."""
    entropy_weight: float = Field(0.005, ge=0)
    """Weight of the robust entropy of target predictions; 0 leaves the target forward pass out."""
    entropy_from_iteration: int = Field(0, ge=0)
    """First iteration with the entropy term (0 in the published commands; 50000 is the code's default)."""
    eta: float = Field(2.0, gt=0)
    """Exponent of the robust entropy."""


def in_style_of(target: Batch, source: Batch, beta: float) -> Tensor:
    """Source images (N,3,H,W) with the target images' low frequencies; ``UserError`` when the sizes differ."""
    ours, theirs = (tuple(batch.image.shape[-2:]) for batch in (source, target))
    if ours != theirs:
        raise UserError(
            f"the Fourier exchange needs source and target images of one size, they are {ours[0]}x{ours[1]} and "
            f"{theirs[0]}x{theirs[1]}; set transform.crop, or data.NAME.size of both"
        )
    return exchange(source.image, target.image, beta)


@METHODS.register("fda")
class FDA(Method):
    """Supervised loss on exchanged source images plus robust entropy on target images."""

    Config = FDAConfig
    config: FDAConfig
    needs = ("source", "target")
    views = ("source",)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Two graphs: source in target style; target entropy. Then those of parts."""
        source, target = batches["source"], batches["target"]
        source = replace(source, image=in_style_of(target, source, self.config.beta))
        yield self.taught(source, self.config.criterion, iteration)
        if self.config.entropy_weight and iteration >= self.config.entropy_from_iteration:
            weight, eta = self.config.entropy_weight, self.config.eta
            yield Terms(entropy=weight * robust_entropy(self.model(target.image), target.pixel, eta))
        yield from self.part_graphs({"source": source, "target": target}, iteration)
