"""Re-estimated batch-norm statistics: the cheapest adaptation, and the baseline every other one must beat.

Running means and variances are replaced by the cumulative average over unlabelled target batches; no weight changes
(AdaBN, Li et al., Pattern Recognition 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from segue.errors import UserError
from segue.methods.base import METHODS, Batches, Method, Terms
from segue.models.trained import BATCH_NORM


@METHODS.register("batch_statistics")
class BatchStatistics(Method):
    """Forward target images in training mode, without gradients."""

    needs = ("target",)
    uses_labels = ()

    def prepare(self, streams: Mapping[str, object]) -> None:
        """Forget the source statistics."""
        super().prepare(streams)
        norms = [m for m in self.model.modules() if isinstance(m, BATCH_NORM)]
        if not norms:
            raise UserError(f"method 'batch_statistics' needs batch norm, model {self.model.config.name!r} has none")
        for module in norms:
            module.reset_running_stats()

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """No loss: the forward pass updates the statistics."""
        for module in self.model.modules():
            if isinstance(module, BATCH_NORM):
                module.momentum = None  # cumulative average
        with torch.no_grad():
            self.model(batches["target"].image)
        yield Terms()
