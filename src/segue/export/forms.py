"""The ways to run a network that ``segue bench latency`` compares. Each takes the same image and leaves ids.

A form is prepared once (compiled, exported, quantised) and then called with a float image (N,3,H,W) on the device; it
returns train ids (N,H,W) uint8 on the device. ``eager`` answers as ``segue predict`` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from segue.data.dataset import Dataset
from segue.errors import UserError
from segue.export.graph import Deployed
from segue.export.quantise import PICTURES, quantise
from segue.export.session import CPU, CUDA, Size, open_session, require_onnx
from segue.export.write import Export, save, to_graph
from segue.labels import U8
from segue.models.base import SegModel
from segue.models.classify import classify

Form = Literal["eager", "channels_last", "compiled", "fp16", "bf16", "onnx", "int8"]
FORMS: tuple[Form, ...] = get_args(Form)
Call = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """A form that cannot run here; the text says why."""


@dataclass
class Workshop:
    """What the forms are made of: ``model`` in eval mode on ``device``, a folder for files, pictures to calibrate with.

    ``seen`` (height, width) is the size that pictures are calibrated at and graphs are traced with.
    """

    model: SegModel
    device: torch.device
    folder: Path
    seen: Size
    calibration: Dataset | None = None
    calibrated_with: int = field(default=0, init=False)

    def make(self, form: Form) -> Call:
        """Prepare a form; ``Unavailable`` says why it cannot run here."""
        makers: dict[Form, Callable[[], Call]] = {
            "eager": lambda: _plain(self.model),
            "channels_last": lambda: _plain(_channels_last(self.model)),
            "compiled": lambda: _compiled(self.model),
            "fp16": lambda: self._half(torch.float16),
            "bf16": lambda: self._half(torch.bfloat16),
            "onnx": lambda: self._onnx(self.float_file()),
            "int8": lambda: self._onnx(self.int8_file()),
        }
        return makers[form]()

    def float_file(self) -> Path:
        """The network as ONNX with logits and ids; ``Unavailable`` when that cannot be."""
        path = self.folder / "float.onnx"
        if not path.exists():
            try:
                require_onnx()
                save(to_graph(copy.deepcopy(self.model).cpu(), Export(gives="both", size=self.seen)), path)
            except UserError as error:
                raise Unavailable(str(error)) from error
        return path

    def int8_file(self) -> Path:
        """The same in int8; ``Unavailable`` without pictures and on a GPU."""
        path = self.folder / "int8.onnx"
        if self.calibration is None:
            raise Unavailable("needs pictures to calibrate with: give --data or --images")
        if self.device.type != "cpu":
            raise Unavailable("onnxruntime computes int8 on the CPU: use --device cpu")
        if not path.exists():
            source = self.float_file()
            chosen = _spread(len(self.calibration), PICTURES)
            quantise(source, path, [partial(self.calibration.read_image, index) for index in chosen], self.seen)
            self.calibrated_with = len(chosen)
        return path

    def _half(self, dtype: torch.dtype) -> Call:
        if self.device.type != "cuda":
            raise Unavailable("measured on CUDA alone")
        call = _plain(_channels_last(self.model).to(dtype))
        return lambda image: call(image.to(dtype))

    def _onnx(self, path: Path) -> Call:
        import onnxruntime

        if self.device.type == "cpu":
            session = open_session(path, provider=CPU)
            return lambda image: torch.from_numpy(session.run(["ids"], {"image": image.numpy()})[0])
        if self.device.type != "cuda" or CUDA not in onnxruntime.get_available_providers():
            raise Unavailable(f"this onnxruntime does not run on {self.device.type} (for CUDA: onnxruntime-gpu)")
        return _bound(path, self.device)


def _plain(model: SegModel) -> Call:
    def call(image: Tensor) -> Tensor:
        return classify(model(image), (image.shape[-2], image.shape[-1]))

    return call


def _channels_last(model: SegModel) -> SegModel:
    twin: SegModel = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return twin


def _compiled(model: SegModel) -> Call:
    run: Call = torch.compile(Deployed(model, gives="ids"), dynamic=False)
    return run


def _bound(path: Path, device: torch.device) -> Call:
    """A session on the GPU whose input and output stay there."""
    import numpy as np

    session = open_session(path, provider=CUDA)

    def call(image: Tensor) -> Tensor:
        ids = torch.empty((image.shape[0], *image.shape[-2:]), dtype=torch.uint8, device=image.device)
        image = image.contiguous()
        binding, number = session.io_binding(), device.index or 0
        for bind, name, tensor, kind in (
            (binding.bind_input, "image", image, np.float32),
            (binding.bind_output, "ids", ids, np.uint8),
        ):
            bind(name, "cuda", number, kind, tuple(tensor.shape), tensor.data_ptr())
        torch.cuda.synchronize(image.device)  # the session has a stream of its own
        session.run_with_iobinding(binding)
        return ids

    return call


def _spread(total: int, count: int) -> Sequence[int]:
    count = min(count, total)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


def first_picture(data: Dataset | None) -> U8 | None:
    """A picture of the data, the first, or None without data."""
    return None if data is None or not len(data) else data.read_image(0)
