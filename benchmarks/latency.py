"""What both STDC networks cost to run on this machine, as ``segue bench latency`` measures it.

``python benchmarks/latency.py`` builds each at width 1 for 19 classes with random weights and measures 512x1024,
768x1536 and 1024x2048, ``compiled`` at the first alone, because preparing it takes minutes a size. (Only ``eager`` and
``channels_last`` depend on the answer: they interpolate the classes that can win, here all.) With ``--trained MODEL
--data NAME:SPLIT --root FOLDER --size HxW`` it adds what int8 costs a trained network. Writes
docs/results/latency.json and latency.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from export import network

from segue import api
from segue.cli.bench import open_data
from segue.cli.options import pixels
from segue.data.dataset import Dataset
from segue.export import latency
from segue.export.forms import FORMS
from segue.export.session import pictures
from segue.labels import U8, load_space

LARGER = (((768, 1536), 5), ((1024, 2048), 3))
CALIBRATION = 4
REFERENCE = "STDC1-50 250, STDC2-50 189, STDC1-75 127, STDC2-75 97 images/s (TensorRT 5, GTX 1080 Ti; the authors)"


class Made(Dataset):
    """Made-up pictures: ranges of random weights mean nothing, the time of int8 does not depend on them."""

    def __init__(self) -> None:
        super().__init__("made", load_space("cityscapes19"), [str(n) for n in range(CALIBRATION)], None)

    def _image(self, index: int) -> U8:
        return pictures(CALIBRATION, (512, 1024))[index]


def measure(backbone: str, runs: int) -> list[dict[str, Any]]:
    """One table of the command for each size."""
    model, labels, device = network(backbone), load_space("cityscapes19"), torch.device("cpu")
    uncompiled = tuple(form for form in FORMS if form != "compiled")
    plans = [latency.Plan([(512, 1024)], runs=runs, warmup=2)]
    plans += [latency.Plan([size], runs=few, warmup=1, forms=uncompiled) for size, few in LARGER]
    return [latency.measure(model, labels, plan, device, calibration=Made()) for plan in plans]


def trained(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Times and mIoU of a trained network."""
    size = pixels(arguments.size)
    if arguments.trained is None or size is None:
        return None
    predictor = api.load(arguments.trained, "cpu")
    scored, calibration = open_data(arguments.data, arguments.root, "", size, predictor.labels)
    plan = latency.Plan([size], forms=("eager", "channels_last", "onnx", "int8"))
    found = latency.measure(
        predictor.model, predictor.labels, plan, torch.device("cpu"), calibration=calibration, scored=scored
    )
    known = {key: predictor.info.get(key) for key in ("recipe", "stage", "iteration")}
    return {"trained": known, "data": arguments.data, **found}


def table(found: dict[str, Any]) -> list[str]:
    """Rows of the page."""
    (height, width), rows = found["sizes"][0]["size"], found["sizes"][0]["rows"]
    name, runs, lines = found["model"]["backbone"], found["runs"], []
    for row in rows:
        if "skipped" in row:
            lines.append(f"| {name} | {height}x{width} | {row['form']} | {row['skipped']} | | | | | |")
            continue
        times = " | ".join(f"{row[key]:.0f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        speed = f"{row['speed']:.2f} [{row['speed_p05']:.2f}, {row['speed_p95']:.2f}]"
        lines.append(f"| {name} | {height}x{width} | {row['form']} | {times} | {row['fps']:.2f} | {speed} | {runs} |")
    return lines


def page(content: dict[str, Any]) -> str:
    """The tables and what a reader must know."""
    machine = content["tables"][0]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in content["tables"][0]["versions"].items())
    head = ["network", "size", "form", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed, eager = 1", "runs"]
    lines = [
        "# Latency of the STDC networks on a CPU",
        "",
        f"Float image to train ids, batch 1, width 1, 19 classes, random weights; {machine['processor']}, "
        f"{machine['threads']} thread(s), {versions}; {content['date']}. {content['load']} Speed: median and 5th to "
        "95th percentile of the ratios in one turn. Of few runs p99 is the maximum.",
        "",
        f"GPU numbers are not measured: no GPU was at hand. Published there: {REFERENCE}.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(line for found in content["tables"] for line in table(found)),
    ]
    own = content["trained"]
    if own is not None:
        quality, (height, width) = own["quality"], own["sizes"][0]["size"]
        lines += [
            "",
            "## What int8 costs a trained network",
            "",
            f"Stage {own['trained']['stage']} of recipe {own['trained']['recipe']} (width {own['model']['width']}), "
            f"{own['data']}, {quality['num_images']} images of {height}x{width}, {own['calibration_pictures']} "
            f"training images for the ranges: mIoU {100 * quality['onnx']:.2f} as float, "
            f"{100 * quality['int8']:.2f} as int8, {quality['cost_points']:.2f} points.",
            "",
            f"| {' | '.join(head)} |",
            f"|{' --- |' * len(head)}",
            *table(own),
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--load", default="", help="a sentence about what else ran on the machine")
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--data", default="cityscapes:val")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--size", default="128x256")
    arguments = parser.parse_args()
    content = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} --runs {arguments.runs}",
        "load": arguments.load,
        "tables": [found for name in ("stdc813", "stdc1446") for found in measure(name, arguments.runs)],
        "trained": trained(arguments),
    }
    (RESULTS / "latency.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "latency.md").write_text(page(content))
    print(page(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
