"""What every benchmark here shares: interleaved pairs, a verdict on the worse end, one JSON form."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.data.batch import Batch
from segue.methods.base import Method

RESULTS = Path(__file__).parents[1] / "docs/results"


class Memory:
    """A stream that gives the same batch for ever."""

    iterations_per_epoch = 1.0

    def __init__(self, given: Batch) -> None:
        self.given = given

    def iterate(self, start: int) -> Iterator[list[Batch]]:
        """The batch, again and again."""
        while True:
            yield [self.given]


def step(given: Method, batches: dict[str, Batch]) -> Callable[[], None]:
    """One optimiser step of a method."""
    optimizer = torch.optim.Adam([p for p in given.model.parameters() if p.requires_grad], lr=1e-5)

    def run() -> None:
        for terms in given.losses(batches, 0):
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    pairs: int,
    clock: Callable[[], float],
    alternations: int = 1,
) -> dict[str, float]:
    """Run A B A B … after one warm-up pair; times in ms, and median and 90 % interval of the paired ratio a / b.

    A pair's times are means over ``alternations`` of A B, so that the machine's slow swings meet both sides alike.
    """
    runs = [[(_seconds(a, clock), _seconds(b, clock)) for _ in range(alternations)] for _ in range(pairs + 1)]
    times = np.array(runs)[1:].mean(1)
    low, median, high = np.percentile(times[:, 0] / times[:, 1], [5, 50, 95])
    a_ms, b_ms = 1e3 * np.median(times, axis=0)
    row = {"a_ms": a_ms, "b_ms": b_ms, "ratio_median": median, "ratio_p05": low, "ratio_p95": high, "pairs": pairs}
    return {k: round(float(v), 3) for k, v in row.items()}


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def verdict(row: Mapping[str, Any], bar: float, *, at_most: bool) -> str:
    """``holds`` or ``MISSED``, by the worse end of the interval."""
    worse = row["ratio_p95"] if at_most else row["ratio_p05"]
    return "holds" if (worse <= bar if at_most else worse >= bar) else "MISSED"


def record(name: str, bar: float, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write docs/results/<name>.json with date, command and machine."""
    machine = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    content = {
        "date": date.today().isoformat(),
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine,
        "bar": bar,
        "interval": "5th to 95th percentile of the paired ratios",
        **more,
        "rows": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


wall = time.perf_counter
cpu = time.process_time
