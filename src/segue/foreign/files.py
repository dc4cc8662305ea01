"""The one reader of weight files that others wrote: tensors by name, and nothing of the file is executed.

``.safetensors`` goes to safetensors, everything else (``.pth``, ``.pt``, ``.tar``, ``.pkl``; zip files of today and the
older single pickle) to torch's ``weights_only`` loader, which builds tensors and plain containers only. Training
scripts often leave a NumPy number beside the weights (a best score): these become an empty stand-in, no NumPy code
runs. A file with anything else is refused.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from segue.foreign.base import LAYOUTS, Foreign, ForeignError, recognise

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network")
PREFIXES = ("module.", "_orig_mod.")
DEPTH = 3
Table = dict[str, Tensor]


class _Ignored:
    """Stands for a NumPy number or type; keeps nothing of it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# Stand-ins and not NumPy itself: a crafted dtype state can make NumPy read memory that it does not own.
IGNORED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Ignored, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
]


def located(path: Path) -> Path:
    """The weights file that a path means: itself, or one below ``$IFN_DIR_CHECKPOINT``, where CIL keeps its models.

    A folder of CIL's code, or its name there (``erfnet_incremental_set12``), means its newest
    ``models/weights_EPOCH/model.pth``. The path as it is when there is no such file.
    """
    root = os.environ.get("IFN_DIR_CHECKPOINT")
    below = [Path(root) / path, Path(root) / "erfnet" / path] if root else []
    for place in [path, *below]:
        if place.is_file():
            return place
        if epochs := list(place.glob("models/weights_*/model.pth")):
            return max(epochs, key=lambda file: (len(file.parent.name), file.parent.name))
    return path


def read_foreign(path: Path, layout: str | None = None) -> Foreign:
    """The checkpoint in a file, in our terms, by the layout that fits or the named one.

    Without ``layout`` the first table of tensors is meant, otherwise the first that fits; other tables are noted.
    """
    tables = read_tables(path)
    chosen = next(iter(tables))
    if layout is not None:
        chosen = next((name for name, table in tables.items() if LAYOUTS.get(layout)().fits(table)), chosen)
    try:
        foreign = recognise(tables[chosen], layout)
    except ForeignError as error:
        raise ForeignError(f"{path}: {error}") from error
    return replace(foreign, notes=(*_others(tables, chosen), *foreign.notes))


def _others(tables: Mapping[str, Table], chosen: str) -> tuple[str, ...]:
    others = [name or "the top level" for name in tables if name != chosen]
    return (f"the file also holds {', '.join(others)}; --layout chooses by key layout",) if others else ()


def read_state(path: Path) -> Table:
    """The first table of :func:`read_tables`."""
    return next(iter(read_tables(path).values()))


def read_tables(path: Path) -> dict[str, Table]:
    """Every table of named tensors in a file by the key that leads to it, that of the weights first.

    Optimiser states are left out, and so are ``module.`` and ``_orig_mod.`` before names. ``ForeignError`` says what
    the file is when it holds no weights.
    """
    content = _content(path)
    found = dict(_tables(content, "", DEPTH))
    if not found:
        what = "the state of an optimiser" if _is_optimiser(content) else "no state dict"
        raise ForeignError(f"{path} holds {what}, not weights: a table of named tensors is needed")
    order = sorted(found, key=_rank)  # stable: as in the file otherwise
    try:
        return {name: _without_prefix(found[name]) for name in order}
    except ForeignError as error:
        raise ForeignError(f"{path}: {error}") from error


def _rank(name: str) -> int:
    words = name.split(".")
    known = all(word in WRAPPERS for word in words)
    return WRAPPERS.index(words[-1]) if known else len(WRAPPERS) + (name != "")


def _tables(content: Any, name: str, depth: int) -> Iterator[tuple[str, Table]]:
    if not isinstance(content, Mapping) or _is_optimiser(content):
        return
    if own := {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}:
        yield name, own
    if depth:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _tables(value, f"{name}.{key}" if name else key, depth - 1)


def _is_optimiser(content: Any) -> bool:
    return isinstance(content, Mapping) and {"state", "param_groups"} <= set(content)


def _without_prefix(table: Table) -> Table:
    out: Table = {}
    for key, tensor in table.items():
        name = key
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name in out:
            raise ForeignError(f"{name} occurs with and without 'module.': the file mixes two networks")
        out[name] = tensor
    return out


def _content(path: Path) -> Any:
    if not path.is_file():
        raise ForeignError(f"no weights file {path}")
    with path.open("rb") as file:
        head = file.read(512)
    _check_head(path, head)
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        with warnings.catch_warnings(), safe_globals(IGNORED):
            warnings.simplefilter("ignore")  # of other pickle protocols: what cannot be read is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ForeignError(f"cannot read {path} as safetensors: {error}") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ForeignError(f"cannot read weights {path}: {_reason(error, head)}") from error


def _check_head(path: Path, head: bytes) -> None:
    start = head.lstrip()[:200].lower()
    if not head:
        raise ForeignError(f"{path} is empty: download or copy it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ForeignError(f"{path} is a web page, not weights: the download needs a direct link or a login")
    if start.startswith(b"version https://git-lfs"):
        raise ForeignError(f"{path} is a Git LFS pointer, not the weights: run 'git lfs pull' where it came from")


def _reason(error: Exception, head: bytes) -> str:
    text = str(error)
    if named := re.search(r"GLOBAL (\S+) ", text):
        return (
            f"it holds an object of {named[1]} and is not opened, only tensors and plain containers are: "
            f"save its state dict alone, or as .safetensors"
        )
    if "legacy .tar format" in text:
        return "it is a tar archive of torch before 0.1.10: save its state dict with a newer torch"
    if head.startswith(b"PK"):
        return f"the archive is truncated or damaged ({_first_line(text)}): download or copy it again"
    if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in text:
        return f"it is no torch file, or asks for what is not opened ({_first_line(text)})"
    return f"it is truncated, damaged or no torch file ({type(error).__name__}: {_first_line(text)})"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
