"""ONNX Runtime sessions, the pictures they are tried on, and an ONNX file behind the interface that scoring asks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import UserError
from segue.labels import U8
from segue.models.base import ModelConfig, Output, SegModel

if TYPE_CHECKING:
    import onnxruntime

Size = tuple[int, int]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NEEDED = ("onnx", "onnxruntime", "onnxscript")
SILENT = 4  # onnxruntime's log level: what goes wrong is raised too


class ExportError(UserError):
    """A model that cannot be written as a graph, or a graph that does not answer as the model does."""


def require_onnx() -> None:
    """``UserError`` with the command that installs what is missing of the extra ``onnx``."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs the package(s) {', '.join(missing)}; pip install 'segue[onnx]'")


def open_session(path: Path, threads: int | None = None, provider: str = CPU) -> onnxruntime.InferenceSession:
    """A session on as many threads as torch uses, or ``threads``; its workers sleep between two runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else they slow down what runs next
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def pictures(number: int, size: Size, seed: int = 0) -> list[U8]:
    """RGB pictures (H,W,3) uint8 with areas, edges and grain, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((number, 3, 8, 8), generator=generator)
    areas = F.interpolate(coarse, size, mode="bicubic", align_corners=False)
    grain = torch.rand((number, 3, *size), generator=generator) - 0.5
    values = (255 * (areas + 0.2 * grain)).clamp_(0, 255).to(torch.uint8)
    return list(np.ascontiguousarray(values.permute(0, 2, 3, 1).numpy()))


class OnnxNetwork(SegModel):
    """A file of ours that takes ``float`` and gives ``logits``, for ``segue.scoring``; it runs on the CPU."""

    def __init__(self, path: Path, num_classes: int) -> None:
        super().__init__(ModelConfig(name="onnx"), num_classes)
        self.session = open_session(path)

    def forward(self, image: Tensor) -> Output:
        """(N,3,H,W) float 0..1 to logits at the same size."""
        (found,) = self.session.run(["logits"], {"image": image.numpy()})
        logits = torch.from_numpy(found)
        size = image.shape[-2], image.shape[-1]
        return Output(logits, logits, size=size, padded=size, num_classes=self.num_classes)

    def decode(self, x: Tensor) -> Output:
        """Not there: the file holds the whole way from picture to logits."""
        raise NotImplementedError

    def classifiers(self) -> Mapping[str, nn.Module]:
        """None that could be grown."""
        return {}
