"""What a published checkpoint layout is: how its files are recognised, and which of our names its tensors get.

A layout is one file in this folder: a :class:`Layout` registered with ``@LAYOUTS.register("name")``. It only renames,
drops, slices and rescales tensors; it builds no network, so nothing here knows ``segue.models``. Whether the result is
complete is checked by whoever loads it (``segue.models.weights``, ``segue.convert``).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from segue.errors import UserError
from segue.labels import load_space
from segue.registry import Registry

State = Mapping[str, Tensor]
Rules = Sequence[tuple[str, str]]
Triple = tuple[float, float, float]
Part = Literal["model", "encoder", "discriminator"]


class ForeignError(UserError):
    """A foreign checkpoint that cannot be read or recognised; the message names the way out."""


@dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint in our terms.

    ``state`` has our names: those of the whole model, of the encoder without its prefix, or of the discriminator.
    ``renamed`` says for every kept key of the file what it is called here (also when that is the same), ``dropped`` why
    a key is left out; a key in neither is ``unexpected``. ``layout`` and ``unexpected`` are filled in by
    :func:`recognise`.
    """

    part: Part
    state: State
    renamed: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings for ``build_model`` (``name`` and what the file's shapes decide, without ``weights``), of an encoder
    those of a network it belongs to; of a discriminator empty."""
    num_classes: int | None = None
    """Outputs of the classifiers in ``state``; of a discriminator its input channels."""
    classes: tuple[str, ...] | None = None
    """Names of these outputs in the order of the file, as ``cityscapes19`` spells them; None: not published."""
    mean: Triple | None = None
    std: Triple | None = None
    """Normalisation of an RGB image in 0..1 that the network was trained with; None: that of the model built here.
    Other channel orders and scales are folded into the first convolution by the layout."""
    notes: tuple[str, ...] = ()
    """What the user must know: licence of the published weights, outputs that were cut off."""
    layout: str = ""
    unexpected: tuple[str, ...] = ()


class Layout(ABC):
    """One published key layout; the first line of the docstring says whose files these are."""

    @abstractmethod
    def fits(self, state: State) -> bool:
        """Whether key names say that a file (without wrappers and ``module.``) has this layout, complete or not."""

    @abstractmethod
    def read(self, state: State) -> Foreign:
        """Our names for a file that fits; ``ForeignError`` when its values contradict the layout."""


LAYOUTS: Registry[Layout] = Registry("layout", "segue.foreign")


def fitting(state: State) -> list[str]:
    """Names of the layouts that fit a table of tensors."""
    return [name for name in LAYOUTS.names() if LAYOUTS.get(name)().fits(state)]


def recognise(state: State, name: str | None = None) -> Foreign:
    """Read a table of tensors by the one layout that fits it, or by the named one.

    ``ForeignError`` lists the layouts tried when none or several fit.
    """
    if name is not None:
        return _read(name, state)
    found = fitting(state)
    if len(found) == 1:
        return _read(found[0], state)
    some = ", ".join(list(state)[:3])
    if found:
        raise ForeignError(f"several layouts fit these keys ({some}, …): {', '.join(found)}; choose one with --layout")
    raise ForeignError(f"no known layout has these keys ({len(state)}: {some}, …); tried: {', '.join(LAYOUTS.names())}")


def _read(name: str, state: State) -> Foreign:
    foreign = LAYOUTS.get(name)().read(state)
    unexpected = tuple(k for k in state if k not in foreign.renamed and k not in foreign.dropped)
    return replace(foreign, layout=name, unexpected=unexpected)


def outputs(state: State, *names: str, dim: int = 0) -> int:
    """Size of a dimension of the first named tensor that the file has; ``ForeignError`` when it has none of them."""
    tensor = next((state[name] for name in names if name in state), None)
    if tensor is None or tensor.ndim <= dim:
        raise ForeignError(f"the number of outputs cannot be told: the file has no usable {' or '.join(names)}")
    return tensor.shape[dim]


def cityscapes_order(outputs: int) -> tuple[str, ...] | None:
    """Class names of 19 outputs in the train-id order of Cityscapes; None for any other number."""
    classes = load_space("cityscapes19").classes
    return classes if outputs == len(classes) else None


def translate(
    state: State, rename: Rules, drop: Rules = ()
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors under new names, {file key: new name} and {file key: reason}.

    ``rename`` holds (regular expression of the whole key, replacement with groups), ``drop`` (expression, reason); the
    first that matches wins, ``drop`` before ``rename``. Keys that no rule matches are in none of the three.
    """
    kept: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key, tensor in state.items():
        if reason := next((reason for pattern, reason in drop if re.fullmatch(pattern, key)), None):
            dropped[key] = reason
            continue
        matches = ((re.fullmatch(pattern, key), new) for pattern, new in rename)
        ours = next((match.expand(new) for match, new in matches if match), None)
        if ours is None:
            continue
        if ours in kept:
            other = next(k for k, v in renamed.items() if v == ours)
            raise ForeignError(f"{key} and {other} both stand for {ours}: the file mixes two networks")
        kept[ours] = tensor
        renamed[key] = ours
    return kept, renamed, dropped
