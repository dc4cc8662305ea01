"""One pass of a model over a data set that fills a table of regions, with memory for one image.

The network is asked as scoring asks it (protocol ``native``): the image at the size at which the data set is read,
whole, in eval mode. Regions are those of the image's file, at its resolution. D2ADA's code (Wu et al., ECCV 2022) read
its features from augmented images; here the same model and images always give the same table, on CPU at an equal number
of threads bit for bit, killed and resumed or not. What costs is ``Look.columns``: only what is asked is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segue.acquire.partition import Partition, Superpixels, Windows
from segue.acquire.ripu import window_maps
from segue.acquire.table import F32, I64, KEYS, Column, RegionTable
from segue.data.dataset import Dataset
from segue.data.images import resize_image
from segue.data.regions import Regions
from segue.data.regions.slic import U16
from segue.errors import DISK_FULL, UserError
from segue.labels import IGNORE, U8
from segue.models.base import Output, SegModel
from segue.models.classify import classify, evaluating, to_input
from segue.ops.precision import full
from segue.scoring.reading import ahead
from segue.survey.growing import Growing
from segue.survey.statistics import PREDICTED, edges, pixel_maps, region_means

COLUMNS = (*PREDICTED, "edge")
"""Statistics that a survey fills."""


class SurveyError(UserError):
    """A survey that cannot be made as it is asked for, or a model that gives no numbers."""


@dataclass(frozen=True)
class Look:
    """What to look at."""

    columns: tuple[str, ...]
    """Statistics of :data:`COLUMNS`."""
    partition: Partition
    regions: Regions | None = None
    """Superpixels, where the partition is of these."""
    bought: Callable[[str], npt.NDArray[np.bool_] | None] | None = None
    """Of windows: (H, W) pixels of an image (id) that earlier rounds bought, None for none of them."""
    domain: Callable[[Output], Tensor] | None = None
    """For ``domain_prob``: logits (1,1,h,w) of "target" that cover the image without its margin."""


@dataclass(frozen=True)
class _Item:
    id: str
    image: U8
    label: U8 | None
    superpixels: U16 | None


@dataclass(frozen=True)
class _Cut:
    """The regions of an image: ``ids`` (R,) rising, and their places in that list (H, W), -1 outside of all."""

    ids: I64
    area_px: I64
    places: I64
    scored: dict[str, F32]
    """Maps (H, W) of statistics that a window has of its own."""


def survey(
    model: SegModel,
    dataset: Dataset,
    folder: Path,
    look: Look,
    *,
    device: torch.device | str,
    identity: Mapping[str, Any],
    progress: Callable[[int, int], object] | None = None,
) -> RegionTable:
    """The table of all regions of ``dataset``'s images in ``folder``, its own; ``model`` moves to ``device``.

    ``identity``: plain containers that tell model, data and ``look.bought`` apart from others; superpixels, columns,
    images and their size are told here. A table of the same is returned as it is, a begun one goes on, and one of
    another starts anew. ``progress(done, total)`` is called after every image.

    ``UserError`` for a column that needs what ``look`` lacks, logits that are not finite, images or regions that cannot
    be read, and a full disk.
    """
    _check(look)
    told = {"of": dict(identity), **_told(dataset, look), "num_classes": model.num_classes}
    with _space(growing := Growing(folder, dataset.ids, model.num_classes, told)), growing:
        if growing.table is not None:
            return growing.table
        read = _reader(dataset, look)
        with torch.inference_mode(), evaluating(model.to(device)):
            for item in ahead(read, range(growing.done, len(dataset))):
                growing.add(_rows(model, item, dataset.size, look, growing.done))
                if progress is not None:
                    progress(growing.done, len(dataset))
        return growing.finish()


def predicted_map(model: SegModel, dataset: Dataset, index: int, *, device: torch.device | str) -> U8:
    """(H, W) train ids that the model predicts for an image, at the size of its file."""
    image = dataset.read_sample(index, False).image
    with torch.inference_mode(), evaluating(model.to(device)):
        output = _asked(model, image, dataset.size, dataset.ids[index])
        ids: U8 = classify(output, (image.shape[0], image.shape[1]))[0].cpu().numpy()
    return ids


def _asked(model: SegModel, image: U8, size: tuple[int, int] | None, image_id: str) -> Output:
    picture = image if size is None else resize_image(image, size)
    output: Output = model(to_input([picture], model.mean.device))
    if not bool(output.to_classes().isfinite().all()):
        raise SurveyError(
            f"image {image_id!r}: the model's logits are not finite (NaN or inf). Did its training diverge? Take an "
            f"earlier checkpoint"
        )
    return output


def _rows(model: SegModel, item: _Item, size: tuple[int, int] | None, look: Look, number: int) -> dict[str, Column]:
    """Columns of one image, keys first, as they are stored."""
    output = _asked(model, item.image, size, item.id)
    cut = _cut(output, item, look)
    domain = None
    if look.domain is not None and "domain_prob" in look.columns:
        domain = full(look.domain(output)).sigmoid()
    places = torch.from_numpy(cut.places).to(output.logits.device)
    pooled = set(look.columns) - cut.scored.keys()
    found = {n: v.cpu().numpy() for n, v in region_means(output, places, len(cut.ids), pooled, domain).items()}
    found |= {n: values.ravel()[cut.ids] for n, values in cut.scored.items()}
    if "edge" in look.columns:
        found["edge"] = _inside(cut, edges(item.image)) / cut.area_px
    keys = {
        "image": np.full(len(cut.ids), number),
        "region": cut.ids,
        "area_px": cut.area_px,
        "ignored_px": _ignored(cut, item, look),
        "predicted": found["prob"].argmax(1) if len(cut.ids) else cut.ids,
    }
    statistics = {name: _stored(name, found[name], item.id) for name in sorted(look.columns)}
    return {**{name: values.astype(KEYS[name]) for name, values in keys.items()}, **statistics}


def _cut(output: Output, item: _Item, look: Look) -> _Cut:
    size = (item.image.shape[0], item.image.shape[1])
    score, bought, scored = None, None, {}
    if isinstance(look.partition, Windows):
        predicted, entropy = pixel_maps(output, size)
        maps = window_maps(predicted, entropy, output.num_classes, look.partition.radius_px)
        score = maps[0] * maps[1]
        scored = dict(zip(("impurity", "entropy"), maps, strict=True))
        bought = None if look.bought is None else look.bought(item.id)
    try:
        regions = look.partition.regions(size, superpixels=item.superpixels, score=score, labelled=bought)
    except UserError as error:
        raise SurveyError(f"image {item.id!r}: {error}") from error
    areas = np.bincount(regions.ravel() + 1)[1:]
    ids = np.flatnonzero(areas)
    place_of = np.full(len(areas) + 1, -1)
    place_of[ids + 1] = np.arange(len(ids))
    return _Cut(ids, areas[ids], place_of[regions + 1], {n: v for n, v in scored.items() if n in look.columns})


def _ignored(cut: _Cut, item: _Item, look: Look) -> I64:
    if look.regions is not None and look.regions.ignored_px is not None:
        return look.regions.ignored_px[look.regions.rows(item.id)][cut.ids].astype(np.int64)
    return np.zeros_like(cut.ids) if item.label is None else _inside(cut, item.label == IGNORE)


def _inside(cut: _Cut, mask: npt.NDArray[np.bool_]) -> I64:
    """(R,) pixels of the mask in each region."""
    return np.bincount(cut.places[mask] + 1, minlength=len(cut.ids) + 1)[1:]


def _stored(name: str, values: Column, image_id: str) -> Column:
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    if not np.isfinite(stored).all():
        raise SurveyError(
            f"image {image_id!r}: {name} is not finite, or too large for 16 bits. Did the model's training diverge? "
            f"Take an earlier checkpoint"
        )
    return stored


def _reader(dataset: Dataset, look: Look) -> Callable[[int], _Item]:
    bare = set(dataset.unlabelled_ids)

    def read(index: int) -> _Item:
        image_id = dataset.ids[index]
        labels = look.regions is None and dataset.labelled and image_id not in bare
        sample = dataset.read_sample(index, labels)
        return _Item(image_id, sample.image, sample.label, look.regions.read(image_id) if look.regions else None)

    return read


def _check(look: Look) -> None:
    if unknown := sorted(set(look.columns) - set(COLUMNS)):
        raise SurveyError(f"a survey does not fill {', '.join(unknown)}; it fills {', '.join(COLUMNS)}")
    if "domain_prob" in look.columns and look.domain is None:
        raise SurveyError("domain_prob is what a discriminator says: name the adversarial training that has one")
    if isinstance(look.partition, Superpixels) != (look.regions is not None):
        raise ValueError("regions go with the partition into superpixels, and with no other")


def _told(dataset: Dataset, look: Look) -> dict[str, Any]:
    """What the content depends on and can be seen here."""
    digest = blake2b(digest_size=16)
    if look.regions is not None:
        look.regions.require(dataset.ids)
    for image_id in dataset.ids:
        crc = "" if look.regions is None else str(look.regions.index.images[image_id].crc)
        digest.update(f"{image_id}\n{crc}\n".encode())
    return {
        "images": digest.hexdigest(),
        "size": dataset.size,
        "partition": look.partition.model_dump(),
        "columns": sorted(look.columns),
    }


@contextmanager
def _space(growing: Growing) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise SurveyError(
            f"the disk is full after {growing.done} of {len(growing.images)} images in {growing.folder}; free space "
            f"and run the same again: it goes on from there"
        ) from error
