"""``segue data pack``: several data sets at experiment size as one small archive.

Each becomes a folder of the archive with its own ``dataset.yaml``, JPEG images (``--lossless``: PNG) and 8-bit PNG
labels. ``data.NAME.root=FILE.zip/NAME`` reads it in place, and any unzip program unpacks it into folders that open the
same way. Equal input gives equal bytes: order, times and permissions in the archive are fixed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2

from segue.data import catalog
from segue.data.copies import LABEL_PNG, Layout, Row, description, encode_as, ordered, rows_of
from segue.data.dataset import PYTHON, Dataset
from segue.data.errors import DataError
from segue.data.images import Size
from segue.data.reference import copied_splits, open_splits, parse, spec_of
from segue.errors import DISK_FULL
from segue.files import replacing
from segue.labels import nearest

QUALITY = 80
"""JPEG quality. CamVid and IDD-Lite with all their splits are 36 MB at 224x320."""

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_LOSSLESS_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 9)


@dataclass(frozen=True)
class Packed:
    """A data set in the archive: its folder there, images and bytes (images and labels)."""

    folder: str
    images: int
    bytes: int


@dataclass(frozen=True)
class Options:
    """How images and labels are stored: ``size`` (height, width), JPEG ``quality`` or ``lossless`` PNG.

    ``native_labels``: as in :func:`segue.data.prepare.prepare`. ``workers``: threads, by default one a core.
    """

    size: Size
    quality: int = QUALITY
    lossless: bool = False
    native_labels: bool | None = None
    workers: int | None = None

    def encode(self, row: Row) -> tuple[Row, bytes, bytes | None]:
        """The files of one image and its label."""
        image, label = row.read(self.size)
        # Huffman tables made for the picture: 3 % fewer bytes, and nothing to pay when it is decoded.
        jpeg = (cv2.IMWRITE_JPEG_QUALITY, self.quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
        picture = encode_as(*((".png", image, _LOSSLESS_PNG) if self.lossless else (".jpg", image, jpeg)))
        return row, picture, None if label is None else encode_as(".png", label, LABEL_PNG)


def pack(
    names: Sequence[str],
    out: Path,
    options: Options,
    *,
    roots: Mapping[str, Path] | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Packed]:
    """Write ``out`` (a .zip) with the ``splits`` that each of ``names`` has (default: train, val and test).

    ``names``: catalog names, folders or archives, each with ``:split`` for that one only. ``roots``: where a named one
    lies. ``limit``: this many images of each split, evenly spaced.
    ``DataError`` for a source that cannot be read, two that would share a folder, or a full disk; ``out`` then stays
    as it was.
    """
    if out.suffix != ".zip":
        raise DataError(f"an archive is called FILE.zip, not {out.name!r}")
    if unknown := sorted(set(roots or {}) - {parse(name)[0] for name in names}):
        raise DataError(f"--root is given for {unknown[0]!r}, which is not packed{nearest(unknown[0], list(names))}")
    opened = {_folder(name): (name, _open(name, (roots or {}).get(parse(name)[0]), splits, limit)) for name in names}
    if len(opened) < len(names):
        raise DataError(f"two of {', '.join(names)} would be the same folder of the archive; pack them one by one")
    total = sum(len(rows_of(parts, options.native_labels)) for _, parts in opened.values())
    result: list[Packed] = []
    try:
        with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for folder, (name, parts) in sorted(opened.items()):
                root = (roots or {}).get(parse(name)[0])
                done = sum(p.images for p in result)
                tell = None if progress is None else (lambda n, d=done: progress(d + n, total))
                result.append(_pack_one(archive, folder, name, root, parts, options, tell))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DataError(f"the disk is full: {out} was not written; free space, or choose another folder") from error
    return result


def _pack_one(
    archive: zipfile.ZipFile,
    folder: str,
    name: str,
    root: Path | None,
    parts: Mapping[str, Dataset],
    options: Options,
    tell: Callable[[int], object] | None,
) -> Packed:
    spec = spec_of(parse(name)[0], root)
    layout = Layout(parts, options.native_labels, ".png" if options.lossless else ".jpg")
    yaml = "# Written by `segue data pack`.\n" + description(spec.name, spec, None, layout.describe())
    for file, text in {catalog.FILE: yaml, **layout.lists()}.items():
        _add(archive, f"{folder}/{file}", text.encode())
    rows = rows_of(parts, options.native_labels)
    total = 0
    for done, (row, image, label) in enumerate(ordered(options.encode, rows, options.workers), 1):
        for names, data in ((layout.images(row), image), (layout.labels(row), label or b"")):
            for file in names:
                _add(archive, f"{folder}/{file}", data)
                total += len(data)
        if tell is not None:
            tell(done)
    return Packed(folder, len(rows), total)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.external_attr = 0o644 << 16
    info.create_system = 3
    file: IO[bytes]
    with archive.open(info, "w") as file:
        file.write(data)


def _open(name: str, root: Path | None, splits: Sequence[str], limit: int | None) -> dict[str, Dataset]:
    if name.startswith(PYTHON):
        raise DataError(f"{name}: a python: class is not packed; `segue data prepare` writes a folder that can be")
    return open_splits(name, root, splits=splits or copied_splits(name, root), limit=limit)


def _folder(name: str) -> str:
    return Path(parse(name)[0]).expanduser().resolve().name.removesuffix(".zip")
