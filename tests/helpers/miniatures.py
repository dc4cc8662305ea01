"""Tiny data sets in the official layouts, generated from the catalog's own path patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segue.data import catalog
from segue.data.catalog import DatasetSpec, LabelFiles

SIZE = (24, 32)
KEYS = (
    "aachen/aachen_000000_000019",
    "aachen/aachen_000001_000019",
    "bonn/bonn_000000_000019",
    "bonn/bonn_000002_000019",
)
UNLABELLED = ("test",)
PALETTE = ("gta5",)


def picture(seed: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 that differs from seed to seed and compresses."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def save(path: Path, array: npt.NDArray[Any], palette: bool = False) -> None:
    """Write RGB or (H, W) as the suffix says; ``palette``: as a PNG whose pixels are palette indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if palette:
        image = Image.fromarray(array)
        image.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
        assert image.mode == "P"
        image.save(path)
        return
    cv2.imwrite(str(path), array if array.ndim == 2 else array[:, :, ::-1])


def file_ids(spec: DatasetSpec, files: LabelFiles, seed: int) -> npt.NDArray[np.uint8]:
    """(H, W) of ids that the label files may hold, every one of them when there is room."""
    known = np.array([*files.names(spec.native()), 255], np.uint8)
    return np.roll(np.resize(known, SIZE[0] * SIZE[1]), seed).reshape(SIZE)


def make(name: str, root: Path, kind: int = 0) -> DatasetSpec:
    """Write all splits of a catalog entry below ``root``; ``kind`` chooses among its kinds of label files."""
    spec = catalog.load(name)
    for n, split_name in enumerate(spec.splits):
        split = spec.split(split_name)
        pattern = split.image if isinstance(split.image, str) else (split.image or ("",))[0]
        files = (split.labels or ())[kind]
        for k, key in enumerate(KEYS):
            seed = k if "{split}" not in pattern else 10 * n + k
            save(root / pattern.format(split=split.folder, key=key), picture(seed))
            if split_name not in UNLABELLED:
                target = root / files.path.format(split=split.folder, key=key)
                save(target, file_ids(spec, files, seed), palette=name in PALETTE and files.ids != "trainid")
    return spec


def own(root: Path, number: int = 3, size: tuple[int, int] = SIZE, extra: str = "") -> Path:
    """A user's folder with ``dataset.yaml`` and two classes; label pixel values: 1 road, 2 grass, 7 ignored."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(
        "name: yard\n"
        "classes: [{name: road, color: [128, 64, 128], id: 1}, {name: grass, color: [0, 200, 0], id: 2}]\n"
        "image: 'images/{split}/{key}.png'\n"
        "labels: [{path: 'labels/{split}/{key}.png', ids: {1: road, 2: grass, 7: null}}]\n"
        "splits: {train: {}, val: {}}\n" + extra
    )
    for n in range(number):
        save(root / f"images/train/{n}.png", picture(n, size))
        label = np.full(size, 1, np.uint8)
        label[: size[0] // 2] = 2
        label[0, 0] = 7
        save(root / f"labels/train/{n}.png", label)
    return root
