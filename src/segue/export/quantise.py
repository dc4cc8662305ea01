"""An ONNX file of ours in int8: static quantisation, ranges from pictures (onnxruntime, QDQ form).

What the network computes is quantised; normalisation before it, resizing and the choice of the class after it stay
float. Weights have a scale for every output channel. Knobs that matter: which pictures, and how many
(``PICTURES``); take them from the domain that the model will see.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segue.data.images import resize_image
from segue.export.session import CPU, Size
from segue.labels import U8
from segue.models.classify import to_input

PICTURES = 32
QUANTISED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat"),
    *("Relu", "Clip", "AveragePool", "GlobalAveragePool", "MaxPool"),
)


def quantise(source: Path, target: Path, images: Sequence[Callable[[], U8]], size: Size) -> None:
    """Write ``source`` (a file that takes ``float``) as int8 to ``target``.

    ``images`` read pictures that set the ranges, RGB (H,W,3) uint8, seen at ``size``; there is at least one.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter(images)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            read = next(self.left, None)
            if read is None:
                return None
            return {"image": to_input([resize_image(read(), size)], torch.device("cpu")).numpy()}

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to preprocess, which the exporter has done
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_providers=[CPU],
            **_options(source),
        )
    finally:
        logging.disable(before)


def _options(source: Path) -> dict[str, Any]:
    """Nodes of normalisation stay float: a range for raw pixels and one for shapes serve nobody."""
    import onnx

    graph = onnx.load_model(str(source)).graph
    first = next(number for number, node in enumerate(graph.node) if node.op_type == "Conv")
    last = max(number for number, node in enumerate(graph.node) if node.op_type in ("Conv", "ConvTranspose"))
    outside = [*graph.node[:first], *graph.node[last + 1 :]]
    return {"nodes_to_exclude": [node.name for node in outside]}
