"""Fingerprints and ranges in our own format: one .npz of plain arrays, one of which is a text in JSON that says what
the others are. Ranges travel with the histogram that was counted in them, so any saved histogram is a reference.

Arrays are named ``PART/LAYER``. Whole numbers are stored in as few bytes as hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from segue.gap.archive import Array, read_arrays, write_arrays
from segue.gap.errors import GapError
from segue.gap.fingerprint import Fingerprint, Gaussian, Histogram
from segue.gap.ranges import Ranges, Rule, Table
from segue.gap.vdna_files import read_vdna, write_vdna
from segue.settings import Settings, check

FORMAT = "segue-fingerprint-1"
FACTS = "facts"
RANGES = ("minima", "maxima")
PARTS: dict[str, tuple[str, ...]] = {
    "histogram": ("counts",),
    "gaussian": ("means", "scatter"),
    "ranges": (),
}


class _Ranges(Settings):
    network: str
    images: int
    rule: Rule


class _Facts(Settings):
    format: Literal["segue-fingerprint-1"]
    form: Literal["histogram", "gaussian", "ranges"]
    network: str
    images: int
    layers: tuple[str, ...]
    ranges: _Ranges | None


def save(content: Fingerprint | Ranges, path: Path) -> None:
    """Write a fingerprint or ranges to one .npz file."""
    form, tables, ranges = _parts(content)
    if ranges is not None:
        tables.update(minima=ranges.minima, maxima=ranges.maxima)
    facts = {
        "format": FORMAT,
        "form": form,
        "network": content.network,
        "images": content.images,
        "layers": list(next(iter(tables.values()))),
        "ranges": ranges and {"network": ranges.network, "images": ranges.images, "rule": ranges.rule},
    }
    arrays = {f"{part}/{layer}": _small(tensor) for part, table in tables.items() for layer, tensor in table.items()}
    write_arrays(path, {FACTS: np.array(json.dumps(facts)), **arrays})


def load(path: Path) -> Fingerprint | Ranges:
    """Read what :func:`save` wrote; ``GapError`` for any other file, a damaged one, or arrays that do not fit."""
    facts = _facts(path)
    parts = (*PARTS[facts.form], *(RANGES if facts.ranges else ()))
    arrays = read_arrays(path, [f"{part}/{layer}" for part in parts for layer in facts.layers])
    tables = {part: {layer: _tensor(path, arrays[f"{part}/{layer}"]) for layer in facts.layers} for part in parts}
    for fault in _faults(facts, tables):
        raise GapError(f"{path} is damaged: {fault}")
    told = facts.ranges
    ranges = Ranges(told.network, told.images, tables["minima"], tables["maxima"], told.rule) if told else None
    if facts.form == "histogram":
        counts = {layer: table.to(torch.int64) for layer, table in tables["counts"].items()}
        return Histogram(facts.network, facts.images, counts, ranges)
    if facts.form == "gaussian":
        return Gaussian(facts.network, facts.images, tables["means"], tables["scatter"])
    assert ranges is not None
    return ranges


def opened(path: Path) -> Fingerprint:
    """A stored fingerprint, ours (.npz) or one of the vDNA library (its .json); ``GapError`` for ranges alone."""
    content = read_vdna(path) if path.suffix == ".json" else load(path)
    if isinstance(content, Ranges):
        raise GapError(f"{path} holds ranges and no fingerprint: count images in them first")
    return content


def keep(content: Fingerprint, path: Path) -> None:
    """Write a fingerprint as :func:`save`, or by the suffix .json as the vDNA library, which loses its ranges."""
    if path.suffix == ".json":
        write_vdna(content, path)
    else:
        save(content, path)


def _parts(content: Fingerprint | Ranges) -> tuple[str, dict[str, Table], Ranges | None]:
    if isinstance(content, Histogram):
        return "histogram", {"counts": content.counts}, content.ranges
    if isinstance(content, Gaussian):
        return "gaussian", {"means": content.means, "scatter": content.scatter}, None
    return "ranges", {}, content


def _facts(path: Path) -> _Facts:
    if not path.is_file():
        raise GapError(f"no fingerprint {path}")
    try:
        text: Any = json.loads(str(read_arrays(path, [FACTS])[FACTS]))
        facts = check(_Facts, text, "")
    except GapError as error:
        raise GapError(f"{error}; one of the vDNA library is named by its .json") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise GapError(f"{path} is no fingerprint of this version: {error}") from error
    if not facts.layers or facts.images < (facts.form != "ranges") or (facts.form == "ranges" and not facts.ranges):
        raise GapError(f"{path} is damaged: it says that nothing is in it")
    return facts


def _faults(facts: _Facts, tables: dict[str, Table]) -> Iterator[str]:
    """What does not fit together, or is no number of its kind."""
    bins = {table.shape[1:] for table in tables.get("counts", {}).values()}
    if len(bins) > 1:
        yield "its layers have different numbers of bins"
    for layer in facts.layers:
        own = {part: table[layer] for part, table in tables.items()}
        for part, tensor in own.items():
            axes = (1, 2) if part == "scatter" else (2,) if part == "counts" else (1,)
            if tensor.ndim not in axes or not tensor.numel() or not torch.isfinite(tensor).all():
                yield f"{part} of layer {layer} has the shape {tuple(tensor.shape)} or is not finite"
        if len({len(tensor) for tensor in own.values() if tensor.ndim}) > 1:
            yield f"layer {layer} has different numbers of neurons in {', '.join(own)}"
        scatter = own.get("scatter")
        if scatter is not None and scatter.ndim == 2 and scatter.shape[0] != scatter.shape[1]:
            yield f"scatter of layer {layer} is not square"
        if "counts" in own and (own["counts"] < 0).any():
            yield f"layer {layer} has counts below 0"
        if "minima" in own and own["minima"].shape == own["maxima"].shape and (own["minima"] > own["maxima"]).any():
            yield f"the ranges of layer {layer} end before they start"


def _small(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array if array.dtype.kind == "f" else array.astype(np.min_scalar_type(int(array.max())))


def _tensor(path: Path, array: Array) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise GapError(f"{path} is damaged: it holds {array.dtype} where numbers must be")
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
