"""Reads items in order, a few ahead of their use. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
AHEAD = 4  # items that are read while others are worked on


def ahead(read: Callable[[int], T], indices: Sequence[int]) -> Iterator[T]:
    """``read(index)`` of every index, by one thread (image decoders release the interpreter's lock)."""
    pool = ThreadPoolExecutor(1, "segue-read")
    waiting: list[Future[T]] = []
    rest = iter(indices)
    try:
        waiting += [pool.submit(read, i) for i in islice(rest, AHEAD)]
        while waiting:
            item = waiting.pop(0).result()
            waiting += [pool.submit(read, i) for i in islice(rest, 1)]
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
