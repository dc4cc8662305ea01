"""What the Fourier exchange and the entropy term add to a training step, in interleaved pairs.

``python benchmarks/fourier_step.py [--device cuda]``: BiSeNet-STDC813, two source and two target images of 512x1024,
forward, backward and the SGD step. Each beta's step without the entropy term is held against the same step with the
exchange switched off; the entropy term (a second forward and backward pass, on target images) has a line of its own.
Writes docs/results/fourier_step_<device>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import cpu, paired, record, verdict, wall

from segue.data.batch import Batch
from segue.labels import load_space
from segue.methods.base import METHODS, Method
from segue.models.build import build_model

BAR = 1.05
BETAS = (0.01, 0.05, 0.09)
SHAPE = (2, 3, 512, 1024)
LABELS = load_space("cityscapes19")


def method(name: str, device: torch.device, **settings: object) -> Method:
    """A method on a fresh network; every one of them starts from the same weights."""
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "backbone": "stdc813"}, len(LABELS))
    cls = METHODS.get(name)
    config = cls.Config.model_validate({"name": name, **settings})
    return cls(config, model, LABELS, {}).to(device).to(memory_format=torch.channels_last).train()


def step(given: Method, batches: dict[str, Batch], device: torch.device) -> Callable[[], None]:
    """One optimiser step of a method, with everything that the device was given done at its end."""
    optimizer = torch.optim.SGD(given.model.parameters(), lr=1e-4, momentum=0.9, fused=True)

    def run() -> None:
        for terms in given.losses(batches, 0):
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def batch(seed: int, device: torch.device) -> Batch:
    """Random images and labels."""
    g = torch.Generator().manual_seed(seed)
    size = (SHAPE[0], *SHAPE[-2:])
    label = torch.randint(0, len(LABELS), size, generator=g)
    image = torch.rand(SHAPE, generator=g).contiguous(memory_format=torch.channels_last)
    count = torch.tensor(float(label.numel()))
    return Batch(image, label, torch.ones(size, dtype=torch.bool), None, count, ()).to(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--alternations", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    clock = cpu if device.type == "cpu" else wall
    batches = {"source": batch(0, device), "target": batch(1, device)}
    plain = step(method("supervised", device), batches, device)
    rows = []
    for entropy, beta in [*((0.0, beta) for beta in BETAS), (0.005, BETAS[0])]:
        fda = step(method("fda", device, beta=beta, entropy_weight=entropy), batches, device)
        row = paired(fda, plain, arguments.pairs, clock, arguments.alternations)
        rows.append({"beta": beta, "entropy_weight": entropy, **row})
        held = "the entropy term, no bar" if entropy else f"at most {BAR}: {verdict(row, BAR, at_most=True)}"
        print(
            f"beta {beta}, entropy weight {entropy}: step {row['a_ms']:.0f} ms against {row['b_ms']:.0f} ms, ratio "
            f"{row['ratio_median']} [{row['ratio_p05']}, {row['ratio_p95']}]; {held}",
            flush=True,
        )
    record(f"fourier_step_{device.type}", BAR, rows, shape=SHAPE, clock="CPU" if clock is cpu else "wall")
    return int(any(verdict(row, BAR, at_most=True) != "holds" for row in rows if not row["entropy_weight"]))


if __name__ == "__main__":
    raise SystemExit(main())
