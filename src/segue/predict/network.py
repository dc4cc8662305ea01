"""Models that answer together for one picture, asked exactly as scoring asks them (``segue.scoring.inference``)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segue.data.images import read_rgb, resize_image
from segue.errors import UserError
from segue.labels import U8
from segue.models.base import SegModel
from segue.models.classify import evaluating
from segue.scoring.inference import ask, together
from segue.scoring.protocols import NATIVE, Protocol, Size


@dataclass(frozen=True)
class Network:
    """One model, or several that answer by the mean of their probabilities, and how they are asked.

    ``kept``: train ids among which they choose (None: all). ``size`` (height, width): what they see; answers have the
    picture's resolution all the same. ``title`` stands above the drawn prediction.
    """

    models: tuple[SegModel, ...]
    title: str = "prediction"
    rule: Protocol = NATIVE
    kept: tuple[int, ...] | None = None
    size: Size | None = None

    def predict(self, image: U8 | str | Path) -> U8:
        """Train ids (H, W) uint8 of an RGB picture (H, W, 3) uint8 or an image file, on the models' own device.

        ``UserError`` for a file that cannot be read or an array of another kind.
        """
        picture = read_rgb(Path(image)) if isinstance(image, (str, Path)) else _checked(image)
        seen = picture if self.size is None else resize_image(picture, self.size)
        with ExitStack() as stack, torch.inference_mode():
            for model in self.models:
                stack.enter_context(evaluating(model))
            full = picture.shape[0], picture.shape[1]
            answers = [ask(model, [seen], self.rule, full, self.kept)[0] for model in self.models]
            return (together(answers) if len(answers) > 1 else answers[0]).ids()


def _checked(image: U8) -> U8:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image is an RGB array (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
    return np.ascontiguousarray(image)
