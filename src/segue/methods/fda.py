"""FDA: train on source images that wear the low-frequency amplitudes of target images.

Yang & Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020, eq. 1-3. Knobs that matter:
``beta`` (half-width of the exchanged window as a share of the shorter side), ``entropy_weight``.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.ops.fourier import exchange
from segue.ops.losses import CriterionConfig, robust_entropy


class FDAConfig(MethodConfig):
    """Settings of ``fda``; defaults are the published ones (entropy from iteration 0)."""

    criterion: CriterionConfig = CriterionConfig()
    beta: float = Field(0.01, ge=0, lt=0.5)
    """0.01, 0.05 and 0.09 are the published values."""
    entropy_weight: float = Field(0.005, ge=0)
    """Weight of the robust entropy of target predictions; 0 leaves the target forward pass out."""
    eta: float = Field(2.0, gt=0)
    """Exponent of the robust entropy."""


@METHODS.register("fda")
class FDA(Method):
    """Supervised loss on exchanged source images plus robust entropy on target images."""

    Config = FDAConfig
    config: FDAConfig
    needs = ("source", "target")

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Two graphs: source in target style; target entropy."""
        source, target = batches["source"], batches["target"]
        styled = exchange(source.image, target.image, self.config.beta)
        yield Terms(source=self.supervised(self.model(styled), source, self.config.criterion))
        if self.config.entropy_weight:
            output = self.model(target.image)
            term = robust_entropy(output, target.pixel, self.config.eta)
            yield Terms(entropy=self.config.entropy_weight * term)
