"""What a survey costs beside the forward passes that it cannot do without.

``python benchmarks/survey.py`` writes one generated picture of 1024x2048, cuts it into 40 superpixels, and surveys it
(reads and decodes files, asks the network, pools, writes the table), in turns with the forward pass alone of a picture
in memory: for D2ADA's first round (embeddings), and for all statistics at once. The network is DeepLabV3+ on the
encoder that is its default here, smaller than D2ADA's ResNet-101, at D2ADA's input size and at half of it, and BiSeNet,
the fastest that there is. Random weights. Time is CPU time with one torch thread, reading in its thread included,
judged by the worse end of the ratio. It writes docs/results/survey.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import torch
from common import cpu, paired, record, verdict
from regions import picture

from segue.acquire import Superpixels
from segue.config import DatasetConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.images import resize_image, write_image
from segue.data.regions import SuperpixelConfig, make
from segue.files import remove
from segue.models.build import build_model
from segue.models.classify import to_input
from segue.survey import Look, survey
from segue.survey.run import COLUMNS

BAR = 1.25
"""Ours, for D2ADA's setting: DeepLabV3+ at 1024x2048, embeddings."""
CLASSES = 19
CASES = (
    ("deeplabv3plus", (1024, 2048), ("embedding",)),
    ("deeplabv3plus", (512, 1024), ("embedding",)),
    ("bisenet", (512, 1024), ("embedding",)),
    ("bisenet", (512, 1024), COLUMNS),
)
DESCRIPTION = """
name: picture
classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [1, 1, 1]}]
image: '{split}/{key}.png'
splits: {train: {}}
"""


def opened(root: Path, size: tuple[int, int]) -> Dataset:
    """The picture as a data set."""
    return open_dataset("picture", DatasetConfig(root=root, size=size), "train")


def measured(folder: Path, case: tuple[str, tuple[int, int], tuple[str, ...]], pairs: int) -> dict[str, Any]:
    """One row of the results."""
    name, size, columns = case
    torch.manual_seed(0)
    model = build_model({"name": name}, CLASSES).eval()
    dataset = opened(folder / "data", size)
    regions = make(dataset, folder / "regions", SuperpixelConfig())
    image = to_input([resize_image(picture(), size)], torch.device("cpu"))
    look = Look(columns, Superpixels(), regions, domain=lambda output: output.logits[:, :1])

    def whole() -> None:
        remove(folder / "table")
        survey(model, dataset, folder / "table", look, device="cpu", identity={})

    def forward() -> None:
        with torch.inference_mode():
            model(image)

    row = paired(whole, forward, pairs, cpu)
    return {"network": name, "input": size, "columns": columns, **row}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image(folder / "data/train/0.png", picture())
        (folder / "data/dataset.yaml").write_text(DESCRIPTION)
        for case in CASES:
            rows.append(measured(folder, case, arguments.pairs))
            print(rows[-1], flush=True)
    found = verdict(rows[0], BAR, at_most=True)
    print(found)
    record("survey", BAR, rows, verdict=found, file_px=(1024, 2048), regions=40, gpu="not measured")
    return 0 if found == "holds" else 1


if __name__ == "__main__":
    raise SystemExit(main())
