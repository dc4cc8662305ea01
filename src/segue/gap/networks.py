"""Networks that images are compared by: a trained model of ours, or any network of timm or torchvision.

A network is named ``FOLDER`` (a run, stage, checkpoint or model of ours), ``timm:NAME`` or ``torchvision:NAME``, the
last two with ``@imagenet`` (default), ``@random`` (from a seed) or ``@lite0-package``. Looked at are the outputs of the
blocks of the encoder unless layers are named: for a module in a list of modules (``layer1.0``, ``blocks.5``) its
output, and where a network has no such lists the maps that timm calls its features.

Images come as RGB bytes or 0..1. The whole picture is resized to one size; ``square`` is the published preparation
instead: the centre square, bicubic in float, 224x224 where the network tells no size (Ramtoula et al., CVPR 2023).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from segue.checkpoint import load_model
from segue.data.images import resize_image
from segue.gap.errors import GapError
from segue.gap.layers import Probe, identity_of, matching
from segue.labels import U8, LabelSpace
from segue.models.base import IMAGENET_MEAN, IMAGENET_STD, SegModel
from segue.models.classify import to_input
from segue.models.mit import Stage
from segue.models.weights import WeightsError, lite0_state, load_state, quick_when_offline

Size = tuple[int, int]
START = ("imagenet", "random", "lite0-package")
SIDE = 224
"""Of the published preparation, and of a network that tells no size."""
SQUARE = " square"
"""In the identity of a network whose pictures are prepared as published."""
LISTS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Extractor:
    """A network, its layers, and how images reach it.

    ``size`` (height, width): what images are resized to unless the caller says; None: their own. ``square``: the
    published preparation. ``model`` and ``labels``: where the network is a segmentation model of ours.
    """

    probe: Probe
    size: Size | None = None
    square: bool = False
    model: SegModel | None = None
    labels: LabelSpace | None = None

    @property
    def identity(self) -> str:
        """Tells networks apart: name, a hash of the weights, and how pictures are prepared where that was said."""
        return self.probe.identity

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.probe.network.parameters()).device

    def only(self, names: Sequence[str]) -> Extractor:
        """The same network with some of its layers."""
        return replace(self, probe=self._probe(names, self.identity))

    def at(self, size: Size) -> Extractor:
        """The same network for images of one size, which is told apart: its fingerprints are of that size alone."""
        return replace(self, size=size, probe=self._probe(self.probe.names, f"{self.identity} {size[0]}x{size[1]}"))

    def _probe(self, names: Sequence[str], identity: str) -> Probe:
        probe, patterns = self.probe, [re.escape(name) for name in names]
        return Probe(probe.network, patterns, identity, ask=probe.ask, channels_last=probe.channels_last)

    def neurons(self, image: U8, size: Size | None = None) -> dict[str, int]:
        """Neurons of every layer, by one pass over a picture."""
        found: dict[str, int] = {}
        self.probe.run([self.batch([image], size)], lambda name, values: found.__setitem__(name, values.shape[1]))
        return found

    def fits(self, a: U8, b: U8, size: Size | None = None) -> bool:
        """Whether two pictures can be in one batch."""
        return self.square or bool(size or self.size) or a.shape == b.shape

    def batch(self, images: Sequence[U8], size: Size | None = None) -> Tensor:
        """RGB pictures (H,W,3) uint8 to (N,3,h,w) float 0..1, which ``probe.run`` takes; one size for all."""
        wanted = size or self.size
        if self.square:
            return torch.stack([_square(image, wanted or (SIDE, SIDE)) for image in images]).to(self.device)
        return to_input([image if wanted is None else resize_image(image, wanted) for image in images], self.device)


def open_network(
    source: str,
    *,
    layers: Sequence[str] = (),
    device: str | torch.device = "cpu",
    seed: int = 0,
    square: bool = False,
) -> Extractor:
    """The network that ``source`` names, see the module; ``layers`` are regular expressions on whole names of modules.

    ``GapError`` for a name that no library has, weights that cannot be had, and layers that are not there.
    """
    library, colon, name = source.partition(":")
    if not colon or library not in LIBRARIES:
        if not Path(source).exists() and timm.is_model(source):
            raise GapError(f"no model folder {source}: for timm's network of that name write timm:{source}")
        model, labels, _ = load_model(Path(source))
        return extractor_of(model.to(device), layers, labels=labels, square=square)
    name, _, start = name.partition("@")
    start = start or START[0]
    if start not in START:
        raise GapError(f"network {source}: weights are @{', @'.join(START)}, not @{start}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = LIBRARIES[library](name, start)
    if start == "random":
        _wake(found.network)
    identity = f"{library}:{name}-{identity_of(found.network).rpartition('-')[2]}{SQUARE * square}"
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (found.mean, found.std))
    network = found.network.eval().to(device)

    def ask(images: Tensor) -> object:
        try:
            return network((images - mean) / std)
        except AssertionError as error:  # how networks of one image size refuse others
            raise GapError(
                f"{source} cannot take images of {tuple(images.shape[2:])}: {error}; set the size"
            ) from error

    patterns = layers or _default_layers(network, source)
    return Extractor(Probe(network, patterns, identity, ask=ask, channels_last=found.channels_last), found.size, square)


def extractor_of(
    model: SegModel,
    layers: Sequence[str] = (),
    device: str | torch.device | None = None,
    *,
    labels: LabelSpace | None = None,
    square: bool = False,
) -> Extractor:
    """A segmentation model in memory, moved to ``device`` when that is given; by default its encoder's blocks.

    Of a network that looks twice (HRDA) the encoder is asked once, on its context.
    """
    if device is not None:
        model = model.to(device)
    prefix = model.encoder_prefix
    inside = _default_layers(model.get_submodule(prefix.removesuffix(".")), model.config.name) if not layers else ()
    names = matching(model, layers or [re.escape(prefix) + name for name in inside])
    encoder_only = all(name.startswith(prefix) for name in names)
    identity = f"{model.config.name}-{identity_of(model).rpartition('-')[2]}{SQUARE * square}"
    ask = model.features if encoder_only else None
    stages = [(name, module) for name, module in model.named_modules() if isinstance(module, Stage)]
    last = frozenset(f"{name}.{part}" for name, module in stages for part in _inside(module))
    probe = Probe(model, [re.escape(n) for n in names], identity, ask=ask, channels_last=last)
    return Extractor(probe, None, square, model, labels)


def blocks_of(network: nn.Module, prefix: str = "") -> list[str]:
    """Names of the blocks: modules with parts that stand in a list of modules, the outermost of each."""
    found: list[str] = []
    listed = isinstance(network, LISTS)
    for name, child in network.named_children():
        path = f"{prefix}{name}"
        if not listed or isinstance(child, LISTS) or hasattr(child, "blocks"):  # a stage is a list with a frame
            found += blocks_of(child, f"{path}.")
        elif next(child.children(), None) is not None:
            found.append(path)
    return found


def _inside(network: nn.Module) -> frozenset[str]:
    # Convolutions and batch norms have their maps as usual, among channels-last ones too.
    usual = (nn.Conv2d, nn.BatchNorm2d)
    return frozenset(name for name, module in network.named_modules() if name and not isinstance(module, usual))


def _default_layers(network: nn.Module, source: str) -> list[str]:
    names = blocks_of(network)
    if not names:  # a plain chain of convolutions, or stages of a kind of their own
        info: Any = getattr(network, "feature_info", [])
        known = dict(network.named_modules())
        names = [item["module"] for item in getattr(info, "info", info) if item.get("module") in known]
    if not names:
        raise GapError(f"{source} has no blocks that could be found: name layers (regular expressions on its modules)")
    return [re.escape(name) for name in names]


@dataclass(frozen=True)
class _Found:
    network: nn.Module
    size: Size
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    channels_last: frozenset[str] = frozenset()


def _timm(name: str, start: str) -> _Found:
    if not timm.is_model(name):
        raise GapError(f"timm {timm.__version__} has no model {name!r} (timm.list_models lists them)")
    pretrained = start == "imagenet"
    state = torch.random.get_rng_state()

    def create(**settings: Any) -> nn.Module:
        torch.random.set_rng_state(state)
        with quick_when_offline():
            network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **settings)
        return network

    try:
        network: Any = _having(f"timm:{name}", lambda: create(dynamic_img_size=True))
    except TypeError:  # how those refuse the setting that take any size as they are
        network = _having(f"timm:{name}", create)
    if start == "lite0-package":
        try:
            load_state(network, lite0_state(network), what=start)
        except WeightsError as error:
            raise GapError(f"timm:{name}@{start}: {error}") from error
    told = network.pretrained_cfg
    last = _inside(network) if getattr(network, "output_fmt", "") == "NHWC" else frozenset()
    size = (told["input_size"][1], told["input_size"][2])
    return _Found(network, size, told["mean"], told["std"], last)


def _torchvision(name: str, start: str) -> _Found:
    models: Any = torchvision.models  # which does not export these two by its types
    if name not in models.list_models(models):
        raise GapError(f"torchvision has no classifier {name!r} (torchvision.models.list_models lists them)")
    if start == "lite0-package":
        raise GapError(f"torchvision:{name}: @lite0-package is for timm:tf_efficientnet_lite0")
    weights = "DEFAULT" if start == "imagenet" else None
    network = _having(f"torchvision:{name}", lambda: models.get_model(name, weights=weights))
    last = _inside(network) if isinstance(network, torchvision.models.SwinTransformer) else frozenset()
    return _Found(network, (SIDE, SIDE), channels_last=last)


LIBRARIES: dict[str, Callable[[str, str], _Found]] = {"timm": _timm, "torchvision": _torchvision}


def _wake(network: nn.Module) -> None:
    # The last norm of a residual block often starts at 0, and the block gives what it got.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


def _having(source: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except TypeError:
        raise
    except Exception as error:  # hub, network, cache and library have no common class
        first = (str(error).splitlines() or [""])[0]
        raise GapError(
            f"weights of {source} could not be had ({type(error).__name__}: {first}); without a network use "
            f"{source}@random, timm:tf_efficientnet_lite0@lite0-package, or a trained model's folder"
        ) from error


def _square(image: U8, size: Size) -> Tensor:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side].astype(np.float32)
    resized = [np.asarray(Image.fromarray(crop[..., c]).resize(size[::-1], Image.Resampling.BICUBIC)) for c in range(3)]
    return torch.from_numpy(np.stack(resized)).clamp_(0, 255).div_(255)
