"""Settings of labels that models make of images (``pseudo_labels``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from segue.settings import Settings


class ImageRules(Settings):
    """What the predictions on an image must be like, as a whole."""

    class_count_min: PositiveInt | None = None
    """Predicted classes."""
    entropy_max: PositiveFloat | None = None
    """Mean over the pixels, in nats."""
    confidence_min: float | None = Field(None, ge=0, le=1)
    """Mean of the highest probability."""


class TrustRules(Settings):
    """How far a label is trusted: by the views of its image that say the same, and by labels of a source."""

    flip: bool = True
    """Look at every view mirrored, too."""
    scales: tuple[PositiveFloat, ...] = (0.75, 1.25)
    """Look at the image at these factors of its size, too."""
    source: str | None = None
    """``NAME:split`` whose labels tell how often a label is right, given its class, the agreement of the views and its
    confidence; that is its weight. Best images that the models were not trained on. Default: no label of a source is
    read, and the weight is the share of the views that agree, which is no probability."""
    images: PositiveInt | None = 100
    """Use so many source images at most, evenly spaced; null: all."""

    @model_validator(mode="after")
    def _views(self) -> TrustRules:
        if not self.flip and not self.scales:
            raise ValueError("trust compares with other views: it needs flip, or scales")
        return self


class PseudoLabelConfig(Settings):
    """How models label images for training: a pixel has a label when it passes every rule.

    The defaults are FDA's (Yang & Soatto, CVPR 2020, section 3.3; official code). ``quantile: 0, entropy_max: 0.3`` is
    the rule of "Unsupervised Incremental Learning using vDNA" (DLL project, 2024).
    """

    models: tuple[str, ...] = Field(min_length=1)
    """Earlier stages, run folders or model files; the mean of their probabilities decides."""
    quantile: float = Field(0.66, ge=0, le=1)
    """Share of each class's pixels, from the least confident on, that stays without a label (0.66 in FDA); 0: none."""
    quantiles: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """The same share for single classes, by name."""
    cap: float = Field(0.9, gt=0, le=1)
    """No quantile asks for more confidence than this (0.9 in FDA)."""
    entropy_max: float | None = Field(None, ge=0)
    """A pixel of higher entropy, in nats, stays without a label (0.3 in the vDNA project). Default: off."""
    confidence_min: float | None = Field(None, ge=0, le=1)
    """A pixel whose highest probability is lower stays without a label. Default: off."""
    image: ImageRules = ImageRules()
    """An image that fails one of these has no label at all. Default: off."""
    trust: TrustRules | None = None
    """Weigh the loss of every pixel by how far its label is trusted (``{}``: with the defaults). Default: all alike."""
