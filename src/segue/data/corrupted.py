"""A data set whose images are seen under one corruption (``data.NAME.corrupt``), a ladder or a slow drift of it.

What an image becomes depends on the image, its id, the severity and the seed alone, so every process, epoch and resumed
run sees the same picture; it is corrupted at the file's resolution, before any resize. Labels, ids and files are those
of the data set: what is counted of labels serves both, and nothing that is stored on disk holds a corrupted picture.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

from segue.data.corruptions import corrupt, names
from segue.data.dataset import Dataset, Sample
from segue.data.errors import DataError
from segue.data.view import View
from segue.labels import U8, nearest
from segue.policies import CorruptConfig


class Corrupted(View):
    """The images of ``inner``, corrupted; ``DataError`` for a corruption that there is none of."""

    def __init__(self, inner: Dataset, config: CorruptConfig) -> None:
        super().__init__(inner, range(len(inner)))
        if config.name not in names():
            raise DataError(f"data set {inner.name!r}: no corruption {config.name!r}{nearest(config.name, names())}")
        self.config = config

    def severity(self, index: int) -> int:
        """Severity of an image: the one that is set, or that of its share of a range."""
        given = self.config.severity
        if isinstance(given, int):
            return given
        first, last = given
        step = index * (abs(last - first) + 1) // len(self)
        return first + (step if last >= first else -step)

    def read_sample(self, index: int, labels: bool) -> Sample:
        """See :class:`Dataset`."""
        sample = super().read_sample(index, labels)
        return replace(sample, image=self._corrupted(sample.image, index))

    def read_scored(self, index: int) -> tuple[U8, U8]:
        """See :class:`Dataset`."""
        return Dataset.read_scored(self, index)

    def _image(self, index: int) -> U8:
        return self._corrupted(super()._image(index), index)

    def _corrupted(self, image: U8, index: int) -> U8:
        key = blake2b(f"{self.config.seed}/{self.ids[index]}".encode(), digest_size=8).digest()
        return corrupt(image, self.config.name, self.severity(index), int.from_bytes(key, "little"))
