"""Scores models without training any: one on another domain, or several by their mean probability.

With the three models of FDA's betas as references this is its multi-band transfer (Yang & Soatto, CVPR 2020, section
3.2): probabilities are averaged, not logits. The stage's ``references`` say which models.
"""

from __future__ import annotations

from collections.abc import Mapping

from segue.errors import UserError
from segue.labels import LabelSpace
from segue.methods.base import METHODS, Method, MethodConfig
from segue.models.base import SegModel


@METHODS.register("evaluation")
class Evaluation(Method):
    """The mean probability of all references is scored; nothing is trained."""

    needs = ()
    uses_labels = ()
    trains = False

    def __init__(
        self, config: MethodConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        if not references:
            raise UserError("method 'evaluation' scores its references and has none; name them under 'references'")
        for name, reference in references.items():
            if reference.num_classes != len(labels):
                raise UserError(
                    f"reference {name!r} has {reference.num_classes} classes, the recipe's label space "
                    f"{labels.name!r} has {len(labels)}; score it with labels of its own"
                )

    def scored(self) -> tuple[SegModel, ...]:
        """All references, in the recipe's order."""
        return tuple(self.references.values())
