"""What a CIL step, teacher included, costs beside a supervised step of the same batch, in interleaved pairs.

``python benchmarks/cil_step.py``: ERFNet with 11 outputs, six crops of 192x640 of which 60 % of the pixels are
unlabelled, a teacher of 5 classes; forward, backward and the Adam step, one thread, CPU time. A second row is the same
without the entropy weights, a third LwF. Writes docs/results/cil_step.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from common import cpu, paired, record, step, verdict

from segue.data.batch import Batch
from segue.labels import LabelSpace, load_space
from segue.methods.base import METHODS, Method
from segue.models.build import build_model

BAR = 1.45
SHAPE = (6, 3, 192, 640)
OLD, ALL = 5, 11
FULL = load_space("cityscapes19")
LABELS = LabelSpace("eleven", FULL.classes[:ALL], FULL.colors[:ALL], FULL.ids[:ALL])
ROWS: tuple[tuple[str, dict[str, float]], ...] = (("cil", {}), ("cil", {"entropy_weight": 0.0}), ("lwf", {}))


def method(name: str, settings: dict[str, float]) -> Method:
    """A method on a fresh network; every one of them starts from the same weights."""
    torch.manual_seed(0)
    teacher = build_model({"name": "erfnet"}, OLD).requires_grad_(False)
    model = build_model({"name": "erfnet"}, ALL)
    cls = METHODS.get(name)
    config = cls.Config.model_validate({"name": name, **settings})
    return cls(config, model, LABELS, {"teacher": teacher}).train()


def batch() -> Batch:
    """Random images; labels of the new classes in blocks."""
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(OLD, ALL, (SHAPE[0], SHAPE[2] // 16, SHAPE[3] // 16), generator=g)
    blocks[torch.rand(blocks.shape, generator=g) < 0.6] = 255
    label = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    count = (label != 255).sum().float()
    given = Batch(torch.rand(SHAPE, generator=g), label, torch.ones_like(label, dtype=torch.bool), None, count, ())
    return replace(given, counts=given.tally())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--alternations", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batches = {"source": batch()}
    plain = step(method("supervised", {}), batches)
    rows = []
    for name, settings in ROWS:
        row = paired(step(method(name, settings), batches), plain, arguments.pairs, cpu, arguments.alternations)
        rows.append({"method": name, **settings, **row})
        print(
            f"{name} {settings or ''}: step {row['a_ms']:.0f} ms against {row['b_ms']:.0f} ms, ratio "
            f"{row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]; at most {BAR}: "
            f"{verdict(row, BAR, at_most=True)}",
            flush=True,
        )
    record("cil_step", BAR, rows, shape=SHAPE, old_classes=OLD, classes=ALL, clock="CPU")
    return int(any(verdict(row, BAR, at_most=True) != "holds" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
