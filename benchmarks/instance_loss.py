"""How much faster, and in how much less memory, the instance loss is found tile by tile, and class means by cells.

``python benchmarks/instance_loss.py`` takes two images of 512x512, embeddings of 256 channels at stride 4 and 300
instances, and runs the published loss and its gradient in the published order (upsample all channels, one map of the
whole picture for each instance, autograd) and with ``segue.ops.instance``, in turns. Class means of both
images are measured against a loop that sorts pixel indices by class one at a time. Time is CPU time, judged by the
worse end of the ratio. Memory is the growth of a fresh process's resident size from before the call to its peak; the
gradient that both return (32 MiB) is in it. "Ours" is our form, without a bar. It writes
docs/results/instance_loss.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import cpu, paired, record, verdict
from torch import Tensor

from segue.ops.bank import Bank, class_means, random_bank
from segue.ops.instance import SimilarityConfig, instance_loss

BAR, BAR_MEMORY, BAR_MEANS = 3.0, 20.0, 100.0
BATCH, INSTANCES, DIM, CLASSES, GRID, SIZE = 2, 300, 256, 19, 128, 512


class Views(NamedTuple):
    """What the loss compares: post-ReLU embeddings of two views, student logits, a bank."""

    strong: Tensor
    weak: Tensor
    scores: Tensor
    bank: Bank


def views(grid: int = GRID) -> Views:
    """Random ones."""
    g = torch.Generator().manual_seed(0)
    strong, weak = (torch.randn(BATCH, DIM, grid, grid, generator=g).relu() for _ in range(2))
    scores = torch.randn(BATCH, CLASSES, grid, grid, generator=g) + 3  # a denominator far from 0
    return Views(strong.requires_grad_(), weak, scores, random_bank(INSTANCES, DIM, CLASSES, g, nonnegative=True))


def direct(v: Views, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The published order of operations."""

    def similarities(embedding: Tensor) -> Tensor:
        large = F.interpolate(embedding, (size, size), mode="bilinear")
        return (v.bank.vectors @ large.flatten(2)).view(BATCH, INSTANCES, size, size)

    with torch.no_grad():
        q = similarities(v.weak) * F.interpolate(v.scores, (size, size), mode="bilinear")[:, v.bank.labels]
        q = q / q.sum(1, keepdim=True)
    s = similarities(v.strong)
    p = s / s.sum(1, keepdim=True)
    loss = -(q * torch.log(p + 1e-10)).sum(1).mean()
    return loss.detach(), torch.autograd.grad(loss, v.strong)[0]


def tiled(v: Views, size: int = SIZE, published: bool = True) -> tuple[Tensor, Tensor]:
    """The same from ``segue.ops``, or our form."""
    pixel = torch.ones(BATCH, size, size, dtype=torch.bool)
    loss = instance_loss(v.strong, v.weak, v.bank, v.scores, SimilarityConfig(published=published), pixel=pixel)
    return loss.detach(), torch.autograd.grad(loss, v.strong)[0]


def growth(call: Any, results: Any) -> None:
    """In a process of its own: MiB from before the call to the peak."""
    torch.set_num_threads(1)
    call(views(4), 16)  # what libraries allocate once
    v = views()
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    call(v)
    results.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - now) / 2**20)


def memory_mib(call: Any) -> float:
    """Growth of a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=growth, args=(call, results))
    child.start()
    mib: float = results.get()
    child.join()
    return round(mib, 1)


def loop_means(embedding: Tensor, label: Tensor) -> Tensor:
    """Class means as published: upsample, then list the pixels of each class one at a time, image by image."""
    large = F.interpolate(embedding, (SIZE, SIZE), mode="bilinear").flatten(2)
    means = torch.zeros(BATCH, CLASSES, DIM)
    for n, flat in enumerate(label.flatten(1)):
        places, numbers = torch.zeros(CLASSES, len(flat), dtype=torch.long), [0] * CLASSES
        for k in range(len(flat)):
            c = int(flat[k])
            if c < CLASSES:
                places[c, numbers[c]] = k
                numbers[c] += 1
        for c, number in enumerate(numbers):
            if number:
                means[n, c] = large[n][:, places[c, :number]].mean(1)
    return means


def measure_means(pairs: int) -> dict[str, float]:
    """Two images, blobs of 19 classes and some void; asserts equal means."""
    g = torch.Generator().manual_seed(1)
    embedding = torch.randn(BATCH, DIM, GRID, GRID, generator=g).relu()
    label = torch.randint(0, CLASSES + 1, (BATCH, 16, 16), generator=g)
    label = label.masked_fill(label == CLASSES, 255).repeat_interleave(32, 1).repeat_interleave(32, 2)
    torch.testing.assert_close(class_means(embedding, label, CLASSES)[0], loop_means(embedding, label))
    return paired(lambda: loop_means(embedding, label), lambda: class_means(embedding, label, CLASSES), pairs, cpu)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    direct_mib, tiled_mib = memory_mib(direct), memory_mib(tiled)
    ours_mib = memory_mib(partial(tiled, published=False))
    ratio = direct_mib / tiled_mib
    print(f"memory: direct {direct_mib} MiB, tiled {tiled_mib}, our form {ours_mib}; ratio {ratio:.1f}", flush=True)
    small = views(GRID // 4)
    for one, other in zip(direct(small, SIZE // 4), tiled(small, SIZE // 4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    v = views()
    row = paired(lambda: direct(v), lambda: tiled(v), arguments.pairs, cpu)
    print(row, flush=True)
    means = measure_means(arguments.pairs)
    print(f"class means: {means}")
    checks = {
        "time": verdict(row, BAR, at_most=False),
        "memory": "holds" if ratio >= BAR_MEMORY else "MISSED",
        "class_means": verdict(means, BAR_MEANS, at_most=False),
    }
    print(checks)
    memory = {"direct_mib": direct_mib, "tiled_mib": tiled_mib, "ours_mib": ours_mib, "ratio": round(ratio, 1)}
    bars = {"bar_memory": BAR_MEMORY, "bar_class_means": BAR_MEANS}
    shape = [BATCH, INSTANCES, SIZE, SIZE]
    more = {"shape": shape, "dim": DIM, "grid": GRID, **bars, "gpu": "not measured"}
    record("instance_loss", BAR, [row], memory=memory, class_means=means, **more)
    return 0 if set(checks.values()) == {"holds"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
