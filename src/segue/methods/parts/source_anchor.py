"""The student stays a source model without source images: the anchor of the source model stands for them.

*Samples*: cross-entropy of the student's own classifier on embeddings drawn from the normal distribution of every class
in the anchor (as SLCA aligns its classifier, Zhang et al., ICCV 2023). It holds the classifier to the source's classes
while the encoder moves. *Pull*: the mean embedding of the sure target cells of each class stays near the anchor's mean,
squared distance in units of the spread within classes: it holds the encoder, and needs domains whose embeddings should
agree. *Restore*: after a step the weights that moved farthest from the source's are set back (the restore of CoTTA,
Wang et al., CVPR 2022, which draws them at random). Knobs that matter: ``weight``, ``restore_percent``.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segue.errors import UserError
from segue.methods.base import Method, Terms
from segue.methods.parts.base import PARTS, Part, PartConfig, View, reference
from segue.models.anchor import Anchor
from segue.models.growth import convolutions
from segue.ops.precision import full

NAME = "source_anchor"
WRAPPED = "base."
VIEWS = ("target", "mixed")
"""Where it joins: the first that the host has."""


class SourceAnchorConfig(PartConfig):
    """Settings of ``source_anchor``."""

    weight: float = Field(0.1, ge=0)
    """Factor of the cross-entropy on sampled embeddings; 0: none."""
    samples: int = Field(1024, ge=1)
    """Embeddings in an iteration."""
    classes: Literal["even", "counts"] = "even"
    """All known classes as often, or as often as the source images showed them."""
    pull: float = Field(0.0, ge=0)
    """Factor of the distance between the class means of sure target cells and the anchor's; 0: none."""
    confidence: float = Field(0.9, ge=0, lt=1)
    """Softmax above which a cell is sure, for ``pull``."""
    restore_percent: float = Field(0.0, ge=0, le=100)
    """Share of the trained weights that is set back after each step, those farthest from the source's; 0: none."""
    reference: str = "source"
    """The network of the stage's ``references`` whose anchor (else the student's own) and weights are meant."""


@PARTS.register("source_anchor")
class SourceAnchor(Part):
    """The classifier, embeddings or weights stay near the source model's, by its anchor."""

    Config = SourceAnchorConfig
    config: SourceAnchorConfig

    def __init__(self, config: SourceAnchorConfig, host: Method) -> None:
        super().__init__(config, host)
        offered = [view for view in VIEWS if view in host.views]
        self.views = (*offered, *VIEWS)[:1] if config.weight or config.pull else ()
        self.anchor = _anchor_of(config, host) if self.views else None
        if self.anchor is not None:
            _check_classifier(host, self.anchor)
        self.home = _home(config, host) if config.restore_percent else {}

    def terms(self, view: View, host: Method) -> Terms | None:
        """The weighted terms of the target's graph, or else of the mixed images'."""
        if view.name not in self.views or self.anchor is None:
            return None
        terms = Terms()
        if self.config.weight:
            terms["anchor"] = self.config.weight * self.sampled(self.anchor, view, host)
        if self.config.pull:
            terms["anchor_pull"] = self.config.pull * self.pulled(self.anchor, view)
        return terms

    def sampled(self, anchor: Anchor, view: View, host: Method) -> Tensor:
        """Mean cross-entropy of the classifier on sampled embeddings."""
        generator = host.draw(NAME, view.iteration)
        share = anchor.known.double() if self.config.classes == "even" else anchor.count.double()
        classes = torch.multinomial(share, self.config.samples, replacement=True, generator=generator)
        rows = anchor.sample(classes, generator).to(view.output.embedding)
        logits = full(_classifier(host)(rows[:, :, None, None]))  # a transposed convolution makes several of one cell
        return F.cross_entropy(logits, classes.to(logits.device).view(-1, 1, 1).expand(-1, *logits.shape[-2:]))

    def pulled(self, anchor: Anchor, view: View) -> Tensor:
        """Mean, over classes that have sure cells, of the squared distance of class means, in spreads."""
        output = view.output
        grid = (output.embedding.shape[-2], output.embedding.shape[-1])
        with torch.no_grad():
            margin = (0, output.padded[1] - output.size[1], 0, output.padded[0] - output.size[0])
            picture = F.adaptive_avg_pool2d(F.pad(view.batch.pixel.float(), margin).unsqueeze(1), grid).squeeze(1)
            probability = F.adaptive_avg_pool2d(full(output.to_classes()).softmax(1), grid)
            value, guess = probability.max(1)
            known = F.pad(anchor.known, (0, probability.shape[1] - len(anchor.known))).to(guess.device)
            rows = ((value > self.config.confidence) & (picture > 0.5) & known[guess]).flatten()
        cells = full(output.embedding).permute(0, 2, 3, 1).flatten(0, 2)[rows]
        classes = guess.flatten()[rows]
        count = torch.bincount(classes, minlength=len(anchor.known)).to(cells)
        total = cells.new_zeros(len(count), cells.shape[1]).index_add(0, classes, cells)
        mean = total / count.clamp_min(1).unsqueeze(1)
        distance = ((mean - anchor.mean.to(mean)) / anchor.spread.to(mean)).square().mean(1)
        return (distance * (count > 0)).sum() / (count > 0).sum().clamp_min(1)

    @torch.no_grad()
    def after_step(self, host: Method, iteration: int) -> None:
        """Set back what moved farthest."""
        trained = {n: p for n, p in host.model.named_parameters() if n in self.home and p.requires_grad}
        if not trained:
            return
        moved = {name: (p - self.home[name].to(p)).abs() for name, p in trained.items()}
        flat = torch.cat([m.flatten() for m in moved.values()])
        number = int(len(flat) * self.config.restore_percent / 100)
        if not number:
            return
        least = flat.kthvalue(len(flat) - number + 1).values
        for name, parameter in trained.items():
            parameter.copy_(torch.where(moved[name] >= least, self.home[name].to(parameter), parameter))


def _anchor_of(config: SourceAnchorConfig, host: Method) -> Anchor:
    source = host.references.get(config.reference)
    anchor = (source.anchor if source is not None else None) or host.model.anchor
    if anchor is None:
        raise UserError(
            f"part {NAME!r} needs an anchor, and neither reference {config.reference!r} nor the model has one: make it "
            f"from labelled source images with segue anchor MODEL --data NAME:train"
        )
    if anchor.classes != host.labels.classes[: len(anchor.classes)]:
        raise UserError(f"part {NAME!r}: the anchor is of other classes than {host.labels.name!r}: make it again")
    return anchor


def _home(config: SourceAnchorConfig, host: Method) -> dict[str, Tensor]:
    """The source's value of every parameter of the student that it has too; a wrapper's base counts as the network."""
    source = dict(reference(host, config.reference, NAME).named_parameters())
    found: dict[str, Tensor] = {}
    for name, parameter in host.model.named_parameters():
        value = source.get(name, source.get(name.removeprefix(WRAPPED)))
        if value is not None and value.shape == parameter.shape:
            found[name] = value
    return found


def _classifier(host: Method) -> nn.Module:
    return next(iter(host.model.classifiers().values()))


def _check_classifier(host: Method, anchor: Anchor) -> None:
    for conv in convolutions(_classifier(host)):
        around = conv.kernel_size != ((1, 1) if isinstance(conv, nn.Conv2d) else tuple(conv.stride))
        if around or conv.in_channels != anchor.mean.shape[1]:
            raise UserError(
                f"part {NAME!r} needs a classifier that looks at one cell of {anchor.mean.shape[1]} channels, as the "
                f"anchor has them; that of model {host.model.config.name!r} has {conv.in_channels} channels and a "
                f"kernel of {conv.kernel_size[0]}x{conv.kernel_size[1]}"
            )
