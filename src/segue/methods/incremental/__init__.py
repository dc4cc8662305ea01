"""Methods of class-incremental steps, and what those share that learn from the model of the step before.

What a step does not teach is unlabelled: 255 (treatment ``ignore``), or 0 where the label space has a background
(treatment ``background``, ``LabelSpace.background``; 255 then is void and enters no term).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from segue.data.batch import Batch
from segue.errors import UserError
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import Batches, Method, MethodConfig, Terms
from segue.methods.parts.base import View
from segue.models.base import Output, SegModel


def at_rest(teacher: SegModel) -> SegModel:
    """A frozen model made ready to be distilled from: evaluation mode, in the memory format that is fastest."""
    # Channels last: ERFNet's forward pass takes 0.94 s instead of 1.08 s (six crops of 192x640, one CPU thread).
    return teacher.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def recalled(teacher: SegModel, batch: Batch) -> Output:
    """A frozen model's output on the images that the student sees, without a graph."""
    output: Output = teacher(batch.image.to(teacher.mean.dtype))
    return replace(output, logits=output.logits.contiguous())  # as the student's: losses read both side by side


class Distillation(Method):
    """A method that distils ``references: {teacher: EARLIER}``, a model of the first classes of the label space.

    ``old``: how many classes the teacher knows. ``unlabelled`` (256,) bool: the train ids that mean "not taught here".
    """

    views = ("source",)
    unlabelled: Tensor

    def __init__(
        self, config: MethodConfig, model: SegModel, labels: LabelSpace, references: Mapping[str, SegModel]
    ) -> None:
        super().__init__(config, model, labels, references)
        if "teacher" not in references:
            raise UserError(
                f"method {config.name!r} keeps what the model of the step before knows and has none: give the stage "
                f"'references: {{teacher: EARLIER_STAGE}}'"
            )
        self.old = references["teacher"].num_classes
        if self.old > len(labels):
            raise UserError(
                f"method {config.name!r} cannot keep {self.old} classes of its teacher in a step that has "
                f"{len(labels)}: the teacher must be of an earlier step of the same task"
            )
        at_rest(references["teacher"])
        ids = torch.arange(IGNORE + 1)
        self.register_buffer("unlabelled", ids == (IGNORE if labels.background is None else 0), persistent=False)

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """One graph: what is learnt, and what holds on to what the teacher knows; then those of parts."""
        batch = batches["source"]
        remembered = self.remembered(batch)
        output = self.model(batch.image)
        terms = Terms(source=self.learnt(output, batch))
        terms.update(self.kept(output, remembered, batch))
        yield self.joined(terms, View("source", batch, output, iteration))
        yield from self.part_graphs(batches, iteration)

    def learnt(self, output: Output, batch: Batch) -> Tensor:
        """The loss on the labels of the step."""
        raise NotImplementedError

    def kept(self, output: Output, remembered: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms that hold on to what the teacher knows."""
        raise NotImplementedError

    def remembered(self, batch: Batch) -> Output:
        """The teacher's output on the images that the student sees; without a graph, in evaluation mode."""
        return recalled(self.references["teacher"], batch)

    def chosen(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where the picture's label is one of ``ids`` (256,) bool: (N,H,W), and their number in the global batch."""
        return ids[batch.label] & batch.pixel, (batch.tally() * ids).sum()
