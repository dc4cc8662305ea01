"""Does an ONNX file answer as the network does, at sizes and batch sizes other than those it was written with?

The network is asked as everywhere (``SegModel.forward``, ``Output.upsample``), not through the module that was
exported, so a fault of that module shows too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segue.export.graph import Takes
from segue.export.session import ExportError, Size, open_session, pictures
from segue.models.base import SegModel
from segue.models.classify import to_input

TOLERANCE = 1e-4
"""Largest difference of a logit, times the largest logit where that is above 1 (float32 rounds relative to it)."""
DIFFERENT_SHARE = 1e-4
"""Largest share of pixels with another class, those aside whose two classes are equal within twice that rounding."""
BATCHES = (1, 2)


@dataclass(frozen=True)
class Check:
    """One batch of pictures.

    ``max_difference`` of a logit, None for a file without logits; ``scale``: the largest logit; ``equal_share`` of ids;
    ``different_share``: ids that differ by more than rounding.
    """

    batch: int
    size: Size
    max_difference: float | None
    scale: float
    equal_share: float
    different_share: float

    @property
    def holds(self) -> bool:
        """Whether both bounds hold (no bound holds for NaN)."""
        near = self.max_difference is None or self.max_difference <= _tolerance(self.scale)
        return near and self.different_share <= DIFFERENT_SHARE

    def line(self) -> str:
        """One sentence."""
        logits = "" if self.max_difference is None else f"largest logit difference {self.max_difference:.1e}, "
        height, width = self.size
        return f"{self.batch}x3x{height}x{width}: {logits}{100 * self.equal_share:.4f} % of ids equal"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)


def other_sizes(size: Size) -> tuple[Size, Size]:
    """An odd size near ``size`` (no multiple of anything that a network pads to), and about the smallest there is.

    What a network decides by the size of its maps shows where they have one row.
    """
    return (max(33, size[0] * 3 // 4) | 1, max(35, size[1] * 3 // 4) | 1), (32, 47)


def compare(path: Path, model: SegModel, takes: Takes, sizes: Sequence[Size]) -> list[Check]:
    """Run file and network (eval mode, on the CPU) on pictures of each size, one and two at a time.

    ``ExportError`` when onnxruntime cannot open or run the file.
    """
    run = _opened(path)
    found = []
    for (height, width), batch in product(sizes, BATCHES):
        images = pictures(batch, (height, width), seed=batch)
        image = to_input(images, torch.device("cpu"))
        with torch.inference_mode():
            output = model(image)
            wanted = output.upsample(output.to_classes()).numpy()
        given = np.stack(images) if takes == "uint8" else image.numpy()
        answer = run(given)
        found.append(_check(answer, wanted))
    return found


def _check(answer: dict[str, npt.NDArray[Any]], wanted: npt.NDArray[np.float32]) -> Check:
    batch, classes, height, width = wanted.shape
    size, scale = (height, width), float(np.abs(wanted).max())
    logits = answer.get("logits")
    ids = answer["ids"] if "ids" in answer else answer["logits"].argmax(1)
    if ids.shape != (batch, height, width):
        return Check(batch, size, None, scale, 0.0, 1.0)
    difference = None if logits is None else float(np.abs(logits - wanted).max())
    chosen = np.take_along_axis(wanted, np.minimum(ids, classes - 1)[:, None].astype(np.int64), 1)[:, 0]
    best = wanted.argmax(1)
    different = (ids != best) & (wanted.max(1) - chosen > 2 * _tolerance(scale))
    return Check(batch, size, difference, scale, float((ids == best).mean()), float(different.mean()))


def _tolerance(scale: float) -> float:
    return TOLERANCE * max(1.0, scale)


def _opened(path: Path) -> Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    try:
        session = open_session(path)
    except Exception as error:  # onnxruntime raises many kinds
        raise ExportError(f"onnxruntime cannot open the file as written: {str(error).strip()}") from error
    names = [output.name for output in session.get_outputs()]

    def run(image: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        try:
            return dict(zip(names, session.run(names, {"image": image}), strict=True))
        except Exception as error:
            reason = str(error).strip()
            raise ExportError(f"onnxruntime cannot run the file on an image {image.shape}: {reason}") from error

    return run
