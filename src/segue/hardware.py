"""Where a run computes: device choice and launch of several processes, through Lightning Fabric."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segue.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Hardware:
    """The device of this process and its place among the others."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def total(self, counts: Tensor) -> Tensor:
        """Sum over all processes of a tensor of equal shape, on the CPU; unchanged when there is one process."""
        if self.world == 1:
            return counts
        summed = counts.to(self.device, copy=True)
        dist.all_reduce(summed)
        return summed.cpu()

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]


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

    local, nodes = _group(gpus)
    fabric = Fabric(accelerator=kind, devices=local, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return Hardware(fabric.device, fabric.global_rank, fabric.world_size)


def gather(rows: Tensor) -> Tensor:
    """The rows (n,…) of every process, in order of rank; all call it, with equal shapes."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Replace gradients by their mean over the devices; one that has none on any device keeps none."""
    # How many devices have a gradient travels along: a zero in place of "none" would decay the weight.
    given = torch.tensor([p.grad is not None for p in parameters]).to(parameters[0])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([given, *(g.reshape(-1) for g in grads)])
    dist.all_reduce(flat)
    has, *parts = torch.split(flat, [len(parameters), *(g.numel() for g in grads)])
    for parameter, part, number in zip(parameters, parts, has.tolist(), strict=True):
        # In the parameter's own memory format: fused optimisers pair elements by where they lie.
        parameter.grad = torch.empty_like(parameter).copy_((part / world).view_as(parameter)) if number else None


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


def _group(gpus: int | None) -> tuple[int, int]:
    """Processes a node and nodes: what torchrun or SLURM set, else ``gpus`` here."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return gpus or int(os.environ.get("SLURM_NTASKS", "1")) // nodes, nodes


def _distributed(gpus: int | None) -> bool:
    return (gpus or 1) > 1 or any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
