"""The style of an image, the channel statistics of an early map, and how far it lies from that of a set of images.

A style vector is the mean and the standard deviation of every channel of the input of the network's first norm layer
(of its first convolution, for a network without norm layers): what ReservoirTTA (Vray et al., 2025) clusters, after
Huang and Belongie (ICCV 2017). It does not depend on norm layers, which may differ from domain to domain. In units of
the set's own spread, the mean squared deviation from the set's mean is the distance; ``radius`` is the distance that
99 % of the set's images stay within, measured on images that mean and spread were not computed from. The margin that
pads an image to the network's multiple counts as picture.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from segue.data.copies import spread
from segue.data.dataset import Dataset
from segue.errors import UserError
from segue.models.base import SegModel
from segue.models.classify import evaluating, to_input
from segue.models.trained import NORM_TYPES
from segue.ops.precision import full

QUANTILE = 0.99
SMALLEST_STD = 1e-6
PROBE_PX = 64


class _Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


@dataclass(frozen=True)
class Style:
    """Mean (F,), standard deviation (F,) and radius () of the style vectors of a set of images."""

    mean: Tensor
    std: Tensor
    radius: Tensor

    @classmethod
    def fit(cls, vectors: Tensor) -> Style:
        """From (n,F): mean and spread of every other row, radius of the rest; ``UserError`` for fewer than 4 rows."""
        if len(vectors) < 4:
            raise UserError(f"the style of a set needs at least 4 images, this one has {len(vectors)}")
        known, held = vectors[::2].double(), vectors[1::2].double()
        style = cls(known.mean(0).float(), known.std(0).clamp_min(SMALLEST_STD).float(), torch.tensor(0.0))
        return cls(style.mean, style.std, radius_of(style.distance(held.float())))

    def standardised(self, vectors: Tensor) -> Tensor:
        """(n,F) style vectors to (n,F) in units of the set's spread."""
        return (vectors - self.mean.to(vectors)) / self.std.to(vectors)

    def distance(self, vectors: Tensor) -> Tensor:
        """(n,F) style vectors to (n,): mean squared standardised deviation."""
        return self.standardised(vectors).square().mean(1)

    def inside(self, vectors: Tensor) -> Tensor:
        """(n,F) style vectors to (n,) bool: within the radius."""
        return self.distance(vectors) <= self.radius.to(vectors)


def radius_of(distances: Tensor) -> Tensor:
    """The 0.99 quantile of (n,) distances, a scalar."""
    return torch.quantile(distances.float(), QUANTILE)


def style_layer(model: SegModel) -> str:
    """Path of the module whose input has the style: the norm layer that runs first, or else the first convolution."""
    twin = copy.deepcopy(model).to("meta").eval()
    order: dict[type, list[str]] = {nn.Module: [], nn.Conv2d: []}
    for path, module in twin.named_modules():
        kind = nn.Module if isinstance(module, NORM_TYPES) else nn.Conv2d if isinstance(module, nn.Conv2d) else None
        if kind is not None:
            module.register_forward_pre_hook(lambda _m, _x, p=path, k=kind: order[k].append(p))
    side = max(PROBE_PX, twin.multiple)
    twin.decode(torch.empty(1, 3, side, side, device="meta"))
    return (order[nn.Module] or order[nn.Conv2d])[0]


def style_width(model: SegModel, layer: str) -> int:
    """Length F of a style vector."""
    module = model.get_submodule(layer)
    if isinstance(module, nn.LayerNorm):
        return 2 * int(module.normalized_shape[0])
    for name in ("num_features", "num_channels", "in_channels"):
        if hasattr(module, name):
            return 2 * int(getattr(module, name))
    raise UserError(f"layer {layer!r} of model {model.config.name!r} does not say how many channels it has")


def style_vector(x: Tensor, module: nn.Module) -> Tensor:
    """Means, then standard deviations, of every channel of a layer's input: (N,F), F twice the channels."""
    last = isinstance(module, nn.LayerNorm) and not isinstance(module, LayerNorm2d)
    rows = full(x.detach()).movedim(-1, 1).flatten(2) if last else full(x.detach()).flatten(2)
    return torch.cat([rows.mean(2), rows.std(2, correction=0)], 1)


@contextmanager
def noted(module: nn.Module, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """A list that receives the style vectors (N,F) of every batch that the layer sees; ``stop``: and no more."""
    found: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(style_vector(inputs[0], layer))
        if stop:
            raise _Stop

    handle = module.register_forward_pre_hook(note)
    try:
        yield found
    except _Stop:
        pass
    finally:
        handle.remove()


@torch.no_grad()
def style_of(model: SegModel, layer: str, x: Tensor) -> Tensor:
    """Style vectors (N,F) of normalised, padded images; what comes after the layer is not computed."""
    with evaluating(model), noted(model.get_submodule(layer), stop=True) as found:
        model.decode(x)
    return found[0]


def pictures(datasets: Iterable[Dataset], limit: int, device: torch.device) -> Iterator[Tensor]:
    """At most ``limit`` images (1,3,H,W) float 0..1 of each data set, evenly spaced, as they are scored."""
    for dataset in datasets:
        for index in spread(range(len(dataset)), limit):
            yield to_input([dataset.read_image(index)], device)
