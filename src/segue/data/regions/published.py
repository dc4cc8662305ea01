"""Superpixels that others made, in place of ours: D2ADA's ``superpixel`` folders (Wu et al., ECCV 2022).

Their ids stay as they are, so that lists of bought regions keep their meaning. They may have gaps: a cluster that lost
all its pixels. Names are those of its preprocessing: ``<split>/<image>_superpixel.png`` beside Cityscapes,
``<image>.png`` for GTA5 and SYNTHIA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segue.data.errors import DataError
from segue.data.images import Size, read_ids
from segue.data.regions.slic import U16
from segue.settings import Settings

NAMES = ("{split}/{id}_superpixel.png", "{id}_superpixel.png", "{split}/{id}.png", "{id}.png")


class PublishedConfig(Settings):
    """Where regions came from that were not made here."""

    published: str
    """Name of their folder."""


class Published:
    """The PNGs in ``folder``, or in its ``superpixel``, of images of a split.

    ``DataError`` when there is no such folder, or no PNG of an image.
    """

    def __init__(self, folder: Path, split: str, ids: Sequence[str]) -> None:
        if not folder.is_dir():
            raise DataError(f"no folder {folder} to take published superpixels from")
        inner = folder / "superpixel" if (folder / "superpixel").is_dir() else folder
        found = {i: _first([inner / name.format(split=split, id=i) for name in NAMES]) for i in ids}
        if missing := [i for i, path in found.items() if path is None]:
            names = ", ".join(name.format(split=split, id=missing[0]) for name in NAMES)
            raise DataError(
                f"{inner} has no superpixels of {len(missing)} of {len(found)} images, the first is {missing[0]!r}: "
                f"none of {names}"
            )
        self.paths = {i: path for i, path in found.items() if path is not None}
        self.config = PublishedConfig(published=inner.absolute().name)

    def read(self, image_id: str, size: Size) -> U16:
        """(H, W) ids of an image; ``DataError`` for a PNG of another size or kind."""
        path = self.paths[image_id]
        found = np.asarray(read_ids(path), np.uint16)
        if found.shape != size:
            (h, w), (wanted_h, wanted_w) = found.shape, size
            raise DataError(
                f"superpixels {path} are {w}x{h} pixels, their image {image_id!r} is {wanted_w}x{wanted_h}: take those "
                f"that were made from these files"
            )
        return found


def _first(paths: Sequence[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
