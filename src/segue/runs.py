"""Run folders: one place for everything a run writes, locked while it is written.

``runs/<name>/<time>/`` holds run.json (what, when, where, with which versions), config.yaml (resolved, runnable),
stages/<k>_<name>/ (metrics.jsonl, checkpoints/, stage.json), images/ and report.html.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from segue.errors import UserError
from segue.files import finite, read_json, write_json

VERSIONS = (
    "segue",
    "torch",
    "torchvision",
    "timm",
    "kornia",
    "lightning-fabric",
    "numpy",
    "opencv-contrib-python-headless",
)


def create(root: Path, name: str) -> Path:
    """A new run folder ``root/name/<time>``; never one that exists."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        folder = root / name / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"cannot create run folder {folder}: {error.strerror}; choose another with --out"
            ) from error
        return folder
    raise UserError(f"cannot find a free run folder below {root / name}")


def latest(root: Path, name: str) -> Path:
    """The newest run folder of that name; ``UserError`` when there is none to resume."""
    folders = sorted(p.parent for p in (root / name).glob("*/run.json"))
    if not folders:
        raise UserError(f"nothing to resume: no run of {name!r} below {root}; start it without --resume")
    return folders[-1]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; ``UserError`` when another process has it. The lock dies with its process."""
    # lockf, not flock: loader workers inherit a flock and keep it for seconds after the main process was killed.
    handle = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"run folder {folder} is in use by another process; wait for it, or start a new run without --resume"
            ) from error
        yield
    finally:
        os.close(handle)


def cpu_seconds() -> float:
    """User and system time of this process and its finished children, in seconds."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, in GB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Installed versions of what matters."""
    out = {}
    for name in VERSIONS:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def read(path: Path) -> dict[str, Any]:
    """A record of a run, empty when there is none yet; ``UserError`` for one that is damaged."""
    if not path.exists():
        return {}
    try:
        data: dict[str, Any] = read_json(path)
        return {**data}
    except (ValueError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}; restore it, or start a new run") from error


def update(path: Path, **values: Any) -> dict[str, Any]:
    """Change keys of a JSON file whole; returns what it holds now."""
    data = {**read(path), **values}
    write_json(path, data)
    return data


class Metrics:
    """metrics.jsonl: one JSON object a line, no clock in it, so that a resumed run writes the same bytes."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        """Open for appending after cutting the file to ``keep_bytes``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line and hand it to the system."""
        try:
            self._file.write(json.dumps(finite(dict(row))).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            error.filename = error.filename or self._file.name  # a failed write does not say of which file
            raise

    @property
    def size_bytes(self) -> int:
        """Length of the file so far."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
