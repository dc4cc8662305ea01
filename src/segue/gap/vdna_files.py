"""Files of the published library (github.com/bramtoula/vdna, 0.1.1): ``NAME.json`` and ``NAME.npz``, read and written.

Forms ``histogram-B``, ``gaussian`` and ``layer-gaussian``. Their .npz also holds a pickled empty dict for each layer of
the normal forms: nothing but the named arrays of numbers is opened. A histogram's file does not tell its ranges;
``activation_ranges.json`` of its extractor does. Counts there are int32, means and variances float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from segue.files import read_json, write_json
from segue.gap.archive import Array, read_arrays, write_arrays
from segue.gap.errors import GapError
from segue.gap.fingerprint import Fingerprint, Gaussian, Histogram
from segue.gap.ranges import SCALE, Ranges

VERSION = "0.1.1"
LARGEST_COUNT = int(np.iinfo(np.int32).max)
Spread = Literal["var", "sigma"]
M = TypeVar("M", bound=BaseModel)


class _Distribution(BaseModel):
    hist_nb_bins: int | None = Field(None, ge=1)


class _Metadata(BaseModel):
    type: Literal["histogram", "gaussian", "layer-gaussian"]
    num_images: int = Field(ge=1)
    feature_extractor_name: str
    neurons_list: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    distribution: _Distribution


class _Extremes(BaseModel):
    mins_per_neuron: dict[str, dict[str, float]]
    maxs_per_neuron: dict[str, dict[str, float]]


def read_vdna(path: Path, ranges: Ranges | None = None) -> Fingerprint:
    """A published fingerprint, with or without one of its two suffixes; its network is the extractor's name.

    ``ranges`` (:func:`read_vdna_ranges`) makes a histogram a reference in which other images can be counted.
    ``GapError`` for a missing or damaged file, arrays that do not fit the JSON, and ranges of other neurons.
    """
    text, data = _pair(path)
    facts = _told(_Metadata, text)
    layers = facts.neurons_list
    if facts.type == "histogram":
        return _histogram(data, facts, ranges)
    spread: Spread = "var" if facts.type == "gaussian" else "sigma"
    arrays = read_arrays(data, [f"{part}-{layer}" for layer in layers for part in ("mu", spread)])
    means = {layer: _numbers(data, arrays[f"mu-{layer}"], (n,)) for layer, n in layers.items()}
    shapes = {layer: (n,) if spread == "var" else (n, n) for layer, n in layers.items()}
    scatter = {
        layer: _numbers(data, arrays[f"{spread}-{layer}"], shape) * (facts.num_images - 1)
        for layer, shape in shapes.items()
    }
    return Gaussian(facts.feature_extractor_name, facts.num_images, means, scatter)


def read_vdna_ranges(path: Path, extractor: str) -> Ranges:
    """``activation_ranges.json`` of an extractor, under the published rule; ``GapError`` when it is damaged."""
    found = _told(_Extremes, path)
    tables = []
    for table in (found.mins_per_neuron, found.maxs_per_neuron):
        if table.keys() != found.mins_per_neuron.keys():
            raise GapError(f"{path} has minima and maxima of different layers: copy it again")
        tables.append({layer: _ordered(path, layer, values) for layer, values in table.items()})
    for layer, low in tables[0].items():
        if low.shape != tables[1][layer].shape or (low > tables[1][layer]).any():
            raise GapError(f"{path}: minima and maxima of layer {layer} do not fit together: copy it again")
    return Ranges(extractor, 0, tables[0], tables[1], "published")


def write_vdna(content: Fingerprint, path: Path, source: str = "segue") -> None:
    """Write ``PATH.json`` and ``PATH.npz`` for the published library; ``source`` is what it says of the images.

    ``GapError`` when a count does not fit its int32.
    """
    text, data = _pair(path)
    form, arrays = _arrays(content)
    bins = content.bins if isinstance(content, Histogram) else 0
    tables = content.counts if isinstance(content, Histogram) else content.means
    # The files are two: the arrays first, so that a fresh JSON never stands beside old ones.
    write_arrays(data, arrays)
    write_json(
        text,
        {
            "vdna_version": VERSION,
            "distribution": {"hist_nb_bins": bins} if bins else {},
            "type": form,
            "name": f"histogram-{bins}" if bins else form,
            "data_settings": {"source": source, "num_images": content.images},
            "extraction_settings": _extraction(bins),
            "num_images": content.images,
            "feature_extractor_name": content.network,
            "neurons_list": {layer: len(table) for layer, table in tables.items()},
        },
    )


def _extraction(bins: int) -> dict[str, Any]:
    if not bins:
        return {"average_feats_spatially": True}
    return {
        "accumulate_spatial_feats_in_hist": True,
        "accumulate_sample_feats_in_hist": True,
        "normalise_feats": True,
        "range_scale_for_norm_params": SCALE,
        "hist_range": [-1.0, 1.0],
        "hist_nb_bins": bins,
    }


def _arrays(content: Fingerprint) -> tuple[str, dict[str, Array]]:
    if isinstance(content, Histogram):
        largest = max(int(table.max()) for table in content.counts.values())
        if largest > LARGEST_COUNT:
            raise GapError(f"a bin has {largest} counts, more than the published format holds: save it in ours")
        return "histogram", {layer: table.numpy().astype(np.int32) for layer, table in content.counts.items()}
    spread, kind = ("sigma", np.float64) if content.full else ("var", np.float32)
    arrays: dict[str, Array] = {}
    for layer, mean in content.means.items():
        arrays[f"mu-{layer}"] = mean.numpy().astype(kind)
        arrays[f"{spread}-{layer}"] = content.spread(layer).numpy().astype(kind)
    return "layer-gaussian" if content.full else "gaussian", arrays


def _histogram(data: Path, facts: _Metadata, ranges: Ranges | None) -> Histogram:
    layers, bins = facts.neurons_list, facts.distribution.hist_nb_bins
    if bins is None:
        raise GapError(f"the JSON beside {data} tells no number of bins: copy it again")
    arrays = read_arrays(data, layers)
    counts = {layer: _numbers(data, arrays[layer], (n, bins)).to(torch.int64) for layer, n in layers.items()}
    if any((table < 0).any() for table in counts.values()):
        raise GapError(f"{data} has counts below 0: they have overflowed or are damaged")
    if ranges is not None:
        ranges = ranges.only(layers)
        if ranges.network != facts.feature_extractor_name:
            raise GapError(f"the ranges are of {ranges.network}, {data} is of {facts.feature_extractor_name}")
        if odd := [layer for layer, n in layers.items() if len(ranges.minima[layer]) != n]:
            raise GapError(f"the ranges of layer {odd[0]} have other neurons than {data}")
    return Histogram(facts.feature_extractor_name, facts.num_images, counts, ranges)


def _pair(path: Path) -> tuple[Path, Path]:
    stem = path.name.removesuffix(".json").removesuffix(".npz")
    return path.with_name(f"{stem}.json"), path.with_name(f"{stem}.npz")


def _told(model: type[M], path: Path) -> M:
    try:
        return model.model_validate(read_json(path))
    except OSError as error:
        raise GapError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise GapError(f"{path} is no file of the vDNA library, or damaged: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise GapError(f"{path} is no JSON file: {error}") from error


def _numbers(path: Path, array: Array, shape: tuple[int, ...]) -> Tensor:
    if array.shape != shape or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise GapError(
            f"{path} is damaged: {array.dtype} numbers in the shape {array.shape} where the JSON tells of {shape}, "
            f"or not finite"
        )
    return torch.from_numpy(array.astype(np.float64))


def _ordered(path: Path, layer: str, values: Mapping[str, float]) -> Tensor:
    try:
        ordered = [values[str(n)] for n in range(len(values))]
    except KeyError as error:
        raise GapError(f"{path}: layer {layer} lacks neuron {error}: copy it again") from error
    tensor = torch.tensor(ordered, dtype=torch.float64)
    if not len(tensor) or not torch.isfinite(tensor).all():
        raise GapError(f"{path}: layer {layer} is empty or not finite: copy it again")
    return tensor
