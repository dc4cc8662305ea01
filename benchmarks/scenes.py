"""What fresh scenes cost beside training on them: ``python benchmarks/scenes.py``.

Interleaved pairs of rendering a batch of 8 scenes of the preset ``city`` at 128x256 and of one training step of the
demo's model (forward, backward, optimiser) on those very scenes; every pair has new scenes. It prints the median and
the 90 % interval of rendering over training and compares the worse end with the bar; it writes
docs/results/scenes.json. One thread, and CPU time (user + system) as the clock: both sides only compute, and other
processes disturb it less.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch
from common import cpu, paired, record, verdict

from segue.data import scenes
from segue.models.build import build_model
from segue.ops.losses import segmentation

BAR = 1.25
SIZE = (8, 128, 256)
PRESET = "city"


class Pair:
    """Renders batches, and trains on the batch rendered last."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.domain = scenes.domain(PRESET)
        self.model = build_model({"name": "bisenet", "width": 0.25}, 19).to(memory_format=torch.channels_last)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.pixel = torch.ones(SIZE, dtype=torch.bool)
        self.batch: list[scenes.Scene] = []
        self.rendered = 0

    def render(self) -> None:
        """The next scenes, none of which was drawn before."""
        num, size = SIZE[0], SIZE[1:]
        seeds = (scenes.scene_seed(0, "train", self.rendered + k) for k in range(num))
        self.batch = [scenes.render(self.domain, seed, size) for seed in seeds]
        self.rendered += num

    def train(self) -> None:
        """One step, from the scenes' bytes to the optimiser's update."""
        image = torch.from_numpy(np.stack([s.image for s in self.batch])).permute(0, 3, 1, 2).float().div_(255)
        label = torch.from_numpy(np.stack([s.label for s in self.batch])).long()
        output = self.model(image.contiguous(memory_format=torch.channels_last))
        loss = segmentation(output, label, pixel=self.pixel, denominator=(label != 255).sum().float())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pair = Pair()
    for _ in range(3):
        pair.render()
        pair.train()
    row = paired(pair.render, pair.train, arguments.pairs, cpu)
    interval = f"{row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]"
    each = row["a_ms"] / SIZE[0]
    print(f"{SIZE[0]} scenes {row['a_ms']:.0f} CPU ms ({each:.1f} each), step {row['b_ms']:.0f} CPU ms")
    print(f"rendering over training {interval}, worse end against {BAR}: {verdict(row, BAR, at_most=True)}")
    record("scenes", BAR, [row], shape=SIZE, preset=PRESET)
    return 0 if verdict(row, BAR, at_most=True) == "holds" else 1


if __name__ == "__main__":
    raise SystemExit(main())
