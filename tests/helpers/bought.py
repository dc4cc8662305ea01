"""A run folder in which rounds of regions of the ``city`` scenes have been bought; cells of a grid, as superpixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from helpers.recipes import recipe
from segue.acquire.state import VOID, Round, RoundInfo, Row, write_round
from segue.config import DatasetConfig
from segue.data.dataset import Dataset, open_dataset
from segue.data.images import write_image
from segue.data.label_folder import LabelFolder
from segue.files import file_of, write_json
from segue.labels import IGNORE, load_space

SPACE = load_space("cityscapes19")
CELL = (16, 24)
"""Of 64x96 pixels: 4 rows of 4 cells, numbered by rows."""
Cells = Sequence[tuple[int, int]]
"""(image, cell) in the order of buying."""


def city(root: Path) -> Dataset:
    """The pool."""
    return open_dataset("city", DatasetConfig(dataset="cityscapes", root=root / "city"), "train", SPACE)


def begin_run(folder: Path, data: Path, miou: Sequence[float] = (), group: str = "buy") -> Path:
    """``config.yaml``, ``run.json`` and a finished stage for each score (a share)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe(data)))
    write_json(folder / "run.json", {"name": "mini", "labels": SPACE.to_dict(), "target": "city:val", "roles": {}})
    for number, score in enumerate(miou, 1):
        scores = {"city:val": {"miou": score, "accuracy": score, "iou": {}, "num_images": 6}}
        name = f"{group}_{number}"
        write_json(folder / "stages" / f"{number}_{name}" / "stage.json", {"name": name, "evaluations": scores})
    return folder


def buy(
    run: Path,
    pool: Dataset,
    number: int,
    cells: Cells,
    group: str = "buy",
    scores: Sequence[float | None] = (),
    **info: Any,
) -> Round:
    """Round ``number`` of a group; a cell's predicted class is its number, its clicks are 4 plus its image."""
    masks: dict[str, np.ndarray] = {}
    rows = []
    for place, (index, cell) in enumerate(cells):
        image = pool.ids[index]
        sample = pool.read_sample(index, True)
        mask = masks.setdefault(image, np.zeros(sample.image.shape[:2], np.uint16))
        top, left = divmod(cell, 4)
        window = np.s_[CELL[0] * top : CELL[0] * (top + 1), CELL[1] * left : CELL[1] * (left + 1)]
        part = sum(r.image == image for r in rows) + 1
        mask[window] = part
        assert sample.label is not None
        ignored = int((sample.label[window] == IGNORE).sum())
        score = scores[place] if scores else 1.0 / (place + 1)
        rows.append(
            Row(
                image=image,
                region=cell,
                part=part,
                area_px=CELL[0] * CELL[1],
                ignored_px=ignored,
                predicted=cell,
                clicks=4 + index,
                score=score,
                statistics={"entropy": 0.5, "edge": None},
            )
        )
    ignored_px = sum(r.ignored_px for r in rows)
    clicks = sum(r.clicks for r in rows)
    numbers = {
        "group": group,
        "round": number,
        "data": "city:train",
        "split": "train",
        "labels": pool.space.to_dict(),
        "annotator": "people",
        "acquisition": {"name": "entropy"},
        "partition": {"name": "superpixels", "number": 16},
        "model": "stage first, iteration 2",
        "seed": 0,
        "pool_px": 6 * 64 * 96,
        "budget_px": 1000,
        "labelled_px": len(rows) * CELL[0] * CELL[1] - ignored_px,
        "ignored_px": ignored_px,
        "regions": len(rows),
        "images": len(masks),
        "clicks": clicks,
        "minutes": clicks / 25,
    }
    return write_round(run / "annotate" / group / f"round_{number}", RoundInfo(**(numbers | info)), rows, masks)


def answer(one: Round, pool: Dataset, but: Sequence[tuple[str, int]] = ()) -> None:
    """The truth for every region, ``VOID`` where there is none; regions of ``but`` (image, part) stay open."""
    answers = LabelFolder(one.folder / "answers", one.labels, one.info.split)
    for image in one.by_image:
        asked = one.asked(image)
        label = pool.read_label(pool.ids.index(image))
        given = (asked > 0) & ~np.isin(asked, [part for i, part in but if i == image])
        answers.put(image, np.where(given, np.where(label == IGNORE, VOID, label), IGNORE).astype(np.uint8))
    answers.save()


def guess(one: Round, image: str, ids: np.ndarray) -> None:
    """What the model predicts for an image."""
    write_image(one.folder / "guess" / f"{file_of(image)}.png", ids)
