"""Files that are either there whole or not there at all, and the names of those that belong to an image."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

MAX_NAME = 150  # characters of a file name before it is cut and made unique by a hash


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; renamed onto it when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say of which file
        raise
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write plain containers; NaN and infinity become null (they are not JSON)."""
    write_text(path, json.dumps(finite(data), indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


def finite(value: Any) -> Any:
    """The same containers with None for every NaN and infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_of(image_id: str) -> str:
    """An image id as a file name without suffix: percent-encoded, so that ids with folders stay one name."""
    text = quote(image_id, safe=" ")
    if len(text) <= MAX_NAME:
        return text
    return f"{text[:MAX_NAME]}~{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"


def id_of(file: str) -> str:
    """What :func:`file_of` was given, or the start of it with an ellipsis when it was too long."""
    return f"{unquote(file[:MAX_NAME])}…" if "~" in file[MAX_NAME:] else unquote(file)
