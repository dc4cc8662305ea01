"""Everything a run computed, as hashes that two runs can be compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from segue import checkpoint


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of the final weights, of the whole training state, and of metrics.jsonl, for each stage."""
    out = {}
    for stage in sorted((folder / "stages").iterdir()):
        last = checkpoint.newest(stage / "checkpoints")
        assert last is not None
        out[f"{stage.name}/weights"] = hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()
        out[f"{stage.name}/state"] = digest(checkpoint.load_state(last))
        out[f"{stage.name}/metrics"] = (stage / "metrics.jsonl").read_text()
    return out


def digest(value: Any) -> str:
    """Hash of nested containers of tensors and numbers, by value."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256("".join(f"{k}{digest(v)}" for k, v in value.items()).encode()).hexdigest()
    if isinstance(value, (list, tuple)):
        return hashlib.sha256("".join(map(digest, value)).encode()).hexdigest()
    return repr(value)
