"""Pseudo-labels: models label images for training, where they are sure enough."""

from __future__ import annotations

from segue.pseudo_labels.generate import generate
from segue.pseudo_labels.thresholds import Histogram, published
from segue.pseudo_labels.write import Writer, require_space

__all__ = ["Histogram", "Writer", "generate", "published", "require_space"]
