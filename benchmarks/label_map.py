"""How much faster label ids become train ids than in the seed's form, in interleaved pairs.

``python benchmarks/label_map.py`` compares |id - ids| and argmin over the 35 Cityscapes ids (CIL project) with
``segue.data.dataset.map_ids`` at 512x1024, for labels of 8 and of 16 bits, after both gave the same bytes for every
id; the worse end of the ratio is compared with the bar. It writes docs/results/label_map.json.
"""

from __future__ import annotations

import argparse
from functools import partial

import cv2
import numpy as np
import torch
from common import paired, record, verdict, wall

from segue.data import catalog
from segue.data.dataset import map_ids
from segue.labels import IGNORE, LabelMap, build_map

BAR = 100.0
SHAPE = (512, 1024)
REPEATS = 20  # of ours


def cityscapes() -> tuple[np.ndarray, np.ndarray, LabelMap]:
    """Ids 0..34, their train ids (255 = none), and our map of the same."""
    spec = catalog.load("gta5")
    native = spec.native()
    names = spec.labels[0].names(native)
    ids = np.array(sorted(names))
    train_ids = np.array([IGNORE if names[i] is None else native.index(str(names[i])) for i in ids.tolist()], np.uint8)
    return ids, train_ids, build_map(native, native, names)


def nearest_id(label: np.ndarray, ids: np.ndarray, train_ids: np.ndarray) -> np.ndarray:
    """The seed's form: the distance of every pixel to every id, the smallest one's train id."""
    distance = np.abs(label[..., None].astype(np.int64) - ids)
    found: np.ndarray = train_ids[np.argmin(distance, axis=-1)]
    return found


def mapped(label_map: LabelMap, label: np.ndarray) -> None:
    """Ours, so many times that it can be measured."""
    for _ in range(REPEATS):
        map_ids(label_map, label, "label")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    ids, train_ids, label_map = cityscapes()
    rows = []
    for dtype in (np.uint8, np.uint16):
        every = ids.astype(dtype).reshape(1, -1)
        label = np.random.default_rng(0).choice(ids, SHAPE).astype(dtype)
        for given in (every, label):
            assert np.array_equal(map_ids(label_map, given, "label"), nearest_id(given, ids, train_ids))
        row = paired(
            partial(nearest_id, label, ids, train_ids),
            partial(mapped, label_map, label),
            arguments.pairs,
            wall,
        )
        row = {k: v / REPEATS if k == "b_ms" else v * REPEATS if k.startswith("ratio") else v for k, v in row.items()}
        rows.append({"dtype": np.dtype(dtype).name, "ids": len(ids), **{k: round(v, 4) for k, v in row.items()}})
        print(
            f"{rows[-1]['dtype']}: argmin {row['a_ms']} ms, segue {row['b_ms']:.3f} ms, "
            f"ratio {row['ratio_median']:.0f} [{row['ratio_p05']:.0f}, {row['ratio_p95']:.0f}], "
            f"worse end against {BAR}: {verdict(row, BAR, at_most=False)}"
        )
    record("label_map", BAR, rows, shape=SHAPE, identical="all ids")
    return 0 if all(verdict(row, BAR, at_most=False) == "holds" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
