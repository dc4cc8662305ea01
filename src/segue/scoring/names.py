"""File names of what an evaluation stores, shared by those who write and by the report. Imports no torch."""

from __future__ import annotations

from urllib.parse import quote

EVEN_FILE = "evenly_spaced.json"  # beside the thumbnails: ids of those that were not picked for their score


def folder_of(name: str) -> str:
    """``DATASET:split`` as part of a path: ``DATASET_split``."""
    return quote(name.replace(":", "_"), safe="")


def per_image_file(name: str) -> str:
    """File name of the per-image counts of ``DATASET:split``."""
    return f"per_image_{folder_of(name)}.npz"
