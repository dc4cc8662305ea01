"""Which weak labels are right: trust learnt on the source against confidence, entropy and agreement alone.

``python benchmarks/trust.py`` trains, for each seed, a small network on generated ``game`` scenes, learns trust from
other ``game`` scenes, and looks at its labels of ``city`` scenes, whose truth no rule sees. For every score, pixels are
kept from the best on (equal ones in random order, in expectation): ``area`` is the precision's mean over the kept
shares 0 … 1, and there are precision and recall of right labels, over pixels and as the mean of classes, at
some shares. ``weighted``: all labels, each counted by its weight, beside the hard threshold on confidence that keeps as
much. No network is trained on the labels here. It writes docs/results/trust.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from common import cpu, record

from segue.config import TransformConfig
from segue.data import scenes
from segue.data.dataset import Dataset
from segue.data.loaders import Stream
from segue.labels import IGNORE, load_space
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.ops.losses import segmentation
from segue.pseudo_labelling import PseudoLabelConfig, TrustRules
from segue.pseudo_labels.judge import Judge, views, whole
from segue.pseudo_labels.thresholds import encode
from segue.pseudo_labels.trust import Trust, agreement, octaves

SIZE, BATCH, LR = (128, 256), 4, 0.01
SPACE = load_space("cityscapes19")
SHARES = (0.25, 0.5, 0.75)
F64 = npt.NDArray[np.float64]


class Drawn(Dataset):
    """Generated scenes in memory."""

    def __init__(self, preset: str, name: str, number: int, seed: int) -> None:
        domain = scenes.domain(preset)
        self.scenes = [scenes.render(domain, scenes.scene_seed(seed, name, k), SIZE) for k in range(number)]
        super().__init__(preset, SPACE, [f"{name}/{k}" for k in range(number)], None)
        self.split, self.labelled = name, True

    def _image(self, index: int) -> Any:
        return self.scenes[index].image

    def read_label(self, index: int) -> Any:
        return self.scenes[index].label


def trained(data: Drawn, iterations: int, seed: int) -> SegModel:
    """The demo's network after so many steps on the source."""
    torch.manual_seed(seed)
    model = build_model({"name": "bisenet", "width": 0.25}, len(SPACE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)
    stream = Stream([data], None, TransformConfig(), (seed, "trust"), BATCH, True, 0)
    for iteration, (batch,) in zip(range(iterations), stream.iterate(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - iteration / iterations) ** 0.9
        given = batch.to(torch.device("cpu"))
        loss = segmentation(model(given.image), given.label, pixel=given.pixel, denominator=given.label_count)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def looked_at(model: SegModel, data: Drawn, judge: Judge, trust: Trust) -> dict[str, npt.NDArray[Any]]:
    """Of every labelled pixel: class, truth, and the scores."""
    parts: list[dict[str, npt.NDArray[Any]]] = []
    table = trust.table()
    by_class = trust.counts[1].sum((1, 2)) / np.maximum(1, trust.counts.sum((0, 2, 3)))
    for scene in data.scenes:
        (answers,) = views([model], [scene.image], judge.protocol, SIZE)
        found = whole(answers[0])
        classes = found.winner.numpy()
        agree = agreement(classes, [answer.ids() for answer in answers[1:]])
        octave = octaves(encode(found.confidence))
        known = scene.label != IGNORE
        planes = {
            "class": classes,
            "truth": scene.label,
            "confidence": found.confidence.numpy(),
            "entropy": -found.entropy.numpy(),
            "agreement": agree,
            "class_rate": by_class[classes],
            "trust": table[classes, agree, octave],
        }
        parts.append({name: plane[known] for name, plane in planes.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def curve(score: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> tuple[F64, F64]:
    """Kept and right pixels after each group of equal scores, from the highest on; both begin with 0."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1) + 1
    rights = np.concatenate([[0], np.cumsum(right[order])])
    return np.concatenate([[0], ends]).astype(float), np.concatenate([[0], rights[ends]]).astype(float)


def judged(pixels: dict[str, npt.NDArray[Any]], name: str) -> dict[str, Any]:
    """One score's area, and precision and recall at some shares."""
    right = pixels["class"] == pixels["truth"]
    kept, rights = curve(pixels[name], right)
    grid = np.linspace(0, len(right), 1001)[1:]
    row: dict[str, Any] = {"area": float((np.interp(grid, kept, rights) / grid).mean())}
    for share in SHARES:
        # pixels at the limit are kept in part, so that the share is exact
        limit = np.sort(pixels[name])[::-1][int(share * len(right)) - 1]
        above, level = pixels[name] > limit, pixels[name] == limit
        weight = above + level * ((share * len(right) - above.sum()) / level.sum())
        row[f"{share:.0%}"] = weighed(pixels, weight)
    return row


def weighed(pixels: dict[str, npt.NDArray[Any]], weight: F64) -> dict[str, float]:
    """Precision and recall of labels that count by their weight, over pixels and as means of classes."""
    right = pixels["class"] == pixels["truth"]
    of_label = np.bincount(pixels["class"], weight, len(SPACE))
    hits = np.bincount(pixels["class"], weight * right, len(SPACE))
    of_truth = np.bincount(pixels["truth"], minlength=len(SPACE))
    seen = of_truth > 0
    return {
        "kept": float(weight.mean()),
        "precision": float(hits.sum() / of_label.sum()),
        "recall": float(hits.sum() / of_truth.sum()),
        "class_precision": float((hits[seen] / np.maximum(of_label[seen], 1e-9)).mean()),
        "class_recall": float((hits[seen] / of_truth[seen]).mean()),
    }


def one(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one seed."""
    start = cpu()
    model = trained(Drawn("game", "train", arguments.images, seed), arguments.iterations, seed)
    source, target = (Drawn(p, "other", arguments.looked_at, 1000 + seed) for p in ("game", "city"))
    config = PseudoLabelConfig(models=("source",), trust=TrustRules(source="game:other", images=None))
    judge = Judge(SPACE, config, source)
    with torch.inference_mode():
        judge.learn([model])
        assert judge.trust is not None
        pixels = looked_at(model, target, judge, judge.trust)
    scores = ("confidence", "entropy", "agreement", "class_rate", "trust")
    weights = pixels["trust"]
    hard = np.zeros(len(weights))
    hard[np.argsort(-pixels["confidence"], kind="stable")[: round(weights.sum())]] = 1
    row = {
        "seed": seed,
        "accuracy": float((pixels["class"] == pixels["truth"]).mean()),
        "right_on_source_by_agreement": judge.learned()["source_labels"]["right_by_agreement"],
        "mean_trust": float(weights.mean()),
        "scores": {name: judged(pixels, name) for name in scores},
        "weighted": {"trust": weighed(pixels, weights), "confidence_at_equal_share": weighed(pixels, hard)},
        "cpu_s": cpu() - start,
    }
    print(json.dumps(rounded({"seed": seed, "areas": {n: row["scores"][n]["area"] for n in scores}, **row})))
    return row


def rounded(value: Any) -> Any:
    """The same containers, numbers with four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--looked-at", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = [one(seed, arguments) for seed in range(arguments.seeds)]
    areas = {name: [row["scores"][name]["area"] for row in rows] for name in rows[0]["scores"]}
    better = [trust - plain for trust, plain in zip(areas["trust"], areas["confidence"], strict=True)]
    print({name: round(float(np.mean(values)), 4) for name, values in areas.items()}, "trust - confidence", better)
    record(
        "trust",
        0.0,
        rounded(rows),
        size=SIZE,
        network="bisenet, width 0.25",
        iterations=arguments.iterations,
        looked_at=arguments.looked_at,
        area_trust_minus_confidence=rounded(better),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
