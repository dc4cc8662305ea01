"""A stream in buckets: images ordered by a score, cut into consecutive groups, after filters; published rankings read.

The idea is that of "Unsupervised Incremental Learning using vDNA" (DLL project, 2024): a model follows a stream bucket
by bucket, the images nearest to what it knows first. There only random order with one bucket could run: the sort key
was in none of its files, images left over by the division were dropped, and a bucket smaller than the sample to be
drawn from it was a crash. Here the score is named, every image is in exactly one bucket, and what is too small says so.

Knobs that matter: the score (``emd_block_11`` there), the direction, and the cut: :class:`EqualCount` (buckets of one
size), :class:`EqualWidth` (intervals of the score) or :class:`Within` (a bucket ends where the score has moved on).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.labels import nearest

Direction = Literal["ascending", "descending", "random"]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_IMAGES = "what is known of the images"


@dataclass(frozen=True)
class EqualCount:
    """So many buckets, whose sizes differ by one image at most; the larger ones come first."""

    buckets: int


@dataclass(frozen=True)
class EqualWidth:
    """So many equal intervals between the lowest and the highest score, those without an image left out.

    A score on an edge belongs to the interval above it.
    """

    buckets: int


@dataclass(frozen=True)
class Within:
    """A bucket ends before the first image whose score differs from that of the bucket's first by more than this."""

    distance: float


Cut = EqualCount | EqualWidth | Within


@dataclass(frozen=True, eq=False)
class Bucket:
    """Positions of images in the order to follow them, and their lowest and highest score (NaN if one has none)."""

    indices: I64
    low: float
    high: float


def make_buckets(scores: npt.ArrayLike, direction: Direction, cut: Cut, seed: int = 0) -> list[Bucket]:
    """All images, given by their scores (N,), in buckets; ``seed`` is that of the random direction.

    ``DataError`` as :func:`order`, for a cut that makes no sense or asks for more buckets than there are images, and
    for a cut by score in random order.
    """
    values = np.asarray(scores, np.float64)
    places = order(values, direction, seed)
    if direction == "random" and not isinstance(cut, EqualCount):
        raise DataError("buckets of a random order can only be cut by count: order them ascending or descending")
    groups = np.split(places, _starts(values[places], cut))
    return [Bucket(g, float(values[g].min()), float(values[g].max())) for g in groups]


def order(scores: npt.ArrayLike, direction: Direction, seed: int = 0) -> I64:
    """Positions of images by score (N,), equal ones as they came, or in a random order that depends on ``seed`` and N.

    ``DataError`` without images, and for images without a finite score, which only the random order can place.
    """
    values = np.asarray(scores, np.float64)
    if not values.size:
        raise DataError("no images to order: check the split and the filters")
    if direction == "random":
        keys = [blake2b(f"{seed}/{i}".encode(), digest_size=16).digest() for i in range(values.size)]
        return np.array(sorted(range(values.size), key=keys.__getitem__), np.int64)
    if missing := int(np.count_nonzero(~np.isfinite(values))):
        raise DataError(
            f"{missing} of {values.size} images have no finite score: leave them out, choose another score, "
            "or order them at random"
        )
    return np.argsort(values if direction == "ascending" else -values, kind="stable").astype(np.int64)


def lowest(scores: npt.ArrayLike, count: int, among: Mask | None = None) -> I64:
    """Positions of the ``count`` images with the lowest scores (N,) of those in ``among`` that have one, lowest first.

    ``DataError`` when there are fewer.
    """
    values = np.asarray(scores, np.float64)
    allowed = np.isfinite(values) if among is None else np.isfinite(values) & among
    candidates = np.flatnonzero(allowed)
    if count > candidates.size:
        raise DataError(f"{count} images are asked for, but only {candidates.size} are left: loosen the filters")
    return candidates[np.argsort(values[candidates], kind="stable")][:count].astype(np.int64)


@dataclass(frozen=True)
class ImageFilter:
    """What an image must have to be followed, by a model's own predictions on it; None: anything.

    ``class_count_min``: predicted classes (9 in the published run); ``entropy_max``: mean over the pixels, in nats;
    ``confidence_min``: mean highest probability.
    """

    class_count_min: int | None = None
    entropy_max: float | None = None
    confidence_min: float | None = None

    def mask(self, values: Mapping[str, F64], count: int) -> Mask:
        """Which of ``count`` images pass, limits included; ``values``: arrays (count,) by the names in the limits.

        An image whose value is NaN does not pass. ``DataError`` when a value that is needed is not there.
        """
        keep = np.ones(count, np.bool_)
        if self.class_count_min is not None:
            keep &= _column(values, "class_count", _IMAGES) >= self.class_count_min
        if self.entropy_max is not None:
            keep &= _column(values, "entropy", _IMAGES) <= self.entropy_max
        if self.confidence_min is not None:
            keep &= _column(values, "confidence", _IMAGES) >= self.confidence_min
        return keep


@dataclass(frozen=True, eq=False)
class Ranking:
    """A ranking file: images (paths as in the file, forward slashes), their scores (NaN: none), and what they are for.

    ``truths``: paths of labels where the file has them; ``validation`` (N,): images never to be followed.
    """

    where: str
    images: tuple[str, ...]
    truths: tuple[str | None, ...]
    validation: Mask
    values: Mapping[str, F64]

    def column(self, name: str) -> F64:
        """A score of all images (N,); ``DataError`` names those that there are."""
        return _column(self.values, name, self.where)

    def take(self, indices: I64) -> Ranking:
        """These images in this order."""
        return Ranking(
            self.where,
            tuple(self.images[i] for i in indices),
            tuple(self.truths[i] for i in indices),
            self.validation[indices],
            {name: column[indices] for name, column in self.values.items()},
        )


def select_published(
    master: Ranking,
    validation: Ranking,
    count: int = 2500,
    class_count_min: int = 9,
    score: str = "emd_block_11",
) -> Ranking:
    """The lowest-scored images that show enough classes and are in no validation set.

    With ``master_v1_tmp.json``, ``master_val.json`` and the defaults: the images of ``ranked_2k_class.json``.
    """
    keep = ImageFilter(class_count_min=class_count_min).mask(master.values, len(master.images))
    held = set(validation.images)
    keep &= ~master.validation & np.array([image not in held for image in master.images], np.bool_)
    return master.take(lowest(master.column(score), count, keep))


def read_ranking(path: Path) -> Ranking:
    """Read a published ranking file: a JSON list of ``{"image" or "image_path": path, "emd_block_11": 16.4, …}``.

    Every field with a number is a score, absent and null ones are NaN; ``val_set`` (absent: false) marks validation
    images and ``ground_truth`` is the label's path; other fields are not read. ``DataError`` for a file that is missing
    or damaged, a score that is no finite number, and an image that comes twice.
    """
    where = str(path)
    try:
        records = json.loads(path.read_text("utf-8"), parse_int=float)
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else f"not JSON: {error}"
        raise _damaged(where, str(reason)) from error
    if not isinstance(records, list) or not records or not all(isinstance(r, dict) for r in records):
        raise _damaged(where, "not a list of objects, one for each image")
    images = tuple(_text(where, i, r, "image" if "image" in r else "image_path") for i, r in enumerate(records))
    if len(set(images)) < len(images):
        raise _damaged(where, f"{Counter(images).most_common(1)[0][0]} is listed twice")
    return Ranking(
        where,
        images,
        tuple(
            None if r.get("ground_truth") is None else _text(where, i, r, "ground_truth") for i, r in enumerate(records)
        ),
        np.array([_flag(where, i, r) for i, r in enumerate(records)], np.bool_),
        {name: _scores(where, records, name) for name in _score_names(records)},
    )


def ids_of_ranking(ranking: Ranking, dataset: Dataset) -> list[int | None]:
    """Position in ``dataset.ids`` of every image of the ranking, in its order; None for one that the set does not hold.

    Paths are compared from their ends, so neither the folder above the data nor ``./`` nor ``\\`` matters, and a copy
    that has other folders but the same image ids is recognised too. ``DataError`` when no image is found, and for a
    path that several images of the set end with.
    """
    by_name: dict[str, list[tuple[str, int]]] = {}
    by_key: dict[str, list[int]] = {}
    for index, image_id in enumerate(dataset.ids):
        by_key.setdefault(image_id.rsplit("/", 1)[-1], []).append(index)
        if (file := dataset.files(index)[0]) is not None:
            by_name.setdefault(file.path.rsplit("/", 1)[-1], []).append((f"/{file.path}", index))
    found = [_place(ranking, f"/{image.removeprefix('./')}", dataset, by_name, by_key) for image in ranking.images]
    if all(place is None for place in found):
        raise DataError(
            f"{ranking.where}: none of its {len(found)} images is in data set {dataset.name!r}, split "
            f"{dataset.split!r}; it lists {ranking.images[0]}, the data set has {dataset.describe(0)}"
        )
    return found


def _starts(ordered: F64, cut: Cut) -> Sequence[int] | I64:
    # Where the second and every later bucket starts.
    if isinstance(cut, Within):
        if not cut.distance >= 0:
            raise DataError(f"the distance that a bucket spans must be 0 or more, it is {cut.distance}")
        return _moved_on(ordered, cut.distance)
    if cut.buckets < 1:
        raise DataError(f"the number of buckets must be 1 or more, it is {cut.buckets}")
    if isinstance(cut, EqualWidth):
        edges = np.linspace(ordered.min(), ordered.max(), cut.buckets + 1)
        return np.flatnonzero(np.diff(np.searchsorted(edges[1:-1], ordered, side="right"))) + 1
    if cut.buckets > ordered.size:
        raise DataError(
            f"{ordered.size} images cannot fill {cut.buckets} buckets: ask for fewer, or loosen the filters"
        )
    size, larger = divmod(ordered.size, cut.buckets)
    return [i * size + min(i, larger) for i in range(1, cut.buckets)]


def _moved_on(ordered: F64, distance: float) -> list[int]:
    starts: list[int] = []
    first = float(ordered[0])
    for place, score in enumerate(ordered.tolist()):
        if abs(score - first) > distance:
            starts.append(place)
            first = score
    return starts


def _place(
    ranking: Ranking,
    listed: str,
    dataset: Dataset,
    by_name: Mapping[str, Sequence[tuple[str, int]]],
    by_key: Mapping[str, Sequence[int]],
) -> int | None:
    same = by_name.get(listed.rsplit("/", 1)[-1], ())
    if whole := [(len(path), index) for path, index in same if listed.endswith(path)]:
        return max(whole)[1]
    places = [index for path, index in same if path.endswith(listed)]
    if not places:
        key = PurePosixPath(listed).stem
        while key and key not in by_key:
            key = key.rpartition("_")[0]
        places = [index for index in by_key.get(key, ()) if _passes(listed, dataset.ids[index])]
    if len(places) > 1:
        raise DataError(
            f"{ranking.where}: {listed[1:]} may be {' or '.join(dataset.describe(i) for i in places[:2])} of data set "
            f"{dataset.name!r}; list images with their folders"
        )
    return places[0] if places else None


def _passes(listed: str, image_id: str) -> bool:
    """Whether the folders of the id come, in this order, among those of the path."""
    folders = iter(listed.split("/")[:-1])
    return all(part in folders for part in image_id.split("/")[:-1])


def _column(values: Mapping[str, F64], name: str, owner: str) -> F64:
    if name not in values:
        raise DataError(f"no score {name!r} in {owner}{nearest(name, list(values))}")
    return values[name]


def _damaged(where: str, reason: str) -> DataError:
    return DataError(f"{where} is no ranking of images ({reason}): fetch or make it again")


def _text(where: str, place: int, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        wanted = "'image' or 'image_path'" if key == "image_path" else repr(key)
        raise _damaged(where, f"entry {place} has no path as {wanted}")
    return value.replace("\\", "/")


def _flag(where: str, place: int, record: dict[str, Any]) -> bool:
    value = record.get("val_set", False)
    if not isinstance(value, bool):
        raise _damaged(where, f"'val_set' of entry {place} is {value!r}, not true or false")
    return value


def _score_names(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for r in records for name, value in r.items() if isinstance(value, float)))


def _scores(where: str, records: Sequence[dict[str, Any]], name: str) -> F64:
    out = np.full(len(records), np.nan)
    for place, value in enumerate(r.get(name) for r in records):
        if value is None:
            continue
        if not isinstance(value, float) or not math.isfinite(value):
            raise _damaged(where, f"{name!r} of entry {place} is {str(value)[:40]!r}, not a finite number")
        out[place] = value
    return out
