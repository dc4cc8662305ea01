"""Named arrays of numbers in an .npz, written whole and read without unpickling anything."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segue.files import replacing
from segue.gap.errors import GapError

Array = npt.NDArray[Any]

MOST_BYTES = 2**31
"""Of one array: 16,000 neurons of 16,000 bins."""


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a compressed .npz."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():  # savez takes names as keywords, among which are its own
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, Array]:
    """The named arrays of an .npz, all by default; ``GapError`` when it is damaged or lacks one.

    What is not named is not looked at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            known = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
            wanted = list(known) if names is None else list(names)
            if missing := [name for name in wanted if name not in known]:
                raise GapError(f"{path} holds no array {missing[0]!r}: copy or make it again")
            return {name: _read(path, archive, known[name]) for name in wanted}
    except GapError:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GapError(f"cannot read the fingerprint {path}: {reason}") from error


def _read(path: Path, archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> Array:
    if item.file_size > MOST_BYTES:
        raise GapError(f"{path} is not opened: {item.filename} says that it has {item.file_size / 2**30:.0f} GiB")
    with archive.open(item) as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array
