"""How much faster one sample is read from a copy that ``segue data prepare`` wrote than from the files themselves.

``python benchmarks/cache.py`` renders city scenes at 1024x2048 (with the preset's sensor noise) in Cityscapes' layout,
prepares them at 512x1024 in both formats, and reads image and label the way training does: decode, map ids, resize,
write into a batch. Interleaved pairs of CPU times, one thread, files in the page cache; the worse end is compared with
each bar, and docs/results/cache.json is written. The source has Pillow's default level (6); the copy level 1,
run-length strategy, filter "up". ``labels`` are resized with the images, as for training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import cpu, paired, record, verdict

from segue.config import DatasetConfig, TransformConfig
from segue.data import scenes
from segue.data.dataset import Dataset, open_dataset
from segue.data.prepare import prepare
from segue.data.transforms import apply, draws

BARS = {"raw": 10.0, "png": 4.0}
FILE_SIZE, SIZE = (1024, 2048), (512, 1024)
WITHOUT_DRAWS = TransformConfig(flip=0)


def reader(dataset: Dataset) -> Callable[[], None]:
    """Reads the next sample into a batch of one."""
    image, label = np.empty((*SIZE, 3), np.uint8), np.empty(SIZE, np.uint8)
    turn = 0

    def read() -> None:
        nonlocal turn
        index = turn % len(dataset)
        turn += 1
        sample = dataset.read_sample(index, labels=True)
        item = apply(sample.image, sample.label, dataset.size, WITHOUT_DRAWS, draws(0, index))
        assert item.label is not None
        image[:] = item.image
        label[:] = item.label

    return read


def bytes_below(folder: Path, number: int) -> int:
    """Bytes of the files of an image and its label."""
    held = [p.stat().st_size for p in folder.rglob("*") if p.suffix in (".png", ".u8")]
    return sum(held) // number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--scenes", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        scenes.write(root / "files", num=arguments.scenes, seed=0, domain=scenes.domain("city"), size=FILE_SIZE)
        files = open_dataset("cityscapes", DatasetConfig(root=root / "files", size=SIZE), "train")
        for format, bar in BARS.items():
            prepare("cityscapes", SIZE, root / format, format=format, root=root / "files").run()
            copy = open_dataset("cityscapes", DatasetConfig(root=root / format), "train")
            row = paired(reader(files), reader(copy), arguments.pairs, cpu, alternations=arguments.scenes)
            held = {name: bytes_below(root / name, arguments.scenes) for name in ("files", format)}
            rows.append({"format": format, "bar": bar, **row, "file_bytes": held["files"], "copy_bytes": held[format]})
            print(
                f"{format}: files {row['a_ms']} ms and {held['files'] / 1e6:.2f} MB, copy {row['b_ms']} ms and "
                f"{held[format] / 1e6:.2f} MB a sample, ratio {row['ratio_median']} [{row['ratio_p05']}, "
                f"{row['ratio_p95']}], worse end against {bar}: {verdict(row, bar, at_most=False)}"
            )
    record("cache", min(BARS.values()), rows, file_size=FILE_SIZE, size=SIZE, scenes=arguments.scenes)
    return 0 if all(verdict(row, row["bar"], at_most=False) == "holds" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
