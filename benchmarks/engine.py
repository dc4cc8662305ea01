"""What the engine costs over a bare loop: ``python benchmarks/engine.py``.

The same model, batches already in memory, loss and optimiser on both sides, and metrics;
a step of at least 200 ms. Single steps are interleaved, each with its line of metrics; a pair is the mean of 8 of them.
One thread, and CPU time (user + system) as the clock: both sides only compute, and other processes disturb it less.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from common import Memory, cpu, paired, record, verdict

from segue.config import OptimConfig, TrainConfig
from segue.data.batch import Batch, Meta
from segue.engine import Place, _Loop
from segue.labels import load_space
from segue.methods.supervised import Supervised, SupervisedConfig
from segue.models.build import build_model
from segue.ops.losses import segmentation

BAR = 1.05
SIZE = (4, 256, 512)
ALTERNATIONS = 8
PAIRS = 15


def batch() -> Batch:
    """One labelled batch, as a loader gives it."""
    n, h, w = SIZE
    g = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.randint(0, 256, (n, 3, h, w), generator=g, dtype=torch.uint8),
        label=torch.randint(0, 19, (n, h, w), generator=g, dtype=torch.uint8),
        pixel=torch.ones(n, h, w, dtype=torch.bool),
        weight=None,
        label_count=torch.tensor(float(n * h * w)),
        meta=tuple(Meta(i, str(i), "memory", (h, w)) for i in range(n)),
    )


def bare(model: torch.nn.Module, given: Batch, log: Path) -> object:
    """A training loop as one writes it by hand; returns the function that runs one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    model.train()

    def step() -> None:
        image, label = given.image.float().div_(255), given.label.long()
        loss = segmentation(model(image), label, pixel=given.pixel, denominator=given.label_count)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with log.open("a") as file:
            file.write(json.dumps({"loss": loss.item()}) + "\n")

    return step


def engine(model: torch.nn.Module, given: Batch, folder: Path) -> object:
    """The engine's loop, opened so that one step can be run at a time."""
    labels = load_space("cityscapes19")
    method = Supervised(SupervisedConfig(name="supervised"), model, labels, {})  # type: ignore[arg-type]
    train = TrainConfig(iterations=10**6, log_every=1, checkpoint_every=10**6)
    place = Place(folder=folder, device=torch.device("cpu"), labels=labels, info={})
    loop = _Loop(method, {"source": Memory(given)}, train, OptimConfig(), place, None)
    loop._begin()
    method.train()
    stream = loop.streams["source"].iterate(0)

    def step() -> None:
        loop._iterate({"source": next(stream)})
        loop.iteration += 1
        loop._after_iteration(stop=0)

    return step


def main() -> int:
    """Measure, print, store."""
    torch.set_num_threads(1)
    given = batch()
    config = {"name": "bisenet", "width": 0.25}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ours = engine(build_model(config, 19), replace(given), Path(folder))
        torch.manual_seed(0)
        theirs = bare(build_model(config, 19), given, Path(folder) / "bare.jsonl")
        row = paired(ours, theirs, PAIRS, cpu, ALTERNATIONS)  # type: ignore[arg-type]
    step = row["b_ms"]
    interval = f"{row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]"
    print(f"bare step {step:.0f} ms; engine over bare loop {interval}")
    print(f"worse end against {BAR}: {verdict(row, BAR, at_most=True)}")
    record("engine", BAR, [row], shape=SIZE, alternations=ALTERNATIONS)
    return 0 if verdict(row, BAR, at_most=True) == "holds" and step >= 200 else 1


if __name__ == "__main__":
    raise SystemExit(main())
