"""Randomness as a pure function of counters: a generator for every (seed, stage, name, iteration, …).

Nothing here reads or advances torch's global generator, so a resumed run draws what the uninterrupted one would have.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*key: int | str) -> int:
    """63-bit seed of a key; equal keys give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A fresh CPU generator for a key; draw the few numbers needed on the CPU and move them."""
    return torch.Generator().manual_seed(seed_of(*key))
