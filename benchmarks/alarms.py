"""False alarms and detections of ``segue.alarms``: ``python benchmarks/alarms.py [--out FOLDER]``.

Small adaptation runs on generated scenes, some as they should be and some made sick on purpose. What a run was, healthy
or harmed, is decided by target labels afterwards; the alarms have seen none. Rules and constants were chosen on the
runs towards two targets; what is reported is on a third, with other seeds. All begin with one source-only model. A run
that is finished in the folder is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Memory, cpu, paired, record
from PIL import Image

from segue import recipes
from segue.alarms import Judge, Look, looks_of
from segue.config import OptimConfig, TrainConfig
from segue.data import scenes
from segue.data.batch import Batch, Meta
from segue.engine import Place, _Loop
from segue.files import read_json, write_text
from segue.jobs.run import run
from segue.labels import load_space
from segue.methods.fda import FDA, FDAConfig
from segue.models.build import build_model

SIZE = (64, 128)
DOMAINS = (
    ("game", "game", "gta5", "train", 120, 1),
    ("city", "city", "cityscapes", "train", 120, 2),
    ("city", "city", "cityscapes", "val", 32, 2),
    ("other", "random-11", "cityscapes", "train", 120, 4),
    ("other", "random-11", "cityscapes", "val", 32, 4),
    ("third", "random-12", "cityscapes", "train", 120, 5),
    ("third", "random-12", "cityscapes", "val", 32, 5),
)
"""Folder, domain, layout, split, number, seed."""
DISCRIMINATOR = {"discriminator": {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0}}
SELF_TRAINING = {"name": "self_training", "threshold": 0.9}
TEACHER = SELF_TRAINING | {"predict_with": "teacher"}
ADVERSARIAL = {"name": "adversarial", "levels": {"main": 0.001}}
HEALTHY: dict[str, dict[str, Any]] = {
    "self_training": {"method": TEACHER, "start": "source", "lr": 0.01},
    "fda_01": {"method": {"name": "fda", "beta": 0.01}, "start": "source", "lr": 0.01},
    "minent": {"method": {"name": "minent"}, "start": "source", "lr": 0.003},
    "advent": {"method": ADVERSARIAL | {"input": "self_information"}, "start": "source", "lr": 0.01},
    "batch_statistics": {"method": {"name": "batch_statistics"}, "start": "source", "lr": 0.01},
    "self_training_again": {"method": TEACHER, "start": "adapted", "lr": 0.003},
    "self_training_slow": {"method": TEACHER, "start": "adapted", "lr": 0.001},
    "batch_statistics_again": {"method": {"name": "batch_statistics"}, "start": "adapted", "lr": 0.01},
    "minent_frozen": {"method": {"name": "minent"}, "start": "statistics", "lr": 1e-4, "norm": "frozen"},
}
"""As they should be."""
SICK: dict[str, dict[str, Any]] = {
    "student_again": {"method": SELF_TRAINING, "start": "adapted", "lr": 0.001},
    "fda_again": {"method": {"name": "fda", "beta": 0.05}, "start": "adapted", "lr": 0.001},
    "minent_1": {"method": {"name": "minent", "levels": {"main": 1.0}}, "start": "adapted", "lr": 0.003},
    "minent_1_source": {"method": {"name": "minent", "levels": {"main": 1.0}}, "start": "source", "lr": 0.003},
    "minent_03": {"method": {"name": "minent", "levels": {"main": 0.3}}, "start": "adapted", "lr": 0.003},
    "blind": {"method": SELF_TRAINING | {"threshold": 0.0}, "start": "adapted", "lr": 0.1},
    "blind_source": {"method": SELF_TRAINING | {"threshold": 0.0}, "start": "source", "lr": 0.1},
    "adversarial_1": {
        "method": ADVERSARIAL | {"levels": {"main": 1.0}},
        "start": "adapted",
        "lr": 0.01,
        "networks": {"discriminator": DISCRIMINATOR["discriminator"] | {"lr": 1e-3}},
    },
    "fda_45": {"method": {"name": "fda", "beta": 0.45}, "start": "adapted", "lr": 0.01},
    "fda_lr": {"method": {"name": "fda", "beta": 0.01}, "start": "adapted", "lr": 0.3},
    "source_only": {"method": {"name": "fda", "beta": 0.0, "entropy_weight": 0}, "start": "adapted", "lr": 0.01},
    "minent_statistics": {"method": {"name": "minent"}, "start": "statistics", "lr": 0.003},
    "noise": {"method": SELF_TRAINING, "start": "adapted", "lr": 0.01, "target": "noise"},
}
"""Made sick on purpose, or, the first two and ``minent_statistics``, by batch norm that sees the source again."""
KINDS = HEALTHY | SICK
CHOOSE = (("city", 0), ("other", 1), ("other", 2), ("other", 3))
TEST = (("third", 4), ("third", 5), ("third", 6))
"""Target and seed of the runs that rules and constants were chosen on, and of those that are reported."""
WHOLE = (CHOOSE[0], CHOOSE[1], TEST[0], TEST[1])
"""Where every kind is run; elsewhere the healthy ones, without ``advent``, which takes four times as long."""
WATCH_EVERY = {"city": 4, "other": 4, "third": 2}
HARM = 0.01
"""A run is harmed when it ends with this much less mIoU than it started with …"""
SCORED, LOST = 0.05, 0.1
"""… or when a class that had this IoU ends with less than this share of it."""
SHAPE = (4, 128, 256)
"""Of the batches whose cost is measured."""
ITERATIONS = 80
ADVERSARIAL_ITERATIONS = 60
"""Each costs four of the others."""


@dataclass(frozen=True)
class Cell:
    """One run: what, towards which target, with which seed and start model."""

    kind: str
    target: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.kind}-{self.target}-{self.seed}"


def cells(places: Sequence[tuple[str, int]]) -> list[Cell]:
    """All runs towards some targets."""
    again = [kind for kind in HEALTHY if kind != "advent"]
    return [Cell(kind, *place) for place in places for kind in (KINDS if place in WHOLE else again)]


def write_data(root: Path) -> None:
    """The scenes, and a data set of noise."""
    for folder, domain, layout, split, num, seed in DOMAINS:
        note = root / folder / "scenes.json"
        if not (note.exists() and split in read_json(note)):
            given = scenes.domain(domain)
            scenes.write(root / folder, num=num, seed=seed, domain=given, size=SIZE, layout=layout, split=split)
    noise = root / "noise"
    if not (noise / "dataset.yaml").exists():
        noise.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for k in range(40):
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(noise / f"{k:02d}.png")
        text = 'name: noise\nspace: cityscapes19\nimage: "{key}.png"\nsplits:\n  train: {}\n'
        write_text(noise / "dataset.yaml", text)


def train(out: Path, name: str, stage: dict[str, Any], seed: int, *scored: str, **train: Any) -> Path:
    """Run one stage into ``out/name`` unless it is finished there; its stage folder."""
    folder = out / name
    kept = folder / "stages" / f"0_{stage['name']}"
    if (folder / "result.json").exists():
        return kept
    data = {"game": {"dataset": "gta5", "root": str(out / "data/game")}}
    data |= {k: {"dataset": "cityscapes", "root": str(out / "data" / k)} for k in WATCH_EVERY}
    given = {
        "name": "alarms",
        "labels": "cityscapes19",
        "seed": seed,
        "threads": 1,
        "model": {"name": "bisenet", "backbone": "stdc813", "width": 0.25},
        "data": data | {"noise": {"root": str(out / "data/noise")}},
        "train": {"batch_size": 4, "channels_last": True, "checkpoint_every": 10**6, **train},
        "optim": {"name": "adamw", "lr": 0.01, "weight_decay": 0.01},
        "evaluate": {"data": [f"{name}:val" for name in scored], "batch_size": 8, "samples": 0},
        "stages": [stage],
    }
    run(recipes.load(given), folder, device="cpu", resume=folder.exists())
    return kept


def start_of(out: Path, kind: str, target: str) -> Path:
    """The model that runs start from: trained on the source, and then adapted or with the target's batch statistics."""
    supervised = {"name": "start", "method": "supervised", "data": {"source": "game:train"}}
    source = train(out, "source-0", supervised, 0, *WATCH_EVERY, iterations=800)
    if kind == "source":
        return source
    streams, iterations = {"target": f"{target}:train"}, 60
    method: dict[str, Any] = {"name": "batch_statistics"}
    if kind == "adapted":
        streams, method, iterations = {"source": "game:train"} | streams, TEACHER, ITERATIONS
    stage = {"name": "start", "method": method, "data": streams, "start": str(source)}
    return train(out, f"{kind}-{target}-0", stage, 0, target, iterations=iterations)


def execute(out: Path, cell: Cell) -> Path:
    """Run a cell."""
    given = KINDS[cell.kind]
    target = given.get("target", cell.target)
    streams = {"source": "game:train", "target": f"{target}:train"}
    if given["method"]["name"] == "batch_statistics":
        del streams["source"]
    optim: dict[str, Any] = {"lr": given["lr"]}
    adversarial = given["method"]["name"] == "adversarial"
    if adversarial:
        optim["networks"] = given.get("networks", DISCRIMINATOR)
    stage = {"name": "run", "method": given["method"], "data": streams, "optim": optim}
    stage["model"] = {"norm": given.get("norm", "train")}
    stage["start"] = str(start_of(out, given["start"], cell.target))
    iterations = ADVERSARIAL_ITERATIONS if adversarial else ITERATIONS
    length = {"iterations": iterations, "evaluate_every": 20, "watch_every": WATCH_EVERY[cell.target]}
    return train(out, cell.name, stage, cell.seed, cell.target, **length)


def judged(out: Path, cell: Cell) -> dict[str, Any]:
    """What labels say of a run, what alarms it raised, and the candidate signals, worst over the run."""
    folder = out / cell.name / "stages/0_run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    text = f"{cell.target}:val"
    begun = read_json(start_of(out, KINDS[cell.kind]["start"], cell.target) / "stage.json")
    before, after = begun["evaluations"][text], read_json(folder / "stage.json")["evaluations"][text]
    scored = {c: iou for c, iou in before["iou"].items() if iou is not None and iou >= SCORED}
    lost = [c for c, iou in scored.items() if (after["iou"][c] or 0) < LOST * iou]
    scores = [(row["iteration"], row[f"miou/{text}"]) for row in rows if f"miou/{text}" in row]
    harmed = [i for i, miou in scores if miou < before["miou"] - HARM]
    looks = looks_of(rows)
    judge = Judge(True, looks[-1].iteration)
    classes = load_space("cityscapes19").classes
    alarms = [alarm for look in looks for alarm in judge.add(look)]
    return {
        "run": cell.name,
        "start_miou": round(100 * before["miou"], 1),
        "miou": round(100 * after["miou"], 1),
        "lost": lost,
        "healthy": after["miou"] >= before["miou"] - HARM and not lost,
        "harm_seen_at": harmed[0] if harmed else None,
        "alarms": [[a.kind, a.iteration, [classes[c] for c in a.classes], a.now, a.before] for a in alarms],
        "signals": signals(looks),
    }


def signals(looks: list[Look]) -> dict[str, float]:
    """Candidates for negative transfer, each the larger the worse: its worst reading of the whole set."""
    parts = 1 + max(k.part for k in looks)
    start = looks[:parts]
    worst: dict[str, float] = {}
    for end in range(2 * parts, len(looks) + 1):
        now = sorted(looks[end - parts : end], key=lambda k: k.part)
        for name, value in _signals(start, now).items():
            worst[name] = max(worst.get(name, -np.inf), value)
    return {name: round(float(value), 4) for name, value in worst.items()}


def _signals(before: list[Look], now: list[Look]) -> dict[str, float]:
    def mean(looks: list[Look], name: str) -> Any:
        return np.mean([getattr(k, name) for k in looks], axis=0)

    def h(p: Any) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    (p, q), (e, f) = (mean(before, "mass"), mean(now, "mass")), (mean(before, "entropy"), mean(now, "entropy"))
    return {
        "mutual information falls": 1 - (h(q) - f) / (h(p) - e),
        "entropy of the mean falls": 1 - h(q) / h(p),
        "entropy rises": f / e - 1,
        "entropy falls": 1 - f / e,
        "confidence falls": mean(before, "confidence") - mean(now, "confidence"),
        "agreement with the start falls": 1 - mean(now, "agreement"),
        "histogram moves (Jensen-Shannon)": h((p + q) / 2) - (h(p) + h(q)) / 2,
        "effective classes fall": 1 - np.exp(h(mean(now, "share")) - h(mean(before, "share"))),
    }


def compared(choose: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each signal: area under the ROC curve on either group, and the threshold of the first group on the second."""
    out = {}
    for name in choose[0]["signals"]:
        row = {}
        for group, runs in (("choose", choose), ("test", test)):
            good, bad = ([r["signals"][name] for r in runs if r["healthy"] == healthy] for healthy in (True, False))
            wins = [(b > g) + 0.5 * (b == g) for b in bad for g in good]
            row[f"auc_{group}"] = round(float(np.mean(wins)), 3)
        largest = max(r["signals"][name] for r in choose if r["healthy"])
        over = [r["healthy"] for r in test if r["signals"][name] > largest]
        row |= {"threshold": largest, "false_alarms": sum(over), "detected": len(over) - sum(over)}
        out[name] = row
    return out


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """False alarms on the healthy runs, detections and lead times on the harmed ones."""
    healthy, harmed = ([r for r in runs if r["healthy"] == wanted] for wanted in (True, False))
    kinds = ("class_vanishing", "collapse", "negative_transfer")

    def first(r: dict[str, Any], *of: str) -> float:
        return min((a[1] for a in r["alarms"] if a[0] in (of or kinds)), default=np.inf)

    found = [r for r in harmed if r["alarms"]]
    leads = [r["harm_seen_at"] - first(r) for r in found if r["harm_seen_at"] is not None]
    losing = [r for r in harmed if r["lost"]]
    return {
        "healthy": len(healthy),
        "false_alarms": sum(bool(r["alarms"]) for r in healthy),
        "false_alarms_by_kind": {k: sum(first(r, k) < np.inf for r in healthy) for k in kinds},
        "harmed": len(harmed),
        "detected": len(found),
        "detected_by_kind": {k: sum(first(r, k) < np.inf for r in harmed) for k in kinds},
        "first_alarm_iterations": sorted(first(r) for r in found),
        "lead_over_labels_iterations": sorted(leads),
        "lost_classes": sum(len(r["lost"]) for r in losing),
        "lost_classes_named": sum(
            c in [n for a in r["alarms"] if a[0] == "class_vanishing" for n in a[2]] for r in losing for c in r["lost"]
        ),
    }


def cost() -> dict[str, Any]:
    """CPU time of a look over that of a training iteration: FDA, the cheapest method with two streams."""
    labels = load_space("cityscapes19")
    n, h, w = SHAPE
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (n, 3, h, w), generator=g, dtype=torch.uint8)
    label = torch.randint(0, 19, (n, h, w), generator=g, dtype=torch.uint8)
    meta = tuple(Meta(i, str(i), "memory", (h, w)) for i in range(n))
    pixel = torch.ones(n, h, w, dtype=torch.bool)
    stream = Memory(Batch(image, label, pixel, None, torch.tensor(float(n * h * w)), meta))
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "width": 0.25}, 19)
    method = FDA(FDAConfig(name="fda"), model, labels, {})
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), torch.device("cpu"), labels, {}, watch=("target",), trained=True)
        train = TrainConfig(iterations=10**6, checkpoint_every=10**6)
        loop = _Loop(method, {"source": stream, "target": stream}, train, OptimConfig(), place, None)
        loop._begin()
        method.train()
        given = next(stream.iterate(0))

        def look() -> None:
            assert loop.watch
            loop._note(loop.watch.looks(method.predictor(), 20, 0))
            method.train()

        row = paired(look, lambda: loop._iterate({"source": given, "target": given}), 11, cpu)
    share = row["ratio_median"] / (train.watch_every or 1)
    return {"shape": SHAPE, "look_over_iteration": row, "share_of_training": round(share, 4)}


def main() -> int:
    """Run what is missing, judge, print, store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/alarms"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    write_data(out / "data")
    groups = {}
    for name, places in (("choose", CHOOSE), ("test", TEST)):
        chosen = cells(places)
        for cell in chosen:
            execute(out, cell)
        groups[name] = [judged(out, cell) for cell in chosen]
    found = {name: summary(runs) for name, runs in groups.items()}
    table = compared(groups["choose"], groups["test"])
    print(json.dumps({"rates": found, "candidates": table}, indent=1))
    rows = [{"group": name, **row} for name, runs in groups.items() for row in runs]
    record("alarms", HARM, rows, summary=found, candidates=table, cost=cost())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
