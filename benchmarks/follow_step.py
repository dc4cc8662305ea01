"""What following a stream costs: a step beside a supervised one, and a reservoir's answer beside the plain network's.

``python benchmarks/follow_step.py``: BiSeNet on STDC813, four crops of 256x512, one thread, CPU time, in interleaved
pairs. Steps: ``weak_labels`` with the source model's distillation; without it in a reservoir, where norm layers alone
are trained. Answers in eval mode, other domains being known: four images of the source, and four of which each is of
another domain. Writes docs/results/follow_step.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import cpu, paired, record, step
from torch import Tensor

from segue.data.batch import Batch
from segue.labels import load_space
from segue.methods.base import METHODS, Method
from segue.models.anchor import blank_anchor
from segue.models.base import Output, SegModel
from segue.models.build import build_model
from segue.models.reservoir import Reservoir
from segue.ops.losses import CriterionConfig

SHAPE = (4, 3, 256, 512)
LABELS = load_space("cityscapes19")
PLAIN: dict[str, Any] = {"name": "bisenet", "backbone": "stdc813"}


def network(slots: bool) -> SegModel:
    """A network, plain or with slots; from the same weights."""
    torch.manual_seed(0)
    model = build_model({"name": "reservoir", "base": PLAIN} if slots else PLAIN, len(LABELS))
    if isinstance(model, Reservoir):
        model.adopt(blank_anchor(model.base, LABELS))
    return model


def method(name: str, settings: dict[str, Any], slots: bool = False) -> Method:
    """A method on its network, the source model beside it."""
    cls = METHODS.get(name)
    config = cls.Config.model_validate({"name": name, "criterion": CriterionConfig(), **settings})
    return cls(config, network(slots), LABELS, {"source": network(False).requires_grad_(False)}).train()


def batch() -> Batch:
    """Random images and labels in blocks, a third of them without."""
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, len(LABELS), (SHAPE[0], SHAPE[2] // 16, SHAPE[3] // 16), generator=g)
    blocks[torch.rand(blocks.shape, generator=g) < 0.3] = 255
    label = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    count = (label != 255).sum().float()
    given = Batch(torch.rand(SHAPE, generator=g), label, torch.ones_like(label, dtype=torch.bool), None, count, ())
    return replace(given, counts=given.tally())


def answer(model: SegModel, images: Tensor) -> Callable[[], Tensor]:
    """The logits of images in eval mode."""
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode():
            output: Output = model(images)
            return output.logits

    return run


def reservoir(images: Tensor, domains: int) -> Reservoir:
    """Slots whose centres are the styles of four images, which then are of ``domains`` different ones."""
    model = network(True)
    assert isinstance(model, Reservoir)
    for image in images:
        model.radii[0] = 1e-9  # nothing is the source's yet
        model.meet([image.unsqueeze(0)])
    model.radii[0] = 1e9 if domains == 1 else 1e-9
    used = len(set(model.slots_of(images).tolist()))
    assert used == domains, used
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    given = batch()
    supervised = step(method("supervised", {}), {"source": given})
    images = given.image * torch.tensor([0.25, 0.5, 0.75, 1.0]).view(4, 1, 1, 1)
    plain = answer(network(False), images)
    rows = {
        "step with distillation": (step(method("weak_labels", {}), {"target": given}), supervised),
        "step in a reservoir": (
            step(method("weak_labels", {"distillation": 0}, slots=True), {"target": given}),
            supervised,
        ),
        "answer, all of the source": (answer(reservoir(images, 1), images), plain),
        "answer, four domains": (answer(reservoir(images, 4), images), plain),
    }
    found = []
    for what, (ours, base) in rows.items():
        row = paired(ours, base, pairs, cpu)
        found.append({"what": what, **row})
        print(f"{what}: {row['a_ms']:.0f} ms against {row['b_ms']:.0f} ms, ratio {row['ratio_median']}", flush=True)
    record("follow_step", 0.0, found, shape=SHAPE, clock="CPU")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
