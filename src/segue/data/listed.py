"""The images of a data set that a JSON list names (``data.NAME.listed``), as the vDNA project's evaluation does."""

from __future__ import annotations

from pathlib import Path

from segue.data.buckets import ids_of_ranking, read_ranking
from segue.data.copies import spread
from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.view import View


def listed(inner: Dataset, path: Path, limit: int | None = None) -> View:
    """Those images of ``inner``, in its order, ``limit`` of them evenly spaced; ``DataError`` when one is not there."""
    ranking = read_ranking(path.expanduser())
    places = ids_of_ranking(ranking, inner)
    absent = [image for image, place in zip(ranking.images, places, strict=True) if place is None]
    if absent:
        raise DataError(
            f"data set {inner.name!r}, split {inner.split!r}: {len(absent)} of {len(places)} images that {path} lists "
            f"are not there, the first is {absent[0]}; fetch them, or take them off the list"
        )
    chosen = sorted({place for place in places if place is not None})
    return View(inner, chosen if limit is None else spread(chosen, limit))
