"""Some labelled images of a data set, as scoring reads them."""

from __future__ import annotations

from collections.abc import Sequence

from segue.data.dataset import Dataset
from segue.labels import U8


class Subset:
    """The labelled images ``first, first + step, ...`` of a data set, at most ``count`` of them."""

    def __init__(self, dataset: Dataset, first: int = 0, step: int = 1, count: int | None = None) -> None:
        without = set(dataset.unlabelled_ids)
        labelled = [i for i, name in enumerate(dataset.ids) if name not in without]
        self._dataset = dataset
        self._indices = labelled[first::step][:count]
        self.name = dataset.name
        self.ids: Sequence[str] = [dataset.ids[i] for i in self._indices]

    def read_scored(self, index: int) -> tuple[U8, U8]:
        """See :meth:`segue.data.dataset.Dataset.read_scored`."""
        return self._dataset.read_scored(self._indices[index])
