"""Supervised training on labelled source images.

Knobs that matter: ``criterion`` (cross-entropy, focal, OHEM, class weights), the model's detail head.
"""

from __future__ import annotations

from collections.abc import Iterator

from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.ops.losses import CriterionConfig


class SupervisedConfig(MethodConfig):
    """Settings of ``supervised``."""

    criterion: CriterionConfig = CriterionConfig()


@METHODS.register("supervised")
class Supervised(Method):
    """Loss on the given labels of ``source``, for the main output and every head of the model."""

    Config = SupervisedConfig
    config: SupervisedConfig
    views = ("source",)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph: the supervised loss; then those of parts."""
        yield self.taught(batches["source"], self.config.criterion, iteration)
        yield from self.part_graphs(batches, iteration)
