"""How much faster thresholds and label files come from counts than from lists and sorting, and their memory.

``python benchmarks/pseudo_labels.py`` gives both sides the same predicted classes (uint8) and their probabilities
(float32) of 500 images of 512x1024 with 19 classes, and measures CPU time from there to thresholds and PNGs, in turns.
Ten maps, as a network of stride 8 makes them, are recycled, every time shifted to another place; making them is not
timed. Files of both sides lie in memory, so that no file system is measured.

The other side does what FDA's official code does, with lists: all predictions kept, a list of confidences for each
class, ``np.sort`` and an index, a mask for each class and image, Pillow's PNG with its own settings. The row with the
bar uses the smallest types that hold the same (uint8, float32). Rows without a bar, of 100 images: the official code's
float64; PNGs at our settings; files on disk; and both sides from all 19 probabilities of a pixel.

Memory is that of a process that does our side for 100 and for 500 images: what tracemalloc sees, and growth of the
resident size, which holds torch's arrays too. It writes docs/results/pseudo_labels.json.

``--decision`` measures instead what a network's logits (stride 8) of one image become: label by the entropy rule, mean
entropy and mean confidence. The other side does as the vDNA project's code: resize, softmax, entropy, argmax, entropy
again, maximum, in float32 at full size. It writes docs/results/pseudo_labels_decision.json.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import Z_RLE

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from common import cpu, paired, record, verdict
from PIL import Image

from segue.labels import load_space
from segue.models.base import ModelConfig, Output, SegModel
from segue.pseudo_labels import Writer, published
from segue.pseudo_labels.judge import whole
from segue.scoring.inference import Answer, ask
from segue.scoring.protocols import NATIVE

BAR, BAR_THRESHOLD, BAR_MB = 5.0, 1e-3, 50.0
SHAPE, IMAGES, FEW, POOL = (512, 1024), 500, 100, 10
QUANTILE, CAP, ENTROPY_MAX = 0.66, 0.9, 0.3
SPACE = load_space("cityscapes19")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
PUBLISHED, SMALL = (np.float64, np.float64), (np.uint8, np.float32)
C = len(SPACE)


class Source:
    """Images one by one; ``clock`` leaves out the time that it takes to make them."""

    def __init__(self, number: int, whole: bool = False) -> None:
        self.number, self.whole, self.spent = number, whole, 0.0
        self.pool: list[Any] = [probabilities(seed) for seed in range(3 if whole else POOL)]
        if not whole:
            self.pool = [(p.argmax(0).astype(np.uint8), p.max(0)) for p in self.pool]

    def clock(self) -> float:
        """CPU-seconds without those of the source."""
        return cpu() - self.spent

    def __iter__(self) -> Iterator[Any]:
        for k in range(self.number):
            start = cpu()
            item = self.pool[k % len(self.pool)]
            shift = 7 * (k // len(self.pool)), 13 * (k // len(self.pool))
            item = np.roll(item, shift, (1, 2)) if self.whole else tuple(np.roll(a, shift, (0, 1)) for a in item)
            self.spent += cpu() - start
            yield item


def probabilities(seed: int) -> np.ndarray:
    """(C,H,W) softmax of logits of stride 8, resized: regions with sure insides, unsure edges, ragged in detail."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.standard_normal((C, SHAPE[0] // s, SHAPE[1] // s)).astype(np.float32) for s in (64, 8))
    size = SHAPE[1] // 8, SHAPE[0] // 8
    logits = np.stack(
        [6 * cv2.resize(a, size, interpolation=cv2.INTER_CUBIC) + b for a, b in zip(coarse, fine, strict=True)]
    )
    logits += rng.permutation(np.linspace(-3, 3, C, dtype=np.float32))[:, None, None]
    full = [cv2.resize(a, SHAPE[::-1], interpolation=cv2.INTER_LINEAR) for a in logits]
    return torch.from_numpy(np.stack(full)).softmax(0).numpy()


def by_sorting(source: Source, folder: Path, kinds: tuple[type, type], **png: Any) -> list[float]:
    """A list of confidences for each class, thresholds from the sorted ones, labels by masks.

    ``kinds``: types of classes and confidences.
    """
    kept: list[Any] = []
    lists: list[list[Any]] = [[] for _ in range(C)]
    for item in source:
        classes, confidence = (item.argmax(0), item.max(0)) if source.whole else item
        classes, confidence = classes.astype(kinds[0]), confidence.astype(kinds[1])
        kept.append((classes, confidence))
        for c in range(C):
            lists[c].append(confidence[classes == c])
    thresholds = []
    for parts in lists:
        x = np.sort(np.concatenate(parts))
        thresholds.append(min(float(x[round(len(x) * QUANTILE)]), CAP) if len(x) else 0.0)
    folder.mkdir()
    for k, (label, confidence) in enumerate(kept):
        for c in range(C):
            label[(confidence < thresholds[c]) & (label == c)] = 255
        Image.fromarray(label.astype(np.uint8)).save(folder / f"{k:04d}.png", **png)
    return thresholds


def by_counts(source: Source, folder: Path) -> dict[str, Any]:
    """Ours."""
    names = [f"{k:04d}" for k in range(source.number)]
    with Writer(folder, SPACE, names, {"split": "train"}) as writer:
        for name, item in zip(names, source, strict=True):
            if source.whole:
                confidence, winner = torch.from_numpy(item).max(0)
                writer.add(name, winner.to(torch.uint8).numpy(), confidence)
            else:
                writer.add(name, *item)
        return writer.finish(lambda counted: published(counted, QUANTILE, CAP))


def compare(
    source: Source, root: Path, pairs: int, against: str, bar: float | None = None, kinds: Any = SMALL, **png: Any
) -> dict[str, Any]:
    """One row; both sides write into fresh folders, and what they find is compared."""
    found: dict[str, Any] = {}

    def fresh(name: str, work: Callable[..., Any], **options: Any) -> None:
        start = cpu()
        shutil.rmtree(root / name, ignore_errors=True)
        source.spent += cpu() - start
        found[name] = work(source, root / name, **options)

    row = paired(lambda: fresh("a", by_sorting, kinds=kinds, **png), lambda: fresh("b", by_counts), pairs, source.clock)
    difference = np.abs(np.array(found["a"]) - list(found["b"]["thresholds"].values())).max()
    shares = [share_kept(root / name) for name in ("a", "b")]
    facts = {
        "against": against,
        "bar": bar,
        "images": source.number,
        **row,
        "threshold_difference": float(f"{difference:.2g}"),
        "share_kept": [round(share, 5) for share in shares],
        "label_mb": [round(sum(p.stat().st_size for p in (root / n).glob("*.png")) / 1e6, 1) for n in ("a", "b")],
    }
    facts["verdict"] = "no bar" if bar is None else verdict(row, bar, at_most=False)
    print(facts)
    return facts


def share_kept(folder: Path) -> float:
    """Share of labelled pixels of the first files."""
    labels = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))[:20]]
    return float(np.mean([label != 255 for label in labels]))


def memory(number: int, folder: Path, results: Any) -> None:
    """In a process of its own: the largest growth while labels of ``number`` images are made."""
    torch.set_num_threads(1)
    source = Source(number)
    ctypes.CDLL(None).malloc_trim(0)  # what making the maps has left cannot hide anything
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    by_counts(source, folder / "resident")
    resident = status("VmHWM") - before
    tracemalloc.start()
    by_counts(source, folder / "traced")
    traced = tracemalloc.get_traced_memory()[1]
    results.put({"images": number, "resident_mb": round(resident / 1e3, 1), "traced_mb": round(traced / 1e6, 1)})


def status(key: str) -> int:
    """Kilobytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_memory(root: Path) -> list[dict[str, float]]:
    """For few and many images."""
    context, out = multiprocessing.get_context("spawn"), []
    for number in (FEW, IMAGES):
        results = context.Queue()
        child = context.Process(target=memory, args=(number, root / f"memory{number}", results))
        child.start()
        out.append(results.get())
        child.join()
        print(out[-1])
    return out


class Fixed(SegModel):
    """Answers the same logits to any image."""

    multiple = 8

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__(ModelConfig(name="fixed"), C)
        self.logits = logits

    def decode(self, x: torch.Tensor) -> Output:
        """The logits."""
        return Output(self.logits, self.logits)

    def classifiers(self) -> dict[str, torch.nn.Module]:
        """None."""
        return {}


def by_two_entropies(logits: torch.Tensor) -> tuple[Any, float, float]:
    """The published form; label, mean entropy, mean confidence."""
    full = F.interpolate(logits, SHAPE, mode="bilinear", align_corners=False)
    p = full.softmax(1)
    label = full.argmax(1)
    label[-(p * (p + 1e-10).log()).sum(1) > ENTROPY_MAX] = 255
    entropy = -(p * (p + 1e-10).log()).sum(1)
    return label[0].to(torch.uint8).numpy(), float(entropy.mean()), float(p.max(1).values.mean())


def by_one_pass(answer: Answer) -> tuple[Any, float, float]:
    """Ours."""
    found = whole(answer)
    label = found.winner.masked_fill_(found.entropy > ENTROPY_MAX, 255).numpy()
    return label, float(found.entropy.mean()), float(found.confidence.mean())


def decision(pairs: int) -> int:
    """The ratio of the two, and how far their outcomes differ."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((1, C, SHAPE[0] // 64, SHAPE[1] // 64)).astype(np.float32)
    logits = 6 * F.interpolate(torch.from_numpy(coarse), (SHAPE[0] // 8, SHAPE[1] // 8), mode="bicubic")
    logits += torch.from_numpy(rng.standard_normal(logits.shape).astype(np.float32))
    with torch.inference_mode():
        (answer,) = ask(Fixed(logits).eval(), [np.zeros((*SHAPE, 3), np.uint8)], NATIVE, SHAPE)
        row = paired(lambda: by_two_entropies(logits), lambda: by_one_pass(answer), pairs, cpu)
        (a, *means_a), (b, *means_b) = by_two_entropies(logits), by_one_pass(answer)
    facts = {
        "against": "resize, softmax, two entropies, argmax and maximum at full size",
        **row,
        "labels_that_differ": float(np.mean(a != b)),
        "share_kept": float(np.mean(b != 255)),
        "mean_difference": max(abs(x - y) for x, y in zip(means_a, means_b, strict=True)),
    }
    print(facts)
    record("pseudo_labels_decision", 1.0, [facts], size=SHAPE, classes=C, entropy_max=ENTROPY_MAX)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--decision", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if arguments.decision:
        return decision(arguments.pairs)
    pairs = arguments.pairs
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, tempfile.TemporaryDirectory() as disk:
        root, few = Path(folder), Source(FEW)
        used = measure_memory(root)
        rows = [
            compare(Source(arguments.images), root, pairs, "lists and sorting", BAR),
            compare(few, root, pairs, "lists and sorting in float64", kinds=PUBLISHED),
            compare(few, root, pairs, "lists and sorting, our PNG settings", compress_level=1, compress_type=Z_RLE),
            compare(few, Path(disk), pairs, "lists and sorting, files on disk"),
            compare(Source(FEW, True), root, pairs, "lists and sorting, from all probabilities"),
        ]
    largest = max(row[key] for row in used for key in ("resident_mb", "traced_mb"))
    memory_holds = "holds" if largest < BAR_MB else "MISSED"
    equal = all(row["threshold_difference"] <= BAR_THRESHOLD for row in rows)
    print(f"memory {largest} MB against {BAR_MB}: {memory_holds}; thresholds: {'holds' if equal else 'MISSED'}")
    record(
        "pseudo_labels",
        BAR,
        rows,
        size=SHAPE,
        classes=C,
        bar_threshold=BAR_THRESHOLD,
        bar_mb=BAR_MB,
        memory=used,
        memory_verdict=memory_holds,
    )
    return 0 if equal and memory_holds == "holds" and all(row["verdict"] != "MISSED" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
