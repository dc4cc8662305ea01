"""Your data set class and your training loop, with Segue's network, batches and loss.

``Scenes`` is a map-style class such as most projects have; with this file's folder on PYTHONPATH a recipe can name it
too: ``data: {mine: {dataset: "python:own_loop:Scenes", options: {num: 8}}}``. The loop below is what ``segue run`` does
at its heart; use it where a recipe is not enough. Run: python own_loop.py.
"""

from __future__ import annotations

import numpy as np
import torch

from segue.config import DatasetConfig, TransformConfig
from segue.data import scenes
from segue.data.dataset import open_dataset
from segue.data.loaders import Stream
from segue.labels import load_space
from segue.models.build import build_model
from segue.ops.losses import segmentation


class Scenes:
    """Pictures and train ids, drawn when they are asked for; no augmentation, no normalisation."""

    def __init__(self, split: str = "train", num: int = 8) -> None:
        self.first = {"train": 0, "val": 10_000}[split]
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        scene = scenes.render(scenes.domain("city"), self.first + index, (64, 96))
        return scene.image, scene.label


def main(iterations: int = 20) -> None:
    """Train, then count right pixels on images that were not trained on."""
    space = load_space("cityscapes19")
    config = DatasetConfig(dataset="python:own_loop:Scenes")
    train, val = (open_dataset("mine", config, split, space) for split in ("train", "val"))
    stream = Stream(
        [train], None, TransformConfig(crop=(64, 64)), key=(0, "loop", "source"), batch_size=4, labelled=True, workers=0
    )
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "width": 0.125}, len(space))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    batches = stream.iterate(0)  # endless; iterate(100) goes on at iteration 100 with the very same images
    for iteration in range(iterations):
        (batch,) = next(batches)  # one micro-batch
        batch = batch.to(torch.device("cpu"))
        output = model(batch.image)  # logits at the network's stride, and its auxiliary heads
        loss = segmentation(output, batch.label, pixel=batch.pixel, denominator=batch.label_count)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 5 == 4:
            print(f"iteration {iteration + 1}: loss {loss.item():.3f}")

    model.eval()
    right = total = 0
    for index in range(len(val)):
        image, label = torch.tensor(val.read_image(index)), torch.tensor(val.read_label(index))
        with torch.inference_mode():
            output = model(image.permute(2, 0, 1)[None] / 255)
        answer = output.upsample(output.to_classes()).argmax(1)[0]
        known = label != 255
        right, total = right + int((answer == label)[known].sum()), total + int(known.sum())
    print(f"pixel accuracy {100 * right / total:.1f} % on {len(val)} images")


if __name__ == "__main__":
    main()
