"""The vDNA project's JSON files on the command line: ``segue run FILE.json`` and ``segue config convert FILE.json``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segue import recipes
from segue.config import DatasetConfig, Recipe
from segue.errors import UserError
from segue.files import read_json, write_json
from segue.progress import Progress
from segue.pseudo_labelling import PseudoLabelConfig
from segue.vdna_config import ORDERS, Translated, translate

RESULTS = "validation_results_bn.json"
LISTED = "image_label.json"
NAMES = {"cityscapes": "Cityscapes", "kitti360": "KITTI-360"}


def opened(path: Path, overrides: list[str], *, strict: bool = True) -> tuple[Translated, Recipe | None]:
    """A file and its recipe (none of weak labels), its notes on stderr and its checkpoints converted.

    ``UserError`` for what is wrong with it; ``strict=False``: not for files that are not there.
    """
    given, rest = translate(path, overrides, strict=strict)
    for note in given.notes:
        print(f"{path}: {note}", file=sys.stderr)
    ours = {old: _converted(old, given.settings) for old in given.checkpoints}
    if given.labelling:
        if rest:
            raise UserError(f"{path}: {rest[0].partition('=')[0]} is no key of weak labels")
        given.labelling = _replaced(given.labelling, ours)
        return given, None
    given.recipe, _ = recipes.collect(_replaced(given.recipe, ours), rest)
    return given, recipes.validate(given.recipe)


def label(given: Translated, out: Path | None, device: str) -> None:
    """Write the weak labels that a file asks for, and the list of them in the published form."""
    from segue import api
    from segue.cli.pseudo_label import _lines
    from segue.data.dataset import open_dataset
    from segue.pseudo_labels import generate

    asked = given.labelling
    folder = out or Path(asked["out"])
    config = PseudoLabelConfig.model_validate(asked["rules"])
    predictor = api.load(config.models[0], device)
    dataset = open_dataset("kitti360", DatasetConfig.model_validate(asked["data"]), asked["split"], predictor.labels)
    models, where = [predictor.model], predictor.model.mean.device
    index = generate(models, dataset, predictor.labels, folder, config, device=where, progress=Progress("weak labels"))
    for line in _lines(index):
        print(line)
    place = {image_id: dataset.describe(n) for n, image_id in enumerate(dataset.ids)}
    rows = [
        {
            "image_path": place[image_id],
            "label_path": str(folder / row["file"]),
            "entropy": row["entropy"],
            "confidence": row["confidence"],
        }
        for image_id, row in index["images"].items()
    ]
    write_json(folder / LISTED, rows)
    print(f"{len(index['images'])} labels in {folder}; train on them with data.NAME.labels={folder}")


def results(given: Translated, folder: Path) -> Iterator[str]:
    """What the published test prints, of a finished run; and its results file, written into the run's folder."""
    if given.kind != "Testing":
        return
    orders: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    for path in sorted(folder.glob("stages/*/stage.json")):
        stage = read_json(path)
        name, means = stage["name"], []
        order = next((order for order in ORDERS if order in name), "rand")
        for text, scores in reversed(stage["evaluations"].items()):
            title = next((told for key, told in NAMES.items() if text.startswith(key)), text)
            metrics = _published(scores)
            means.append(metrics["Mean IoU"])
            orders[order].append({"name": name, "metrics_val": metrics, "dataset": title})
            yield f"{name}: {title} mIoU {100 * metrics['Mean IoU']:.2f}"
        if means:
            yield f"{name}: average mIoU {100 * sum(means) / len(means):.2f}"
    write_json(folder / RESULTS, [{"order": order, "checkpoints": found} for order, found in orders.items()])
    yield f"{folder / RESULTS}"


def _published(scores: dict[str, Any]) -> dict[str, Any]:
    """Metrics by their published names; a class that is absent is null."""
    counts = np.array(scores["confusion"], np.float64)
    truth = counts.sum(1)
    iou = np.array([np.nan if value is None else value for value in scores["iou"].values()])
    return {
        "Overall Acc": scores["accuracy"],
        "Mean Acc": scores["mean_accuracy"],
        "FreqW Acc": float(np.nansum(truth / truth.sum() * iou)),
        "Mean IoU": scores["miou"],
        "Class IoU": {str(n): value for n, value in enumerate(scores["iou"].values())},
    }


def _converted(old: str, settings: dict[str, Any]) -> str:
    from segue.convert import converted

    folder = converted(Path(old), settings)
    print(f"{old} is converted: {folder}", file=sys.stderr)
    return str(folder)


def _replaced(value: Any, ours: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, ours) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, ours) for inner in value]
    return ours.get(value, value) if isinstance(value, str) else value
