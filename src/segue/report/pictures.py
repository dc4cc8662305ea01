"""Stored thumbnails as data URIs: photographs as JPEG, label maps as palette PNG."""

from __future__ import annotations

import base64
import colorsys
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segue.files import file_of, id_of
from segue.labels import U8
from segue.report.read import Run, Stage
from segue.scoring.names import EVEN_FILE, folder_of

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """One picture of a row: its data URI, what it shows, and the train ids in it (label maps only)."""

    src: str
    caption: str
    color: str = ""
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """Pictures of one image side by side."""

    id: str
    pictures: list[Picture]
    score: float | None = None


@dataclass(frozen=True)
class Column:
    """A stage whose predictions are shown, under a caption and with the CSS class of its colour."""

    stage: Stage
    caption: str
    color: str


class Album:
    """The stored pictures of a run, at most ``width_px`` wide; 0 means no pictures at all."""

    def __init__(self, run: Run, width_px: int) -> None:
        self.run = run
        self.width_px = width_px
        self.folder = folder_of(run.target) if run.target else _first_folder(run.folder / "samples")
        self.palette = palette(run)

    def ids(self) -> list[str]:
        """File names (without suffix) of the evenly spaced images, or of all that have thumbnails when none are named.

        Not the worst ones: they have thumbnails too, and an example picked for its score would mislead.
        """
        if not self.folder or not self.width_px:
            return []
        try:
            return [file_of(str(i)) for i in json.loads((self._shared() / EVEN_FILE).read_text("utf-8"))]
        except (OSError, ValueError, TypeError):
            return sorted(p.name.removesuffix("_image.jpg") for p in self._shared().glob("*_image.jpg"))

    def row(self, file: str, columns: list[Column], score: float | None = None) -> Row | None:
        """Input, the predictions of ``columns`` and the label; None when there is neither input nor prediction."""
        predictions = [
            self.classes(c.stage.folder / "images" / self.folder / f"{file}.png", c.caption, c.color) for c in columns
        ]
        photo = self.photo(self._shared() / f"{file}_image.jpg", "Input")
        if photo is None or not any(predictions):
            return None
        label = self.classes(self._shared() / f"{file}_label.png", "Label", "")
        return Row(id_of(file), [p for p in (photo, *predictions, label) if p is not None], score)

    def worst(self, column: Column, limit: int) -> list[Row]:
        """The lowest-scoring images of a stage that have thumbnails."""
        evaluation = column.stage.evaluations.get(self.run.target or "")
        rows: list[Row] = []
        for image_id, miou in evaluation.worst if evaluation and self.width_px else ():
            row = self.row(file_of(image_id), [column], miou)
            if row is not None and len(rows) < limit:
                rows.append(row)
        return rows

    def photo(self, path: Path, caption: str) -> Picture | None:
        """A photograph, None when it cannot be read."""
        try:
            with Image.open(path) as image:
                small = image.convert("RGB")
                small.thumbnail((self.width_px, self.width_px))
        except UNREADABLE:
            return None
        return Picture(_uri(small, "JPEG", quality=QUALITY), caption)

    def classes(self, path: Path, caption: str, color: str) -> Picture | None:
        """A map of train ids in the label space's colours, None when it cannot be read."""
        try:
            with Image.open(path) as image:
                if image.mode not in ("P", "L"):
                    return None
                factor = min(1.0, self.width_px / max(image.size))
                size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
                ids = np.asarray(image.resize(size, Image.Resampling.NEAREST), np.uint8)
        except UNREADABLE:
            return None
        colored = Image.fromarray(ids)
        colored.putpalette(self.palette.tobytes())
        return Picture(_uri(colored, "PNG", optimize=True), caption, color, tuple(np.unique(ids).tolist()))

    def _shared(self) -> Path:
        return self.run.folder / "samples" / self.folder


def palette(run: Run) -> U8:
    """(256, 3) colours of the run's label space; evenly spread hues when it has none."""
    if run.labels is not None:
        return run.labels.palette()
    hues = [colorsys.hsv_to_rgb((0.618034 * k) % 1, 0.55, 0.9) for k in range(255)]
    out: U8 = (255 * np.array([*hues, (0.0, 0.0, 0.0)])).astype(np.uint8)
    return out


def _first_folder(samples: Path) -> str:
    return next((p.name for p in sorted(samples.glob("*")) if p.is_dir()), "")


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
