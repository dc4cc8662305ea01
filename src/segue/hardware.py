"""Where a run computes: device choice and launch of several processes, through Lightning Fabric."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from segue.errors import UserError


@dataclass(frozen=True)
class Hardware:
    """The device of this process and its place among the others."""

    device: torch.device
    rank: int = 0
    world: int = 1


def launch(device: str = "auto", gpus: int | None = None) -> Hardware:
    """Choose the device; with several (``gpus``, or under torchrun or SLURM) start or join the process group.

    ``device``: ``auto``, ``cpu``, ``cuda``, ``cuda:K`` or ``mps``. ``UserError`` for one that is not there.
    """
    match = re.fullmatch(r"(auto|cpu|cuda|mps)(?::(\d+))?", device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise UserError(f"unknown device {device!r} (known: auto, cpu, cuda, cuda:K, mps)")
    kind = match[1] if match[1] != "auto" else _best()
    _require(kind, int(match[2] or 0), gpus)
    if not _distributed(gpus):
        return Hardware(torch.device(kind, int(match[2])) if match[2] else torch.device(kind))
    from lightning_fabric import Fabric  # 3 CPU-seconds: only where several processes need it

    fabric = Fabric(accelerator=kind, devices=gpus or "auto", strategy="ddp")
    fabric.launch()
    return Hardware(fabric.device, fabric.global_rank, fabric.world_size)


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _require(kind: str, index: int, gpus: int | None) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and max(index + 1, gpus or 1) > found:
        raise UserError(f"device cuda needs {max(index + 1, gpus or 1)} GPU(s), torch sees {found}; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not available here; use --device cpu")
    if kind != "cuda" and gpus and gpus > 1 and kind == "mps":
        raise UserError("several devices need cuda or cpu")


def _distributed(gpus: int | None) -> bool:
    import os

    return (gpus or 1) > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1
