"""What the review page shows of each region: a cut-out with its outline, labels, cost; and each image once.

Pictures are JPEG, as large as :data:`CUTOUT_BYTES` and :data:`WHOLE_BYTES` allow for that many. Outlines are paths in
pixels of the image's file, so they stay sharp at any size and are stored once for both views.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segue.acquire.state import VOID, Round, Row, StateError
from segue.acquire.table import I64
from segue.data.dataset import Dataset
from segue.data.images import encode, resize_image
from segue.labels import IGNORE, U8

MOST = 2000
"""Regions on a page."""
CUTOUT_BYTES, WHOLE_BYTES = 24_000_000, 24_000_000
BYTES_PER_PX = 0.45
"""Of a street scene as JPEG in base64; what bounds the file's size is this times the pixels that are allowed."""
CUTOUT_PX, WHOLE_PX = (120 * 90, 480 * 360), (320 * 180, 1280 * 720)
"""Least and most pixels of a picture."""
QUALITY = 72
ASPECT = 4 / 3
MARGIN = 0.35
"""Of the region's larger side, round it."""
LEAST_SIDE_PX = 48
FINE_PX = 256
"""Outlines of regions up to this side follow the pixels' edges."""
NO_LABEL = -1

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """One card of the page; classes are train ids, ``VOID``, or ``NO_LABEL``. Boxes are left, top, width, height."""

    order: int
    image: str
    part: int
    score: float | None
    predicted: int
    """``NO_LABEL`` where no model chose."""
    answered: int
    """Most frequent class of the answer."""
    complete: bool
    area_px: int
    px: int
    """What it costs: area without ignored pixels."""
    clicks: int
    box: Box
    path: str
    answer_shares: list[tuple[int, float]]
    guess_shares: list[tuple[int, float]]
    statistics: dict[str, float | None]
    cutout: str = ""
    """Names in ``Album.pictures``."""
    answer: str = ""
    """A map, where the answer has several classes."""
    guess: str = ""


@dataclass
class Album:
    """All regions, sizes (height, width) of their images, and pictures by name: MIME type, base64."""

    regions: list[Region] = field(default_factory=list)
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[str, tuple[str, str]] = field(default_factory=dict)
    left_out: int = 0

    def data(self) -> dict[str, Any]:
        """Plain containers, for the page's script."""
        return {"regions": [asdict(r) for r in self.regions], "images": self.images}


def gather(
    one: Round,
    dataset: Dataset,
    *,
    most: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Album:
    """Cut out the first ``most`` regions of a round (:data:`MOST`); ``StateError`` for images that are gone or changed.

    ``dataset`` must give images at the resolution of their files.
    """
    places = {image_id: n for n, image_id in enumerate(dataset.ids)}
    shown = {(row.image, row.part): order for order, row in enumerate(one.rows[: most or MOST], 1)}
    images = [image for image, rows in one.by_image.items() if any((image, r.part) in shown for r in rows)]
    cutout_px = _allowed(CUTOUT_BYTES, len(shown), CUTOUT_PX)
    whole_px = _allowed(WHOLE_BYTES, len(images), WHOLE_PX)
    missing = {(row.image, row.part) for row in one.missing()}
    album = Album(left_out=len(one.rows) - len(shown))
    for done, image in enumerate(images, 1):
        if image not in places:
            raise StateError(f"image {image!r} of {one.folder} is not in data set {dataset.name!r}: restore the data")
        scene = _Scene(one, image, dataset.read_sample(places[image], False).image)
        album.images[image] = (scene.picture.shape[0], scene.picture.shape[1])
        album.pictures[f"image {image}"] = _jpeg(scene.picture, whole_px)
        for row in one.by_image[image]:
            if order := shown.get((image, row.part)):
                album.regions.append(scene.region(row, order, (image, row.part) not in missing, cutout_px, album))
        progress(done, len(images))
    album.regions.sort(key=lambda r: r.order)
    return album


class _Scene:
    """One image with its masks and labels."""

    def __init__(self, one: Round, image: str, picture: U8) -> None:
        self.picture = picture
        self.asked = one.asked(image)
        if self.asked.shape != picture.shape[:2]:
            raise StateError(f"image {image!r} is of size {picture.shape[:2]}, its regions of {self.asked.shape}")
        answers = one.answers()
        self.classes = len(one.labels)
        self.colors = one.labels.palette()
        self.colors[VOID] = 128
        self.labels = {"answer": answers.read(image) if image in answers.ids else None, "guess": one.guess(image)}

    def region(self, row: Row, order: int, complete: bool, most_px: int, album: Album) -> Region:
        """Its card; its pictures go to ``album``."""
        mask = (self.asked == row.part).astype(np.uint8)
        if not mask.any():
            raise StateError(f"region {row.part} of image {row.image!r} has no pixel in the round: restore its folder")
        left, top, width, height = box = cutout_box(cv2.boundingRect(mask), self.asked.shape)
        window = np.s_[top : top + height, left : left + width]
        inside = mask[window] > 0
        album.pictures[f"cutout {order}"] = _jpeg(self.picture[window], most_px)
        shares, named = {}, {"cutout": f"cutout {order}"}
        for kind, label in self.labels.items():
            cut = np.full(inside.shape, IGNORE, np.uint8) if label is None else np.where(inside, label[window], IGNORE)
            shares[kind] = _shares(cut, inside)
            if len(shares[kind]) > 1:
                named[kind] = f"{kind} {order}"
                album.pictures[named[kind]] = _map(cut, self.colors, most_px)
        return Region(
            order=order,
            image=row.image,
            part=row.part,
            score=row.score,
            predicted=row.predicted if row.predicted < self.classes else NO_LABEL,
            answered=shares["answer"][0][0] if shares["answer"] else NO_LABEL,
            complete=complete,
            area_px=row.area_px,
            px=row.area_px - row.ignored_px,
            clicks=row.clicks,
            box=box,
            path=outline(mask),
            answer_shares=shares["answer"],
            guess_shares=shares["guess"],
            statistics=row.statistics,
            **named,
        )


def cutout_box(found: tuple[int, ...] | Any, size: tuple[int, ...]) -> Box:
    """Left, top, width, height of a view of ``ASPECT`` round a bounding box, moved and cut to an image (H, W)."""
    left, top, width, height = found
    margin = 2 * MARGIN * max(width, height)
    tall = max(height + margin, (width + margin) / ASPECT, LEAST_SIDE_PX)
    sides = [min(round(tall * ASPECT), size[1]), min(round(tall), size[0])]
    starts = [round(left + width / 2 - sides[0] / 2), round(top + height / 2 - sides[1] / 2)]
    x, y = (min(max(s, 0), full - side) for s, side, full in zip(starts, sides, (size[1], size[0]), strict=True))
    return x, y, sides[0], sides[1]


def outline(mask: U8) -> str:
    """SVG path round all parts and holes of a mask (H, W) of 0 and 1, in its pixels; to be filled by ``evenodd``."""
    left, top, width, height = cv2.boundingRect(mask)
    cut = mask[top : top + height, left : left + width]
    # Contours run through the centres of pixels: of pixels in quarters they run near the edges.
    factor = 4 if max(width, height) <= FINE_PX else 1
    fine = np.repeat(np.repeat(cut, factor, 0), factor, 1)
    contours, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance = max(0.3 * factor, factor * max(width, height) / 250)
    parts = []
    for contour in contours:
        points = (cv2.approxPolyDP(contour, tolerance, True)[:, 0] + 0.5) / factor + (left, top)
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in points) + "Z")
    return "".join(parts)


def _shares(cut: U8, inside: np.ndarray[Any, np.dtype[np.bool_]]) -> list[tuple[int, float]]:
    """Classes by their share of the labelled pixels, largest first."""
    counts: I64 = np.bincount(cut[inside], minlength=256)[:IGNORE]
    total = max(int(counts.sum()), 1)
    order = np.argsort(-counts, kind="stable")
    return [(int(c), round(float(counts[c]) / total, 4)) for c in order if counts[c]]


def _allowed(budget_bytes: int, number: int, bounds: tuple[int, int]) -> int:
    least, most = bounds
    return int(min(max(budget_bytes / BYTES_PER_PX / max(number, 1), least), most))


def _smaller(size: tuple[int, ...], most_px: int) -> tuple[int, int]:
    height, width = size
    factor = min(1.0, (most_px / (height * width)) ** 0.5)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _jpeg(picture: U8, most_px: int) -> tuple[str, str]:
    height, width = _smaller(picture.shape[:2], most_px)
    small = resize_image(np.ascontiguousarray(picture), (height, width))
    return "image/jpeg", base64.b64encode(encode(small, ".jpg", QUALITY)).decode()


def _map(ids: U8, colors: U8, most_px: int) -> tuple[str, str]:
    """Train ids as a PNG of the few colours that occur, transparent where there is no label."""
    values, places = np.unique(ids, return_inverse=True)
    small = Image.fromarray(places.reshape(ids.shape).astype(np.uint8))
    small.putpalette(colors[values].tobytes())
    height, width = _smaller(ids.shape, most_px)
    buffer = io.BytesIO()
    alpha = bytes(0 if v == IGNORE else 255 for v in values)
    small.resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG", transparency=alpha)
    return "image/png", base64.b64encode(buffer.getvalue()).decode()
