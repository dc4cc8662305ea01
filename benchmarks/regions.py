"""How much faster, and in how much less memory, region means of an embedding are one sparse product.

``python benchmarks/regions.py`` cuts a generated picture of 1024x2048 into about 2,000 superpixels and averages 256
channels at stride 4 over each: upsampled to the picture and scattered into regions (channels stay first, nothing is
permuted: the fastest of the ways tried, and ``segue.ops.resize`` in place of torch's kernel is slower), and by the kept
matrix of ``segue.ops.regions``, in turns. Time is CPU time of one thread, judged by the worse end of the ratio.
Memory is the growth of a fresh process's resident size from before the call to its peak. Cutting the picture and
building the matrix are listed apart. It writes docs/results/regions.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from common import cpu, paired, record, verdict
from torch import Tensor

from segue.data.regions import SuperpixelConfig, superpixels
from segue.ops.regions import Pooling, pooling

BAR, BAR_MEMORY = 20.0, 50.0
SIZE, GRID, DIM, NUMBER = (1024, 2048), (256, 512), 256, 2000
REPEATS = 5  # of what is listed apart


def picture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours and noise, the same every time."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    noisy = smooth + rng.integers(-20, 20, smooth.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def embedding(grid: tuple[int, int] = GRID) -> Tensor:
    """Random."""
    return torch.randn(DIM, *grid, generator=torch.Generator().manual_seed(0))


def scattered(maps: Tensor, regions: Tensor, number: int) -> Tensor:
    """Means (R,D): upsample all channels, then add every pixel to its region."""
    size = (regions.shape[0], regions.shape[1])
    full = F.interpolate(maps[None], size, mode="bilinear")[0]
    ids = regions.flatten()
    sums = maps.new_zeros(len(maps), number).index_add_(1, ids, full.flatten(1))
    return (sums / torch.bincount(ids, minlength=number).clamp(min=1)).t()


def growth(what: str, folder: Path, results: Any) -> None:
    """In a process of its own: MiB from before the call to the peak."""
    torch.set_num_threads(1)
    regions = torch.from_numpy(np.load(folder / "regions.npy"))
    number, made = int(regions.max()) + 1, Pooling.load(folder / "pooling.pt")
    calls: dict[str, Callable[[Tensor, Tensor, Pooling], object]] = {
        "scattered": lambda maps, ids, _: scattered(maps, ids, number),
        "pooled": lambda maps, _, matrix: matrix.means(maps),
        "built": lambda _, ids, __: pooling(ids, number, GRID if len(ids) == SIZE[0] else (4, 4)),
    }
    small = regions[:16, :16].contiguous()
    calls[what](embedding((4, 4)), small, pooling(small, number, (4, 4)))  # what libraries allocate once
    maps = embedding()
    now = resident_mib("VmRSS")
    calls[what](maps, regions, made)
    results.put(resident_mib("VmHWM") - now)


def resident_mib(which: str) -> float:
    """This process's size now, or at its peak; ``getrusage`` would count what its parent had when it was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def memory_mib(what: str, folder: Path) -> float:
    """Growth of a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=growth, args=(what, folder, results))
    child.start()
    mib: float = results.get()
    child.join()
    return round(mib, 1)


def seconds(call: Callable[[], object]) -> float:
    """Median CPU time."""
    times = []
    for _ in range(REPEATS):
        start = cpu()
        call()
        times.append(cpu() - start)
    return round(float(np.median(times)), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    image, config = picture(), SuperpixelConfig(number=NUMBER)
    regions = torch.from_numpy(superpixels(image, config).astype(np.int64))
    number = int(regions.max()) + 1
    made = pooling(regions, number, GRID)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "regions.npy", regions.numpy())
        made.save(folder / "pooling.pt")
        kept_mib = round((folder / "pooling.pt").stat().st_size / 2**20, 2)
        mib = {what: memory_mib(what, folder) for what in ("scattered", "pooled", "built")}
    ratio = mib["scattered"] / mib["pooled"]
    print(f"memory: {mib}; ratio {ratio:.1f}", flush=True)
    maps = embedding()
    torch.testing.assert_close(made.means(maps), scattered(maps, regions, number), rtol=1e-5, atol=1e-5)
    row = paired(lambda: scattered(maps, regions, number), lambda: made.means(maps), arguments.pairs, cpu)
    print(row, flush=True)
    apart = {
        "cut_s": seconds(lambda: superpixels(image, config)),
        "build_s": seconds(lambda: pooling(regions, number, GRID)),
        "build_mib": mib["built"],
        "kept_mib": kept_mib,
        "non_zeros": len(made.matrix.values()),
    }
    print(apart)
    checks = {
        "time": verdict(row, BAR, at_most=False),
        "memory": "holds" if ratio >= BAR_MEMORY else "MISSED",
    }
    print(checks)
    memory = {"scattered_mib": mib["scattered"], "pooled_mib": mib["pooled"], "ratio": round(ratio, 1)}
    shape = {"size": SIZE, "grid": GRID, "channels": DIM, "regions": number}
    record("regions", BAR, [row], shape=shape, bar_memory=BAR_MEMORY, memory=memory, apart=apart, gpu="not measured")
    return 0 if set(checks.values()) == {"holds"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
