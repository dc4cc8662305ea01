"""Tiny data sets in the published layouts, as trees and as archives."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from helpers.layouts import LAYOUTS
from segue.data import catalog
from segue.data.catalog import DatasetSpec, LabelFiles

SIZE = (24, 32)


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


def file_ids(spec: DatasetSpec, files: LabelFiles, seed: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """(H, W) of ids that the label files may hold, every one of them."""
    known = np.array([*files.names(spec.native()), 255], np.uint8)
    assert len(known) <= size[0] * size[1]
    return np.roll(np.resize(known, size[0] * size[1]), seed).reshape(size)


def make(name: str, root: Path, kind: int | None = None) -> DatasetSpec:
    """Write all splits of a catalog entry in its published layout; ``kind``: only this kind of label files."""
    spec, layout = catalog.load(name), LAYOUTS[name]
    frames = {f.image: f for split in layout.splits.values() for f in split}
    for seed, frame in enumerate(frames.values()):
        save(root / frame.image, picture(seed, layout.size))
        for which, (label, depth) in enumerate(zip(frame.labels, layout.depths, strict=False)):
            if label and kind in (None, which):
                _save_label(root / label, file_ids(spec, spec.labels[which], seed, layout.size), depth)
    for path, text in layout.texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return spec


def _save_label(path: Path, ids: npt.NDArray[np.uint8], depth: str) -> None:
    if depth != "rgb16":
        return save(path, ids, palette=depth == "palette")
    channels = np.zeros((*ids.shape, 3), np.uint16)
    channels[..., 0] = ids
    channels[..., 1] = np.arange(ids.shape[1])  # instances
    return save(path, channels)


def pack(name: str, tree: Path, out: Path) -> None:
    """The files of a tree in archives with their published names; what is in none of them stays a loose file."""
    out.mkdir(parents=True)
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        inner = path.relative_to(tree).as_posix()
        archive = next((a for a in LAYOUTS[name].archives if inner.startswith(a.start)), None)
        if archive is None:
            (out / inner).parent.mkdir(parents=True, exist_ok=True)
            (out / inner).write_bytes(path.read_bytes())
            continue
        member = archive.inside + inner.removeprefix(archive.start)
        if archive.name.endswith(".tar"):
            with tarfile.open(out / archive.name, "a") as tar:
                tar.add(path, member)
        else:
            with zipfile.ZipFile(out / archive.name, "a", zipfile.ZIP_DEFLATED) as file:
                file.write(path, member)


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
