"""What each augmentation policy costs a training sample on the CPU, beside the same sample without it.

``python benchmarks/augment.py`` cuts crops of 512x512 and 512x1024 at random places from a generated city scene of
1024x2048 and applies every policy to every crop (training applies it to half of them), one thread, in interleaved
pairs of CPU times; ratio = with / without. The bar is what a policy may add to a sample, in ms: less than half of what
decoding such a picture takes (40 ms, docs/results/cache.json). It writes docs/results/augment.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from common import cpu, paired, record

from segue.config import DatasetConfig, TransformConfig
from segue.data import scenes
from segue.data.dataset import Sample, open_dataset
from segue.data.transforms import apply, draws
from segue.policies import POLICIES

BAR_MS = 15.0
FILE_SIZE = (1024, 2048)
CROPS = ((512, 512), (512, 1024))
SAMPLES = 8


def cropper(sample: Sample, config: TransformConfig) -> Callable[[], None]:
    """Transforms the same crops in every call."""
    numbers = [draws(0, uid) for uid in range(SAMPLES)]

    def transform() -> None:
        for drawn in numbers:
            apply(sample.image, sample.label, None, config, drawn)

    return transform


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as root:
        scenes.write(Path(root), num=1, seed=0, domain=scenes.domain("city"), size=FILE_SIZE)
        sample = open_dataset("cityscapes", DatasetConfig(root=Path(root)), "train").read_sample(0, labels=True)
    rows: list[dict[str, Any]] = []
    for crop in CROPS:
        plain = TransformConfig(crop=crop)
        for policy in POLICIES:
            block = {"steps": policy, "probability": 1}
            augmented = TransformConfig.model_validate({"crop": crop, "augment": block})
            row = paired(cropper(sample, augmented), cropper(sample, plain), arguments.pairs, cpu)
            row |= {key: round(row[key] / SAMPLES, 3) for key in ("a_ms", "b_ms")}
            row["added_ms"] = round(row["a_ms"] - row["b_ms"], 3)
            rows.append({"policy": policy, "crop": crop, "samples": SAMPLES, **row})
            print(f"{policy} at {crop[0]}x{crop[1]}: {row['a_ms']} ms a sample, without {row['b_ms']} ms")
    record("augment", BAR_MS, rows, file_size=FILE_SIZE)
    return 0 if all(row["added_ms"] <= BAR_MS for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
