"""A small network, pictures and a host for tests of the part ``instance_similarity``, in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.memory import SPACE, method
from segue.data.batch import Batch, Meta
from segue.methods.parts.base import View
from segue.models.base import ModelConfig, Output, SegModel

CLASSES, WIDTH, SIZE, PADDED = len(SPACE), 5, (40, 36), (40, 40)
DOUBLE = {"dtype": torch.float64}


class Net(SegModel):
    """Stride 4 on a padded image, an embedding that a ReLU makes; no norms, so that batches do not mix."""

    multiple = 8

    def __init__(self, seed: int = 0, relu: bool = True) -> None:
        super().__init__(ModelConfig(name="net"), CLASSES)
        torch.manual_seed(seed)
        self.relu = relu
        self.backbone = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def decode(self, x: Tensor) -> Output:
        embedding = self.backbone(F.avg_pool2d(x, 4))
        embedding = embedding.relu() if self.relu else embedding
        return Output(3 * self.classifier(embedding), embedding)

    def classifiers(self) -> dict[str, nn.Module]:
        return {"classifier": self.classifier}


def picture(seed: int, size: int = 2, block: int = 9) -> Batch:
    """Blocks of few classes, so that every image lacks some; 255 among them, and a corner without picture."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.tensor([0, 1, 2, 3, 5, 6, 255])
    label = ids[torch.randint(0, 7, (size, 5, 4), generator=g)].repeat_interleave(block, 1).repeat_interleave(block, 2)
    pixel = torch.ones(size, *SIZE, dtype=torch.bool)
    pixel[0, :7, :5] = False
    return Batch(
        image=torch.rand(size, 3, *SIZE, generator=g, **DOUBLE),
        label=label[:, : SIZE[0], : SIZE[1]],
        pixel=pixel,
        weight=None,
        label_count=torch.tensor(500.0, **DOUBLE),
        meta=tuple(Meta(size * seed + i, str(i), "memory", SIZE) for i in range(size)),
    )


def host(net: SegModel | None = None, **settings: Any) -> Any:
    """``self_training`` that trusts everything by its confidence, with the part, in float64."""
    parts = {"instance_similarity": {"size": 11, "every_iterations": 2, **settings}}
    built = method("self_training", net or Net(), threshold=0.3, parts=parts)
    return built.double()


def part(built: Any) -> Any:
    return built.parts["instance_similarity"]


def step(built: Any, iteration: int, *micro: tuple[Batch, Batch]) -> list[tuple[View, Tensor]]:
    """One iteration without an optimiser; the mixed views, and the part's terms on them."""
    seen: list[tuple[View, Tensor]] = []
    own = part(built)
    real = type(own).terms

    def terms(view: View, given: Any) -> Any:
        found = real(own, view, given)
        if found is not None:
            seen.append((view, found["instance_similarity"]))
        return found

    own.terms = terms
    for source, target in micro or ((picture(iteration), picture(100 + iteration)),):
        for _ in built.losses({"source": source, "target": target}, iteration):
            pass
    del own.terms
    built.after_step(iteration)
    return seen
