"""Settings of labels that models make of images (``pseudo_labels``)."""

from __future__ import annotations

from pydantic import Field

from segue.settings import Settings


class PseudoLabelConfig(Settings):
    """How models label images for training (FDA, Yang & Soatto, CVPR 2020, section 3.3; official code)."""

    models: tuple[str, ...] = Field(min_length=1)
    """Earlier stages, run folders or model files; the mean of their probabilities decides."""
    quantile: float = Field(0.66, ge=0, le=1)
    """Share of each class's pixels, from the least confident on, that stays without a label (0.66 in FDA)."""
    cap: float = Field(0.9, gt=0, le=1)
    """No class asks for more confidence than this (0.9 in FDA)."""
