"""How much faster label maps are scored than by torchmetrics and by a loop over pixels, in interleaved pairs.

``python benchmarks/confusion.py`` prints each ratio's median and 90 % interval, compares the worse end with its bar and
writes docs/results/confusion.json. One thread on both sides. torchmetrics gets ``validate_args=False`` and what suits
it best: int64 tensors, or the same bytes as we get. The loop (plain lists: the fastest Python there is) runs on small
maps and is scaled by pixels. The last row has no bar: both sides decode PNGs, which takes most of our time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import paired, record, verdict, wall
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from segue.config import DatasetConfig
from segue.data.dataset import open_dataset
from segue.labels import IGNORE, load_space
from segue.scoring.predictions import score_predictions
from segue.scoring.result import Tally

BAR_TORCHMETRICS, BAR_LOOP = 5.0, 20.0
SHAPE, SMALL, MAPS, CLASSES = (1024, 2048), (64, 128), 5, 19
SPACE = load_space("cityscapes19")


def maps(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A label of smooth regions with a frame of ignored pixels, and a prediction that is shifted by a few pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((CLASSES, 8, 16)).astype(np.float32)
    best, label = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.uint8)
    for number, field in enumerate(coarse):
        full = cv2.resize(field, shape[::-1], interpolation=cv2.INTER_CUBIC)
        label[full > best] = number
        best = np.maximum(best, full)
    prediction = np.roll(label, (shape[0] // 100, shape[1] // 100), (0, 1))
    margin = shape[0] // 50
    frame = np.full_like(label, IGNORE)
    frame[margin:-margin, margin:-margin] = label[margin:-margin, margin:-margin]
    return frame, prediction


def loop(label: np.ndarray, prediction: np.ndarray) -> list[list[int]]:
    """The per-pixel form."""
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for truth, guess in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if truth != IGNORE:
            counts[truth][guess] += 1
    return counts


def scored(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Tally:
    """Our form: the matrix and the counts of every image."""
    tally = Tally(SPACE, ("all",))
    for number, (label, prediction) in enumerate(pairs):
        tally.add(str(number), label, prediction)
    return tally


def scaled(row: dict[str, float], factor: float) -> dict[str, float]:
    """The row of a pair whose first side worked on ``factor`` times fewer pixels."""
    keys = ("a_ms", "ratio_median", "ratio_p05", "ratio_p95")
    return {k: round(v * factor, 3) if k in keys else v for k, v in row.items()}


def against_torchmetrics(pairs: int) -> list[dict[str, Any]]:
    label, prediction = maps(SHAPE, 0)
    bytes_ = torch.from_numpy(prediction), torch.from_numpy(label)
    out = []
    for kind, (guess, truth) in {"int64": tuple(x.long() for x in bytes_), "uint8": bytes_}.items():

        def theirs(guess: torch.Tensor = guess, truth: torch.Tensor = truth) -> torch.Tensor:
            return multiclass_confusion_matrix(guess, truth, CLASSES, ignore_index=IGNORE, validate_args=False)

        assert np.array_equal(theirs().numpy(), scored([(label, prediction)]).total.matrix)
        row = paired(theirs, lambda: scored([(label, prediction)]), pairs, wall)
        out.append({"against": f"torchmetrics, {kind}", "bar": BAR_TORCHMETRICS, **row})
    return out


def against_loop(pairs: int) -> dict[str, Any]:
    small, full = [maps(SMALL, k) for k in range(MAPS)], [maps(SHAPE, k) for k in range(MAPS)]
    assert np.array_equal(sum(np.array(loop(*m)) for m in small), scored(small).total.matrix)
    row = paired(lambda: [loop(*m) for m in small], lambda: scored(full), pairs, wall)
    factor = SHAPE[0] * SHAPE[1] / (SMALL[0] * SMALL[1])
    return {"against": "loop over pixels, scaled", "bar": BAR_LOOP, **scaled(row, factor)}


def against_loop_with_files(pairs: int, root: Path) -> dict[str, Any]:
    write(root)

    def theirs() -> None:
        for path in sorted((root / "labels/val").iterdir()):
            loop(*(np.asarray(Image.open(p)) for p in (path, root / "predictions" / path.name)))

    data = open_dataset(str(root), DatasetConfig(), "val")
    row = paired(theirs, lambda: score_predictions(root / "predictions", data), pairs, wall)
    return {"against": "loop over pixels of PNG files, decoded by both", "bar": None, **row}


def write(root: Path) -> None:
    """A data set of five labelled images of one colour, and their predictions."""
    for name in ("images/val", "labels/val", "predictions"):
        (root / name).mkdir(parents=True)
    (root / "dataset.yaml").write_text(
        "name: maps\nspace: cityscapes19\nimage: 'images/{split}/{key}.png'\n"
        "labels: [{path: 'labels/{split}/{key}.png', ids: trainid}]\nsplits: {val: {}}\n"
    )
    for k in range(MAPS):
        label, prediction = maps(SHAPE, k)
        for folder, array in (("images/val", np.zeros((*SHAPE, 3), np.uint8)), ("labels/val", label)):
            cv2.imwrite(str(root / folder / f"{k}.png"), array)
        cv2.imwrite(str(root / "predictions" / f"{k}.png"), prediction)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            *against_torchmetrics(pairs),
            against_loop(pairs),
            against_loop_with_files(pairs, Path(folder) / "maps"),
        ]
    for row in rows:
        row["verdict"] = "no bar" if row["bar"] is None else verdict(row, row["bar"], at_most=False)
        print(
            f"{row['against']}: {row['a_ms']} ms, segue {row['b_ms']} ms, ratio {row['ratio_median']} "
            f"[{row['ratio_p05']}, {row['ratio_p95']}], worse end against {row['bar']}: {row['verdict']}"
        )
    record("confusion", BAR_TORCHMETRICS, rows, shape=SHAPE, maps=MAPS, small=SMALL)
    return 0 if all(row["verdict"] != "MISSED" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
