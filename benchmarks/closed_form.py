"""How much faster the closed-form head is trained than a fine-tuned network, on the same images.

``python benchmarks/closed_form.py``: one class step of made-up images. The closed form sees each image once and solves;
fine-tuning sees each as often as ``--epochs`` says: 200, as CIL trains a step (Klingner et al., ITSC 2020). An epoch of
each is measured in interleaved pairs (CPU time of one thread, nothing is read or augmented), fine-tuning's is scaled by
its epochs, and the number of epochs from which on the bar holds is printed. A second part prints how far labels by old
predictions move the head, of whose sums all else is a function of the labelled pixels alone. Writes
docs/results/closed_form.json.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from common import cpu, paired, record, verdict

from segue.data.batch import Batch, Meta
from segue.labels import IGNORE, LabelSpace
from segue.methods.base import METHODS, Method
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.tasks import load_task

BAR = 10.0
TASK = load_task("cityscapes_5_6_8")
SIZE, IMAGES, PER_BATCH = (256, 512), 4, 2
NETWORKS: dict[str, dict[str, Any]] = {
    "bisenet, width 0.25": {"name": "bisenet", "width": 0.25},
    "deeplabv3plus, mobilenetv3": {"name": "deeplabv3plus", "encoder": "tf_mobilenetv3_small_minimal_100"},
}


class Images:
    """As many images as a stream tells a method."""

    length = IMAGES


def batches(step: int) -> list[Batch]:
    """Images of blobs, each in a colour of its class with noise; only the classes of ``step`` are labelled."""
    g, out = torch.Generator().manual_seed(step), []
    classes = len(TASK.space("all"))
    color = torch.rand(classes, 3, generator=torch.Generator().manual_seed(9))
    taught = torch.tensor([c in TASK.taught(step) for c in range(classes)])
    for first in range(0, IMAGES, PER_BATCH):
        blobs = torch.randint(0, classes, (PER_BATCH, SIZE[0] // 32, SIZE[1] // 32), generator=g)
        label = blobs.repeat_interleave(32, 1).repeat_interleave(32, 2)
        image = color[label].permute(0, 3, 1, 2) + 0.1 * torch.randn(PER_BATCH, 3, *SIZE, generator=g)
        label = torch.where(taught[label], label, IGNORE)
        meta = tuple(Meta(first + n, str(first + n), "made", SIZE) for n in range(PER_BATCH))
        count = (label != IGNORE).sum().float()
        pixel = torch.ones(PER_BATCH, *SIZE, dtype=torch.bool)
        out.append(Batch(image.clamp(0, 1).contiguous(), label, pixel, None, count, meta))
    return out


def method(name: str, model: SegModel, labels: LabelSpace, **settings: Any) -> Method:
    cls = METHODS.get(name)
    return cls(cls.Config.model_validate({"name": name, **settings}), model, labels, {}).train()


def closed_form(model: SegModel, given: Sequence[Batch]) -> None:
    """One pass and the solution."""
    own = method("closed_form", model, TASK.space(3))
    own.prepare({"source": Images()})
    for iteration, batch in enumerate(given):
        list(own.losses({"source": batch}, iteration))
    own.finish({})


def epoch(model: SegModel, given: Sequence[Batch]) -> None:
    """One pass of fine-tuning."""
    own = method("supervised", model, TASK.space(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=3e-4, fused=True)
    for iteration, batch in enumerate(given):
        for terms in own.losses({"source": batch}, iteration):
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def chain(model: SegModel, **settings: Any) -> Method:
    """Steps 1 to 3 over one trunk."""
    own = None
    for step in (1, 2, 3):
        labels, before = TASK.space(step), own
        model = copy.deepcopy(model)
        model.grow_head(len(labels) - model.num_classes, generator=torch.Generator().manual_seed(step))
        own = method("closed_form", model, labels, **settings)
        if before is not None:
            own.take_over(before.state_dict())
        for iteration, batch in enumerate(batches(step)):
            list(own.losses({"source": batch}, iteration))
        own.finish({})
    assert own is not None
    return own


def moved(a: Method, b: Method) -> dict[str, float]:
    """How far two heads of one trunk are from one another, and how often they decide otherwise."""
    first, second = (m.model.get_parameter(f"{m.path}.weight").detach() for m in (a, b))
    with torch.no_grad():
        answers = [[m.model.eval()(batch.image).logits.argmax(1) for batch in batches(3)] for m in (a, b)]
    differ = torch.stack([(x != y).float().mean() for x, y in zip(*answers, strict=True)]).mean()
    return {"head": round(float((first - second).norm() / first.norm()), 4), "decisions": round(float(differ), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, given = [], batches(3)
    for name, config in NETWORKS.items():
        torch.manual_seed(0)
        model = build_model(config, len(TASK.space(3)))
        tuned = copy.deepcopy(model)
        one = paired(lambda: epoch(tuned, given), lambda: closed_form(model, given), arguments.pairs, cpu)  # noqa: B023
        scaled = ("a_ms", "ratio_median", "ratio_p05", "ratio_p95")
        row = {k: round(v * arguments.epochs, 1) if k in scaled else v for k, v in one.items()}
        enough = math.ceil(BAR / one["ratio_p05"])
        rows.append({"network": name, **row, "epochs_for_bar": enough, "verdict": verdict(row, BAR, at_most=False)})
        print(
            f"{name}: fine-tuning {arguments.epochs} epochs {row['a_ms'] / 1e3:.0f} s, closed form "
            f"{row['b_ms'] / 1e3:.2f} s, ratio {row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]; at "
            f"least {BAR}: {rows[-1]['verdict']}, from {enough} epochs on",
            flush=True,
        )
    torch.manual_seed(0)
    trunk = build_model(NETWORKS["bisenet, width 0.25"], len(TASK.space(1)))
    plain = chain(trunk)
    order = {str(tau): moved(plain, chain(trunk, old_confidence=tau)) for tau in (0.5, 0.7, 0.9)}
    print("old predictions as labels, by confidence: relative change of the head, share of other decisions:", order)
    more = {"images": IMAGES, "size": SIZE, "epochs": arguments.epochs, "old_predictions": order, "clock": "CPU"}
    record("closed_form", BAR, rows, **more)
    return int(any(row["verdict"] != "holds" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
