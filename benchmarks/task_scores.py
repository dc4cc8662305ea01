"""How much faster the five task metrics of CIL's 5-6-8 come from one pass than from five, in interleaved pairs.

``python benchmarks/task_scores.py``: network input 512x1024, labels 1024x2048, protocols ``native`` and ``cil``, CPU
time of one thread. Pictures and labels are in memory, which favours the five passes: nothing is decoded five times.
The weights are random, so every class competes everywhere. The bar is for CIL's own network, ERFNet; of one that costs
less than the upsampling and counting of its answers, no pass can be a quarter of five. Prints each ratio's median and
90 % interval, compares the worse end with the bar, checks that both sides count the same, and writes
docs/results/task_scores.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from common import cpu, paired, record, verdict

from segue.labels import IGNORE, U8
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.scoring.matrix import LENIENT
from segue.scoring.protocols import protocol_of
from segue.scoring.score import Measure, measure_models
from segue.tasks import load_task

BAR = 4.0
TASK = load_task("cityscapes_5_6_8")
TASKS = TASK.tasks("all")
SPACE = replace(TASK.space("all"), views=dict(TASKS))
SIZE, LABEL = (512, 1024), (1024, 2048)
HELD = ("erfnet",)
NETWORKS: dict[str, dict[str, Any]] = {
    "erfnet": {"name": "erfnet"},
    "bisenet, width 0.25": {"name": "bisenet", "width": 0.25},
}


class Made:
    """A made-up picture with a label of blobs."""

    name = "made"
    ids = ("0",)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (16, 32, 3)).astype(np.uint8)
        self.image: U8 = np.asarray(cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_CUBIC))
        blobs = rng.choice([*range(len(SPACE)), IGNORE], (32, 64)).astype(np.uint8)
        self.label: U8 = np.asarray(cv2.resize(blobs, LABEL[::-1], interpolation=cv2.INTER_NEAREST))

    def read_scored(self, index: int) -> tuple[U8, U8]:
        """The one sample."""
        return self.image, self.label


def network(config: dict[str, Any]) -> SegModel:
    """Random weights that do not answer with one class everywhere."""
    torch.manual_seed(0)
    model = build_model(config, len(SPACE)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.5 if parameter.ndim > 1 else 1)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    data, rows = Made(), []
    for name, config in NETWORKS.items():
        model = network(config)
        for protocol in ("native", "cil"):
            rule = protocol_of(protocol)

            def five() -> dict[str, float]:
                found = {}
                for task, names in TASKS.items():
                    measure = Measure((task + LENIENT,), rule, classes=names)  # noqa: B023
                    found[task] = measure_models([model], data, SPACE, measure)[0].scores().miou  # noqa: B023
                return found

            def one() -> dict[str, float]:
                result = measure_models([model], data, SPACE, Measure(protocol=rule, tasks=TASKS))[0]  # noqa: B023
                return {task: scores.miou for task, scores in result.task_scores().items()}

            assert five() == one()
            row = paired(five, one, pairs, cpu)
            held = verdict(row, BAR, at_most=False) if name in HELD else "no bar"
            rows.append({"network": name, "protocol": protocol, **row, "verdict": held})
            print(
                f"{name}, {protocol}: five passes {row['a_ms']:.0f} ms an image, one {row['b_ms']:.0f} ms, ratio "
                f"{row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]; at least {BAR}: {held}",
                flush=True,
            )
    record("task_scores", BAR, rows, input=SIZE, label=LABEL, tasks=list(TASKS), clock="CPU")
    return int(any(row["verdict"] == "MISSED" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
