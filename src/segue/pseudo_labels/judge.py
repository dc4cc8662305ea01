"""Which pixels of a prediction may keep their label, and how far it is trusted.

Rules combine: entropy and confidence of the pixel and of the image refuse at once, quantiles after all images are
predicted (:func:`segue.pseudo_labels.thresholds.published`), over all pixels, refused ones too. Entropy is in nats, of
the mean probabilities; the limits are included. ``entropy_max: 0.3`` alone is the rule of "Unsupervised Incremental
Learning using vDNA" (DLL project, 2024), whose code takes one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from segue.data.buckets import ImageFilter
from segue.data.copies import spread
from segue.data.dataset import Dataset
from segue.data.images import Size
from segue.data.statistics import histogram
from segue.errors import UserError
from segue.labels import U8, LabelSpace
from segue.models.base import SegModel
from segue.ops.decision import Decision, decide
from segue.pseudo_labelling import PseudoLabelConfig
from segue.pseudo_labels.thresholds import encode
from segue.pseudo_labels.trust import Trust, agreement
from segue.pseudo_labels.write import Writer
from segue.scoring.inference import Answer, ask, together
from segue.scoring.protocols import NATIVE, Protocol
from segue.scoring.reading import ahead


class Judge:
    """The rules of ``config``; ``source``: the images of ``trust.source``, where that is set.

    ``protocol`` is that by which models are asked, ``quantiles`` those of the classes, ``trust`` what :meth:`learn` has
    counted, None where labels have no weights. ``LabelError`` for a class that there is not, ``DataError`` for a source
    image without label, ``UserError`` for a source of other classes, ``ValueError`` without the source.
    """

    def __init__(self, labels: LabelSpace, config: PseudoLabelConfig, source: Dataset | None) -> None:
        self.quantiles = [config.quantile] * len(labels)
        for name, share in config.quantiles.items():
            self.quantiles[labels.index(name)] = share
        self.protocol = NATIVE
        self._labels, self._config = labels, config
        self._filter = ImageFilter(**config.image.model_dump())
        self.trust: Trust | None = None
        self._source: Dataset | None = None
        if (given := config.trust) is not None:
            self.protocol = replace(NATIVE, scales=(1.0, *given.scales), flip=given.flip)
            self.trust = Trust(len(labels), len(self.protocol.scales) * (1 + given.flip) - 1)
            self._source = _checked(source, given.source, labels)
            size = len(source) if source is not None else 0
            self._shown = spread(range(size), given.images or size)

    def settings(self) -> dict[str, Any]:
        """What labels depend on, in plain containers."""
        settings = self._config.model_dump(mode="json", exclude={"models": True, "trust": {"images"}})
        if self._source is not None:
            ids = [self._source.ids[index] for index in self._shown]
            settings["trust"] |= {"size": self._source.size, "ids": ids}
        return settings

    def learn(self, models: Sequence[SegModel]) -> None:
        """Count how often predictions on the source, at the size of its labels, are right; models are in eval mode."""
        if self._source is None or self.trust is None:
            return
        for image, label in ahead(self._source.read_scored, self._shown):
            (answers,) = views(models, [image], self.protocol, (label.shape[0], label.shape[1]))
            found = whole(answers[0])
            classes = found.winner.cpu().numpy()
            self.trust.add(classes, encode(found.confidence), _agreement(classes, answers), label)

    def learned(self) -> dict[str, Any]:
        """For the index: which source labels were read, and what they told."""
        if self._source is None or self.trust is None:
            return {}
        told = self.trust.told(self._labels.classes)
        return {"source_labels": {"data": self._source.name, "split": self._source.split, **told}}

    def pass_on(self, writer: Writer, image_id: str, answers: Sequence[Answer]) -> None:
        """Hand a prediction, the first of ``answers``, to ``writer``; the others are those to other views."""
        found = whole(answers[0])
        classes = found.winner.cpu().numpy()
        weight = None
        if self.trust is not None:
            weight = self.trust.weights(classes, encode(found.confidence), _agreement(classes, answers))
        entropy = float(found.entropy.mean())
        refused = self._refused(found, classes, entropy)
        writer.add(image_id, classes, found.confidence, entropy=entropy, refused=refused, weight=weight)

    def _refused(self, found: Decision, classes: U8, entropy: float) -> Any:
        given = self._config
        if self._filter != ImageFilter():
            confidence = float(found.confidence.mean())
            count = np.count_nonzero(histogram(classes))
            values = {"class_count": count, "entropy": entropy, "confidence": confidence}
            if not self._filter.mask({k: np.array([v], np.float64) for k, v in values.items()}, 1)[0]:
                return np.ones(classes.shape, np.bool_)
        masks = []
        if given.entropy_max is not None:
            masks.append(found.entropy > given.entropy_max)
        if given.confidence_min is not None:
            masks.append(found.confidence < given.confidence_min)
        return torch.stack(masks).any(0).cpu().numpy() if masks else None


def views(models: Sequence[SegModel], pictures: Sequence[U8], protocol: Protocol, size: Size) -> list[list[Answer]]:
    """Of each picture (H, W, 3), the answers to its views by ``protocol``'s scales and flip, the plain one first."""
    asked = [ask(model, pictures, protocol, size) for model in models]
    return [
        [
            together([replace(answer, terms=(answer.terms[view],)) for answer in own])
            for view in range(len(own[0].terms))
        ]
        for own in zip(*asked, strict=True)
    ]


def whole(answer: Answer) -> Decision:
    """(H, W) uint8 most likely train ids, their probabilities and the entropy of an answer, where the networks are."""
    device = answer.terms[0].values.device
    classes = torch.empty(answer.size, dtype=torch.uint8, device=device)
    confidence, entropy = (torch.empty(answer.size, device=device) for _ in range(2))
    for tile in answer.tiles():
        found = decide(tile.values, probabilities=tile.probabilities)
        classes[tile.place] = found.winner.to(torch.uint8)
        confidence[tile.place], entropy[tile.place] = found.confidence, found.entropy
    return Decision(classes, confidence, entropy)


def _agreement(classes: U8, answers: Sequence[Answer]) -> U8:
    return agreement(classes, [answer.ids() for answer in answers[1:]])


def _checked(source: Dataset | None, name: str | None, labels: LabelSpace) -> Dataset | None:
    if (name is None) != (source is None):
        raise ValueError(f"trust.source is {name!r}, its data set is {source}")
    if source is not None:
        source.require_labels()
        if source.space.classes != labels.classes:
            raise UserError(f"trust.source {name!r} is read in {source.space.name!r}, the model's is {labels.name!r}")
    return source
