"""What something costs: CPU time of this process, and what one waits."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from typing import Any

import torch

from segue import runs


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU time (user and system, with finished children) and of wall-clock time."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s - other.cpu_s, self.wall_s - other.wall_s)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.cpu_s * factor, self.wall_s * factor)


def now(device: torch.device) -> Cost:
    """Both clocks, after everything that the device was given is done; differences are what counts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Cost(runs.cpu_seconds(), time.perf_counter())


def record(cost: Cost, iterations: int, iterations_per_epoch: float, device: torch.device) -> dict[str, Any]:
    """``training`` of stage.json: cost of some iterations and where they ran, to be compared per iteration."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "iterations": iterations,
        "cpu_s": cost.cpu_s,
        "wall_s": cost.wall_s,
        "iterations_per_epoch": iterations_per_epoch,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
    }
