"""How much faster sampling statistics start from their cache than from a scan, and what they cost in memory.

``python benchmarks/class_statistics.py`` writes palette labels of GTA5's size, starts rare class sampling (from
opening the data set to the first draw) without and with a cache in turn, and compares the worse end of the ratio with
the bar; both times grow with the number of labels. At 25,000 labels (small ones, each with all 19 classes) it takes
the start from the cache and the largest growth of a process that loads and uses the statistics. It writes
docs/results/class_statistics.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import paired, record, verdict, wall
from PIL import Image

from segue.config import DatasetConfig, RareClassConfig
from segue.data.dataset import open_dataset
from segue.data.sampling import RareOrder
from segue.data.statistics import class_pixels

BAR = 10.0
BAR_MB = 100.0
SIZE = (1052, 1914)
MANY = 25_000
IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)
DISTINCT = 16


def write_labels(root: Path, number: int, size: tuple[int, int]) -> None:
    """Blobs of all classes: a few distinct label files, the others are links to them."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for n in range(number):
        (root / f"images/{n:05d}.png").touch()
        file = root / f"labels/{n:05d}.png"
        if n >= DISTINCT:
            os.link(root / f"labels/{n % DISTINCT:05d}.png", file)
            continue
        blobs = np.random.default_rng(n).permutation(np.resize(np.arange(19), 66 * 120)).reshape(66, 120)
        image = Image.fromarray(IDS[cv2.resize(blobs.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)])
        image.putpalette([v for i in range(256) for v in (i, i, i)])
        image.save(file)


def start(root: Path, fresh: bool = False) -> RareOrder:
    """From files to the first draw; ``fresh``: without a cache. ``min_px`` 0: every image is in every class's list."""
    if fresh:
        shutil.rmtree(os.environ["SEGUE_CACHE"], ignore_errors=True)
    config = DatasetConfig(dataset="gta5", root=root)
    dataset = open_dataset("gta5", config, "train")
    pixels = class_pixels(dataset, config, say=len)
    order = RareOrder([pixels], None, RareClassConfig(min_px=0), dataset.space, (0,))
    assert order.place(0).wanted is not None and len(order.classes) == 19
    return order


def statistics_alone(root: Path, results: Any) -> None:
    """In a process of its own: what the statistics add to an open data set, at most and for good."""
    config = DatasetConfig(dataset="gta5", root=root)
    dataset = open_dataset("gta5", config, "train")
    start(root)  # what is loaded once, whatever the number of labels
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tracemalloc.start()
    pixels = class_pixels(dataset, config, say=len)
    order = RareOrder([pixels], None, RareClassConfig(min_px=0), dataset.space, (0,))
    del pixels
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - min(before, start_peak)
    assert len(order.classes) == 19
    sizes = {"peak_mb": peak, "kept_mb": kept, "resident_mb": resident}
    results.put({"labels": len(dataset), **{name: round(size / 1e6, 1) for name, size in sizes.items()}})


def measure_many(root: Path) -> dict[str, float]:
    """Start from the cache and memory at 25,000 labels."""
    write_labels(root, MANY, (66, 120))
    began = wall()
    start(root, fresh=True)
    scan_s = wall() - began
    times = []
    for _ in range(5):
        began = wall()
        start(root)
        times.append(wall() - began)
    results: multiprocessing.Queue[dict[str, float]] = multiprocessing.Queue()
    child = multiprocessing.Process(target=statistics_alone, args=(root, results))
    child.start()
    memory = results.get()
    child.join()
    return {**memory, "scan_of_small_labels_s": round(scan_s, 2), "start_s": round(float(np.median(times)), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in arguments.labels:
            os.environ["SEGUE_CACHE"] = f"{folder}/cache{number}"
            root = Path(folder) / str(number)
            write_labels(root, number, SIZE)
            row = paired(partial(start, root, fresh=True), partial(start, root), arguments.pairs, wall)
            rows.append({"labels": number, **row})
            print(
                f"{number} labels: scan {row['a_ms']} ms, cache {row['b_ms']} ms, ratio {row['ratio_median']} "
                f"[{row['ratio_p05']}, {row['ratio_p95']}], worse end against {BAR}: {verdict(row, BAR, at_most=False)}"
            )
        os.environ["SEGUE_CACHE"] = f"{folder}/cache"
        many = measure_many(Path(folder) / "many")
    largest = max(many["peak_mb"], many["resident_mb"])
    print(f"{many}; largest against {BAR_MB} MB: {'holds' if largest < BAR_MB else 'MISSED'}")
    record("class_statistics", BAR, rows, size=SIZE, scan_threads=min(8, os.cpu_count() or 1), bar_mb=BAR_MB, many=many)
    return 0 if largest < BAR_MB and all(verdict(row, BAR, at_most=False) == "holds" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
