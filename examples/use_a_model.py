"""Train from a recipe in Python, load the model, predict one image and score a whole set.

Run it in an empty folder: python use_a_model.py [FOLDER]. It needs no data and no network: the scenes are generated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import segue
from segue.data import scenes


def main(folder: Path) -> None:
    """Everything is written below ``folder``."""
    scenes.write(folder / "city", num=8, seed=1, domain=scenes.domain("city"), size=(64, 96))
    scenes.write(folder / "city", num=4, seed=2, domain=scenes.domain("city"), size=(64, 96), split="val")
    recipe = {
        "name": "example",
        "labels": "cityscapes19",
        "model": {"name": "bisenet", "width": 0.125},
        "data": {"city": {"dataset": "cityscapes", "root": str(folder / "city")}},
        "train": {"iterations": 20, "batch_size": 4},
        "optim": {"name": "adamw", "lr": 0.01},
        "evaluate": {"data": ["city:val"]},
        "stages": [{"name": "first", "method": "supervised", "data": {"source": "city:train"}}],
    }
    result = segue.run(recipe, folder / "run", device="cpu")
    print("report:", result.folder / "report.html")

    model = segue.load(result.folder, device="cpu")
    photo = sorted((folder / "city/leftImg8bit/val").rglob("*.png"))[0]
    label = model.predict(photo)  # (H, W) uint8 train ids, at the image's own size
    names = [model.labels.classes[i] for i in np.unique(label)]
    print(f"{photo.name} {label.shape}: {', '.join(names)}")
    Image.fromarray(model.labels.colorize(label)).save(folder / "prediction.png")

    scores = segue.evaluate(model, "cityscapes:val", root=folder / "city", views=["19", "16"])
    print(f"mIoU {100 * scores['miou']:.1f} %, road {100 * scores['iou']['road']:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
