"""Images ordered by their distance to a reference, as a published ranking file.

A file is a JSON list, nearest first, of ``image`` (path below the data set), ``val_set`` (false), ``gap`` (earth
mover's distance in bins, mean over all neurons) and ``gap_LAYER`` for each layer; ``segue.data.buckets.read_ranking``
reads it, and a following stage takes it as ``follow.rank.file`` with ``by: gap``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.data.dataset import Dataset
from segue.files import write_json
from segue.gap.between import ImageSet
from segue.gap.distances import ImageDistances, image_distances
from segue.gap.fingerprint import Histogram
from segue.gap.networks import Extractor

COLUMN = "gap"


@dataclass(frozen=True)
class Ranked:
    """Distances of images to a reference; ``images`` are their paths, in the order of the data set."""

    images: tuple[str, ...]
    distances: ImageDistances

    @property
    def order(self) -> list[int]:
        """Positions, nearest first; equal ones as they came."""
        numbers = self.distances.numbers.tolist()
        return sorted(range(len(numbers)), key=numbers.__getitem__)

    def records(self) -> list[dict[str, Any]]:
        """What a ranking file lists."""
        layers = {f"{COLUMN}_{name}": values.tolist() for name, values in self.distances.layers.items()}
        numbers = self.distances.numbers.tolist()
        return [
            {"image": self.images[i], "val_set": False, COLUMN: numbers[i], **{k: v[i] for k, v in layers.items()}}
            for i in self.order
        ]

    def write(self, path: Path) -> None:
        """Write the ranking file, whole or not at all."""
        write_json(path, self.records())


def rank_images(extractor: Extractor, reference: Histogram, images: ImageSet) -> Ranked:
    """Earth mover's distance of every image to a reference with ranges, one pass; only numbers are kept.

    A single image has no normal form (one mean, no variance), so NFD and FD of images do not exist. ``GapError`` as
    :func:`segue.gap.distances.image_distances`.
    """
    found = image_distances(extractor.probe, reference, images.batches(extractor))
    return Ranked(tuple(_path(images.dataset, i) for i in images.indices), found)


def _path(dataset: Dataset, index: int) -> str:
    file = dataset.files(index)[0]
    return file.path if file is not None else dataset.ids[index]
