"""Runs recipes one after the other in every process of a group: ``torchrun processes.py jobs.json``.

``jobs.json`` is a list of [recipe, folder]. One group for all recipes, because starting processes costs more than
training miniatures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from segue import api


def main(jobs: Path) -> None:
    """Train every recipe of the file into its folder."""
    torch.set_num_threads(1)
    for recipe, folder in json.loads(jobs.read_text()):
        api.run(recipe, folder, device="cpu")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
