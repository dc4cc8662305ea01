"""What a part is: loss terms that any host method takes in, where the host shows it what it needs.

A host computes graphs (source, mixed, target) and shows each to its parts as a :class:`View`; a part returns terms that
join that graph's ``yield``, so that both share one forward and one backward pass. What needs a forward pass of its own
comes as further graphs after the host's. ``self_training`` with parts in a recipe is DAFormer, MIC or DIDA (see
``segue list presets``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError
from torch import Tensor, nn

from segue.data.batch import Batch
from segue.errors import UserError
from segue.models.base import Output, SegModel
from segue.registry import Registry
from segue.settings import Settings, explain

if TYPE_CHECKING:
    from segue.methods.base import Method, Terms

Batches = Mapping[str, Batch]


@dataclass(frozen=True)
class View:
    """One graph of a host: images, what they are taught here, and the student's output, which has the graph.

    ``name``: ``source`` (true labels), ``target`` (none), ``mixed`` (``batch`` holds the teacher's labels under pasted
    source). Of ``mixed`` only: ``pasted`` (N,H,W) bool, the pixels that came from source, and ``teacher``, the output
    on the whole target images, without a graph.
    """

    name: str
    batch: Batch
    output: Output
    iteration: int
    pasted: Tensor | None = None
    teacher: Output | None = None


class PartConfig(Settings):
    """Base of the settings of a part."""


class Part(nn.Module):
    """Base of all parts; what it owns (teachers, banks) is saved with the host. ``host`` is lent to every call.

    ``views``: those that it needs; ``streams``: batches that it needs. ``__init__`` may narrow both by its settings.
    """

    Config: ClassVar[type[PartConfig]] = PartConfig
    views: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()

    def __init__(self, config: PartConfig, host: Method) -> None:
        super().__init__()
        self.config = config

    def networks(self) -> dict[str, nn.Module]:
        """Networks of the part that have an optimiser, by name."""
        return {}

    def prepare(self, host: Method, streams: Mapping[str, object]) -> None:
        """Once before iteration 0, not on resume."""

    def calibrate(self, probability: Tensor, output: Output, host: Method) -> Tensor:
        """The teacher's probabilities (N,C,H,W) before they become labels; ``output`` is what they came from."""
        return probability

    def terms(self, view: View, host: Method) -> Terms | None:
        """Terms that join the graph of a view; None for views that are not the part's own."""
        return None

    def graphs(self, batches: Batches, host: Method, iteration: int) -> Iterator[Terms]:
        """Graphs of the part's own; ``batches`` are the host's streams, and ``pseudo`` where its views name it: the
        target with the teacher's labels and weights."""
        yield from ()

    def after_step(self, host: Method, iteration: int) -> None:
        """After the optimisers' step."""


PARTS: Registry[Part] = Registry("part", "segue.methods.parts")


class Parts(nn.ModuleDict):
    """The parts of one host, in the recipe's order."""

    def __init__(self, settings: Mapping[str, Mapping[str, Any] | None], host: Method) -> None:
        super().__init__()
        for name, config in part_configs(settings).items():
            part = PARTS.get(name)(config, host)
            _check(name, part, host)
            self[name] = part

    def networks(self) -> dict[str, nn.Module]:
        """Networks of all parts that have an optimiser."""
        return {name: network for part in self._parts() for name, network in part.networks().items()}

    def prepare(self, host: Method, streams: Mapping[str, object]) -> None:
        """See :class:`Part`."""
        for part in self._parts():
            part.prepare(host, streams)

    def calibrate(self, probability: Tensor, output: Output, host: Method) -> Tensor:
        """See :class:`Part`; one part after the other."""
        for part in self._parts():
            probability = part.calibrate(probability, output, host)
        return probability

    def join(self, terms: Terms, view: View, host: Method) -> Terms:
        """``terms`` with those of every part on this view."""
        for part in self._parts():
            more = part.terms(view, host)
            if more is not None:
                terms.update(more)
                terms.logs.update(more.logs)
        return terms

    def graphs(self, batches: Batches, host: Method, iteration: int) -> Iterator[Terms]:
        """See :class:`Part`."""
        for part in self._parts():
            yield from part.graphs(batches, host, iteration)

    def after_step(self, host: Method, iteration: int) -> None:
        """See :class:`Part`."""
        for part in self._parts():
            part.after_step(host, iteration)

    def _parts(self) -> Iterator[Part]:
        return iter(self.values())  # type: ignore[arg-type]


def reference(host: Method, name: str, part: str) -> SegModel:
    """The network that a part compares with; ``UserError`` when the stage has no such reference."""
    if name not in host.references:
        known = ", ".join(host.references) or "none"
        raise UserError(f"part {part!r} compares with reference {name!r}; known: {known}")
    return host.references[name]


def part_configs(settings: Mapping[str, Mapping[str, Any] | None], where: str = "method") -> dict[str, PartConfig]:
    """Checked settings of every part that is not switched off (null); ``UserError`` with every fault."""
    found, faults = {}, []
    for name, given in settings.items():
        cls = PARTS.get(name).Config
        if given is None:
            continue
        try:
            found[name] = cls.model_validate(given)
        except ValidationError as error:
            faults += explain(error, cls, f"{where}.parts.{name}")
    if faults:
        raise UserError("\n".join(faults))
    return found


def _check(name: str, part: Part, host: Method) -> None:
    if not host.views:
        raise UserError(f"method {host.config.name!r} takes no parts: take another, or set method.parts.{name}=null")
    for kind, needed, offered in (("view", part.views, host.views), ("stream", part.streams, host.needs)):
        if lacking := [n for n in needed if n not in offered]:
            raise UserError(
                f"part {name!r} needs the {kind} {' and '.join(lacking)}, which method {host.config.name!r} does not "
                f"have (it has {', '.join(offered) or 'none'}); take another method, or switch the part off: "
                f"method.parts.{name}=null"
            )
