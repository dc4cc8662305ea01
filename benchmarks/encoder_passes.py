"""Encoder passes of an iteration, and its time in our order of backward passes against the published one.

``python benchmarks/encoder_passes.py``: DAFormer and DIDA on Mix Transformers, B0 under SegFormer's head and B5 under
DAFormer's, one iteration's forward and backward passes without the optimiser's step. Ours differentiates the terms of a
graph together. The published order (here and nowhere else) differentiates each by itself: feature distance after the
source loss, DIDA's instance loss after the mixed one, each through a graph that was kept. Losses and data are the same.
A unit is one forward pass of one batch through the encoder; a backward pass counts 2. Writes
docs/results/encoder_passes.json.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter

import torch
from common import paired, record, verdict
from torch import Tensor, nn

from segue.data.batch import Batch, Meta
from segue.labels import load_space
from segue.methods.base import METHODS, Method, Terms
from segue.methods.teacher import Teacher
from segue.models.base import SegModel
from segue.models.build import build_model

BAR = 1.0
"""Our order takes at most this share of the time of the published one."""
SHAPES = {"b0": (2, 512, 512), "b5": (1, 256, 256)}
SMALL = (2, 64, 64)
"""Shape for counting, which depends on none."""
DECODERS = {"b0": "segformer", "b5": "daformer"}
LABELS = load_space("cityscapes19")
BANK: dict[str, object] = {"start": "random", "update": "none"}
PARTS: dict[str, dict[str, dict[str, object]]] = {
    "daformer": {"feature_distance": {}},
    "dida": {"feature_distance": {}, "instance_similarity": BANK},
    "dida_as_published": {"feature_distance": {}, "instance_similarity": {**BANK, "published": True}},
}
Backward = Callable[[Terms], None]


def together(terms: Terms) -> None:
    """Our order, the engine's: one backward pass a graph."""
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]


def apart(terms: Terms) -> None:
    """The published order: a backward pass for each term, the graph kept until the last."""
    losses = [term for term in terms.values() if term.requires_grad]
    for left, loss in reversed(list(enumerate(reversed(losses)))):
        loss.backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]


def iterate(method: Method, batches: dict[str, Batch], backward: Backward) -> None:
    """One iteration without the optimiser's step; what is dropped is the same every time."""
    torch.manual_seed(0)
    for terms in method.losses(batches, 0):
        backward(terms)
    method.zero_grad(set_to_none=True)


@contextmanager
def units(method: Method, images: int) -> Iterator[Counter[str]]:
    """Units that the encoders of student, teachers and frozen copies spend inside the block; ``images`` in a batch."""
    found: Counter[str] = Counter()
    teachers = {id(module.network) for module in method.modules() if isinstance(module, Teacher)}
    handles = []
    for network in [m for m in (*method.modules(), *method.references.values()) if isinstance(m, SegModel)]:
        name = "student" if network is method.model else "teacher" if id(network) in teachers else "frozen"
        encoder = network.get_submodule(network.encoder_prefix.removesuffix("."))
        handles.append(encoder.register_forward_hook(_counting(found, name, images)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _counting(found: Counter[str], name: str, images: int) -> Callable[[nn.Module, object, Sequence[Tensor]], None]:
    def seen(_: nn.Module, __: object, maps: Sequence[Tensor]) -> None:
        share = len(maps[0]) / images
        found[name] += share  # type: ignore[assignment]

        def returned(_: Tensor) -> None:
            found[name] += 2 * share  # type: ignore[assignment]

        if maps[0].requires_grad:  # every gradient that enters the encoder passes its first map
            maps[0].register_hook(returned)  # type: ignore[no-untyped-call]

    return seen


def batch(seed: int, shape: tuple[int, int, int]) -> Batch:
    """Random images, labels in blocks of 64 pixels."""
    g = torch.Generator().manual_seed(seed)
    images, height, width = shape
    label = torch.randint(0, len(LABELS), (images, height // 64, width // 64), generator=g)
    label = label.repeat_interleave(64, 1).repeat_interleave(64, 2)
    metas = tuple(Meta(i, str(i), "memory", (height, width)) for i in range(images))
    pixel = torch.ones_like(label, dtype=torch.bool)
    image = torch.rand(images, 3, height, width, generator=g)
    return Batch(image, label, pixel, None, torch.tensor(float(label.numel())), metas)


def build(variant: str, parts: dict[str, dict[str, object]]) -> Method:
    """Self-training with parts on a Mix Transformer."""
    torch.manual_seed(0)
    model = build_model({"name": DECODERS[variant], "variant": variant}, len(LABELS))
    cls = METHODS.get("self_training")
    method = cls(cls.Config.model_validate({"name": "self_training", "parts": parts}), model, LABELS, {})
    method.train()
    method.prepare({})
    return method


def pair(shape: tuple[int, int, int]) -> dict[str, Batch]:
    """A source and a target batch."""
    return {"source": batch(0, shape), "target": batch(1, shape)}


def counted(method: Method, order: Backward) -> dict[str, float]:
    """Units of one iteration, by network."""
    with units(method, SMALL[0]) as found:
        iterate(method, pair(SMALL), order)
    return dict(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--alternations", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--presets", nargs="+", choices=PARTS, default=["daformer", "dida"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for variant, preset in itertools.product(arguments.variants, arguments.presets):
        method, shape = build(variant, PARTS[preset]), SHAPES[variant]
        ours, published = (partial(iterate, method, pair(shape), order) for order in (together, apart))
        row = paired(ours, published, arguments.pairs, perf_counter, arguments.alternations)
        spent = [counted(method, order) for order in (together, apart)]
        rows.append({"preset": preset, "variant": variant, "shape": shape, "units": spent, **row})
        print(
            f"{preset} on {variant}, {shape}: {sum(spent[0].values()):.0f} encoder units against "
            f"{sum(spent[1].values()):.0f}, {row['a_ms']:.0f} ms against {row['b_ms']:.0f} ms, ratio "
            f"{row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]; at most {BAR}: "
            f"{verdict(row, BAR, at_most=True)}",
            flush=True,
        )
    record("encoder_passes", BAR, rows, clock="wall", decoders=DECODERS)
    return int(any(verdict(row, BAR, at_most=True) != "holds" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
