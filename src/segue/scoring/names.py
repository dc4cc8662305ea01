"""File names of what an evaluation stores, shared by those who write and by the report. Imports no torch."""

from __future__ import annotations

import hashlib
from urllib.parse import quote, unquote

EVEN_FILE = "evenly_spaced.json"  # beside the thumbnails: ids of those that were not picked for their score
MAX_NAME = 150  # characters of a file name before it is cut and made unique by a hash


def folder_of(name: str) -> str:
    """``DATASET:split`` as part of a path: ``DATASET_split``."""
    return quote(name.replace(":", "_"), safe="")


def per_image_file(name: str) -> str:
    """File name of the per-image counts of ``DATASET:split``."""
    return f"per_image_{folder_of(name)}.npz"


def file_of(image_id: str) -> str:
    """An image id as a file name without suffix: percent-encoded, so that ids with folders stay one name."""
    text = quote(image_id, safe=" ")
    if len(text) <= MAX_NAME:
        return text
    return f"{text[:MAX_NAME]}~{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"


def id_of(file: str) -> str:
    """What :func:`file_of` was given, or the start of it with an ellipsis when it was too long."""
    return f"{unquote(file[:MAX_NAME])}…" if "~" in file[MAX_NAME:] else unquote(file)
