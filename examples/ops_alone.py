"""Segue's operations on tensors of your own: Fourier style, class mixing, losses on given labels and on pseudo-labels.

They are pure functions; every random draw comes from a generator that you pass. Writes styled.png and mixed.png.
Run: python ops_alone.py [FOLDER].
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segue.data import scenes
from segue.models.base import Output
from segue.ops.fourier import exchange
from segue.ops.keys import generator
from segue.ops.losses import segmentation
from segue.ops.mixing import class_mask, confidence_weight, mix


def picture(image: torch.Tensor) -> Image.Image:
    """(3, H, W) float 0..1 as something to look at."""
    return Image.fromarray((image.clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def main(folder: Path) -> None:
    """Two scenes of each domain stand for your own batches."""
    folder.mkdir(parents=True, exist_ok=True)
    game, city = (
        [scenes.render(scenes.domain(name), seed, (128, 192)) for seed in (1, 2)] for name in ("game", "city")
    )
    source, target = (
        torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in row]) / 255 for row in (game, city)
    )
    label = torch.stack([torch.from_numpy(s.label).long() for s in game])  # (N, H, W), 255 = not labelled

    styled = exchange(source, target, beta=0.05)  # low frequencies of the target, phases of the source
    picture(styled[0]).save(folder / "styled.png")

    mask = class_mask(label, [generator(0, "mix", image) for image in range(2)])  # half of each image's classes
    picture(mix(source, target, mask)[0]).save(folder / "mixed.png")
    print(f"{100 * mask.float().mean():.0f} % of the pixels are pasted")

    logits = torch.randn(2, 19, 16, 24, generator=generator(0, "logits"))  # a network's answer at stride 8
    output = Output(logits, embedding=logits, size=(128, 192), padded=(128, 192), num_classes=19)
    everywhere = torch.ones_like(label, dtype=torch.bool)  # false where an image was padded
    labelled = (label != 255).sum()
    loss = segmentation(output, label, pixel=everywhere, denominator=labelled)
    print(f"cross-entropy, a mean over labelled pixels: {float(loss):.3f}")

    confidence, pseudo_label = output.upsample(logits).softmax(1).max(1)
    weight = confidence_weight(confidence, threshold=0.3)  # (N, 1, 1): the share of sure pixels, as in DACS
    loss = segmentation(output, pseudo_label, weight.expand_as(confidence), pixel=everywhere, denominator="pixels")
    print(f"of pseudo-labels, {100 * float(weight.mean()):.1f} % of them sure: {float(loss):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
