"""What fingerprints cost: counting in one pass a layer, its share of a forward pass, and distances from kept shares.

``python benchmarks/gap.py [--device cuda]``: ResNet-50 with random weights, the outputs of all 16 blocks (15,104
neurons), 1,000 bins. Counting is compared with the published way, normalised float64 values and one ``torch.histc`` a
neuron, on the same activations; the counts must be equal. The overhead is that of counting over a forward pass that
looks at nothing. The peak of memory must not rise with the number of images. Distances between two fingerprints of all
neurons are compared with those from their counts. On a CPU it is CPU time of one thread. Every ratio is judged by the
worse end of its interval. Writes docs/results/gap_<device>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import cpu, paired, record, verdict, wall
from torch import Tensor
from torchvision.models import resnet50

from segue.gap.distances import emd
from segue.gap.fingerprint import BINS, Histogram, count
from segue.gap.layers import Probe
from segue.gap.ranges import Ranges, measure
from segue.ops.fingerprint import add_counts

BLOCKS = [r"layer[1-4]\.\d"]
SHAPES = {"cpu": [(4, 64, 16), (4, 224, 4)], "cuda": [(4, 64, 16), (32, 224, 16)]}
"""Images of a batch, their side, batches of the overhead: a table of counts is made once for all of them."""
BARS = {"cpu": (1.5, 1.5), "cuda": (20.0, 1.15)}  # counting, and time with it over time without
BAR_DISTANCE = 5.0
MOST_GROWTH_MIB = 10.0

Counts = dict[str, Tensor]


def images(number: int, side: int, device: str, seed: int) -> Tensor:
    """Noise with some structure: coarse colours and fine grain, about normalised."""
    g = torch.Generator().manual_seed(seed)
    coarse = (
        torch.randn(number, 3, side // 16, side // 16, generator=g).repeat_interleave(16, 2).repeat_interleave(16, 3)
    )
    return (coarse + 0.3 * torch.randn(coarse.shape, generator=g)).to(device)


def keep(values: Counts, name: str, value: Tensor) -> None:
    """Note the activations of a layer."""
    values[name] = value.clone()


def one_pass(values: Counts, ranges: Ranges) -> Counts:
    """Ours."""
    out = {}
    for name, x in values.items():
        low, high = (end.to(x.device) for end in ranges.limits(name))
        out[name] = torch.zeros(len(low), BINS, dtype=torch.int64, device=x.device)
        add_counts(out[name], x, low, high)
    return out


def by_neuron(values: Counts, ranges: Ranges) -> Counts:
    """The published way."""
    out = {}
    for name, x in values.items():
        low, high = (end.to(x.device)[:, None] for end in ranges.limits(name))
        normal = x.double().sub_((low + high) / 2).div_((high - low) / 2).clamp_(-1, 1)
        neurons = [torch.histc(normal[:, n], BINS, -1, 1) for n in range(x.shape[1])]
        out[name] = torch.stack(neurons).long()
    return out


def from_counts(a: Histogram, b: Histogram) -> float:
    """Earth mover's distance over all neurons, from counts in float64."""
    tables = [torch.cat(list(h.counts.values())).double() for h in (a, b)]
    x, y = (table / table.sum(1, keepdim=True) for table in tables)
    return float((x - y).cumsum(1).abs().sum(1).mean())


def growth_mib(probe: Probe, device: str) -> float:
    """How much the peak of memory rises when 64 images are counted after 16: kept activations would take 90 MiB."""
    peaks = []
    for batches in (4, 16):
        stream = (images(4, 64, device, seed) for seed in range(batches))
        count(probe, measure(probe, [images(4, 64, device, 0)]), stream)
        lines = Path("/proc/self/status").read_text().splitlines()
        resident = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
        peaks.append(torch.cuda.max_memory_allocated() if device == "cuda" else resident)
    return round((peaks[1] - peaks[0]) / 2**20, 1)


def waiting(call: Callable[[], object], device: str) -> Callable[[], object]:
    """The call and its end on the device."""

    def timed() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return timed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    device, clock = arguments.device, cpu if arguments.device == "cpu" else wall
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = resnet50(weights=None).to(device).eval()
    probe = Probe(network, BLOCKS)
    bar_counting, bar_overhead = BARS[device]
    rows, fault = [], 0

    def judged(what: str, shape: tuple[int, ...], a: Callable[[], object], b: Callable[[], object], bar: float) -> None:
        nonlocal fault
        row = paired(waiting(a, device), waiting(b, device), arguments.pairs, clock)
        told = verdict(row, bar, at_most=what == "overhead")
        fault |= told != "holds"
        rows.append({"what": what, "shape": shape, **row, "bar": bar, "verdict": told})
        print(rows[-1], flush=True)

    memory = {"growth_with_images": growth_mib(probe, device)}
    print(memory, flush=True)
    fault |= memory["growth_with_images"] > MOST_GROWTH_MIB
    prints: list[Histogram] = []
    for shape in SHAPES[device]:
        batches = [images(shape[0], shape[1], device, seed) for seed in range(shape[2])]
        ranges = measure(probe, batches[:1], "published")
        values: Counts = {}
        probe.run(batches[1:2], partial(keep, values))
        with torch.inference_mode():
            ours, theirs = one_pass(values, ranges), by_neuron(values, ranges)
            differ = {name: int((x != theirs[name]).sum()) for name, x in ours.items()}
            print("differing bins:", sum(differ.values()), "of", sum(x.numel() for x in ours.values()), flush=True)
            fault |= any(differ.values())
            judged("counting", shape, lambda: by_neuron(values, ranges), lambda: one_pass(values, ranges), bar_counting)  # noqa: B023
            forward = lambda: [network(batch) for batch in batches]  # noqa: B023, E731
            judged("overhead", shape, lambda: count(probe, ranges, batches), forward, bar_overhead)  # noqa: B023
        prints = [count(probe, ranges, [batch]) for batch in batches[:2]]
    a, b = prints
    error = abs(emd(a, b).number - from_counts(a, b))
    print("error of the distance in bins:", error, "of", from_counts(a, b), flush=True)
    fault |= error > 1e-6
    neurons = sum(len(table) for table in a.counts.values())
    judged("distance", (neurons, BINS), lambda: from_counts(a, b), lambda: emd(a, b), BAR_DISTANCE)
    memory["counts"] = round(neurons * BINS * 8 / 2**20, 1)
    record(f"gap_{device}", bar_counting, rows, distance_error_bins=error, memory_mib=memory)
    return int(fault)


if __name__ == "__main__":
    raise SystemExit(main())
