"""Some images of a data set as a data set of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from segue.data.dataset import Dataset, Sample
from segue.data.store import File
from segue.labels import U8, LabelSpace


class View(Dataset):
    """Images ``places`` of another data set, in their order; subclasses change labels, to those of ``space``."""

    def __init__(self, inner: Dataset, places: Sequence[int], space: LabelSpace | None = None) -> None:
        super().__init__(inner.name, space or inner.space, [inner.ids[p] for p in places], inner.size)
        self._inner = inner
        self._places = list(places)
        self.split = inner.split
        self.root = inner.root
        self.labelled = inner.labelled
        missing = set(inner.unlabelled_ids)
        self.unlabelled_ids = [image_id for image_id in self.ids if image_id in missing]
        self.own_label_size = inner.own_label_size
        self.coverage = inner.coverage
        self.label_map = inner.label_map

    def files(self, index: int) -> tuple[File | None, File | None]:
        """Image file and label file of the inner data set."""
        return self._inner.files(self._places[index])

    def read_label(self, index: int) -> U8:
        """(H, W) uint8 train ids at the label's own resolution, 255 = not labelled. ``DataError`` names the file."""
        return self._changed(self._inner.read_label(self._places[index]), index)

    def read_file_ids(self, index: int) -> npt.NDArray[np.generic]:
        """(H, W) numbers as the label file holds them. ``DataError`` names the file."""
        return self._inner.read_file_ids(self._places[index])

    def label_stamp(self, index: int) -> tuple[str, str] | None:
        """See :class:`Dataset`."""
        return self._inner.label_stamp(self._places[index])

    def read_sample(self, index: int, labels: bool) -> Sample:
        """See :class:`Dataset`."""
        sample = self._inner.read_sample(self._places[index], labels)
        return sample if sample.label is None else replace(sample, label=self._changed(sample.label, index))

    def read_scored(self, index: int) -> tuple[U8, U8]:
        """See :class:`Dataset`."""
        image, label = self._inner.read_scored(self._places[index])
        return image, self._changed(label, index)

    def describe(self, index: int) -> str:
        """The image, for messages."""
        return self._inner.describe(self._places[index])

    def colorize(self, label: U8) -> U8:
        """(H, W) train ids to an (H, W, 3) RGB picture."""
        return self._inner.colorize(label)

    def _image(self, index: int) -> U8:
        return self._inner._image(self._places[index])

    def _label_name(self, image_id: str) -> str:
        return self._inner._label_name(image_id)

    def _changed(self, label: U8, index: int) -> U8:
        return label
