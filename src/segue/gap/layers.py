"""Activations of named layers of any network, through forward hooks, one batch of images at a time.

Every spatial position of a map counts, those of a margin that the network pads on too. A pass ends at the last layer
that is asked for. A network's layers are named as in ``named_modules``.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from segue.gap.errors import GapError
from segue.models.classify import evaluating

See = Callable[[str, Tensor], None]
Ask = Callable[[Tensor], object]


class _Enough(Exception):
    pass


class Probe:
    """A network and those of its modules whose outputs are looked at.

    ``patterns``: regular expressions that match whole names (``backbone\\.layer[1-4]\\.\\d+``). ``identity`` tells
    networks apart: the class, and a hash of all parameters and buffers unless the caller gives a name. ``ask`` takes
    the images (default: the network). ``channels_last``: layers whose outputs with 4 axes are (N,H,W,C). ``whole``:
    every pass goes on to its end.
    """

    def __init__(
        self,
        network: nn.Module,
        patterns: Sequence[str],
        identity: str | None = None,
        *,
        ask: Ask | None = None,
        channels_last: Container[str] = (),
        whole: bool = False,
    ) -> None:
        """``GapError`` when a pattern is no regular expression or matches no module."""
        self.network = network
        self.names = matching(network, patterns)
        self.identity = identity or identity_of(network)
        self.grids: dict[str, tuple[int, int] | None] = {}
        """Rows and columns of every layer's positions in the latest pass, None for tokens and vectors."""
        self.ask: Ask = ask or network
        self.channels_last = channels_last
        self._whole = whole
        self._looked = False

    def run(self, batches: Iterable[Tensor], see: See) -> int:
        """Call ``see(layer, values)`` for every batch (N,3,H,W) and layer; the number of images.

        ``values`` (N,C,P): C neurons at P positions. Images are what the network takes: 0..1 for a model of ours, else
        normalised by the caller. Eval mode, no gradient. ``GapError`` for a layer that does not run exactly once in a
        pass, whose output is no tensor of 2 (N,C), 3 (N,P,C) or 4 (N,C,H,W) axes or not finite, and without images.
        """
        number = 0
        for images in batches:
            self._pass(images, see)
            number += len(images)
        if not number:
            raise GapError("no images: a fingerprint needs at least one")
        return number

    def _pass(self, images: Tensor, see: See) -> None:
        seen: set[str] = set()

        def looking(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(_: nn.Module, __: object, output: object) -> None:
                if name in seen:
                    raise GapError(f"layer {name} runs more than once in a pass: name a module that runs once")
                seen.add(name)
                values, self.grids[name] = _values(name, output, len(images), name in self.channels_last)
                see(name, values)
                # The first pass goes on to its end, to meet a layer that runs again.
                if self._looked and not self._whole and len(seen) == len(self.names):
                    raise _Enough

            return hook

        parameter = next(self.network.parameters(), None)
        with ExitStack() as stack:
            for name in self.names:
                stack.callback(self.network.get_submodule(name).register_forward_hook(looking(name)).remove)
            stack.enter_context(torch.inference_mode())
            stack.enter_context(evaluating(self.network))
            with suppress(_Enough):
                self.ask(images if parameter is None else images.to(parameter.device))
        if missing := [name for name in self.names if name not in seen]:
            raise GapError(f"layer {missing[0]} does not run in a pass: name another")
        self._looked = True


def _values(name: str, output: object, images: int, channels_last: bool) -> tuple[Tensor, tuple[int, int] | None]:
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4) or len(output) != images:
        told = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise GapError(f"the output of layer {name} has no neurons by image ({told}): name a layer inside it")
    if output.device.type == "mps":
        output = output.cpu()  # which has no float64
    if not torch.isfinite(torch.stack(torch.aminmax(output))).all():
        raise GapError(f"layer {name} gives values that are not finite: are these weights whole?")
    if output.ndim == 4:
        if channels_last:
            output = output.permute(0, 3, 1, 2)
        return output.flatten(2), (output.shape[2], output.shape[3])
    return (output.transpose(1, 2) if output.ndim == 3 else output.unsqueeze(2)), None


def matching(network: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of a network's modules that match, in its order; ``GapError`` for a pattern that matches none."""
    modules = [name for name, _ in network.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        try:
            own = [name for name in modules if re.fullmatch(pattern, name)]
        except re.error as error:
            raise GapError(f"layers: {pattern!r} is no regular expression: {error}") from error
        if not own:
            raise GapError(f"no layer of {type(network).__name__} matches {pattern!r}: {_some(pattern, modules)}")
        found.update(own)
    if not found:
        raise GapError("no layers are named: give at least one pattern")
    return tuple(name for name in modules if name in found)


def _some(pattern: str, modules: list[str]) -> str:
    return f"it has {len(modules)}, such as {', '.join(difflib.get_close_matches(pattern, modules, n=5, cutoff=0))}"


def identity_of(network: nn.Module) -> str:
    """Class of a network and a hash of its names, parameters and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{type(network).__name__}-{digest.hexdigest()}"
