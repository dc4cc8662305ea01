"""Do the ONNX files of both STDC networks answer as the networks do, at two sizes and two batch sizes?

``python benchmarks/export.py`` builds each at width 1 for 19 classes, moves its norm statistics by a few training-mode
passes, scales its classifier so that logits are as large as those of a trained network (about 20; float32 rounds
relative to them), exports it as ``segue export`` does, and writes docs/results/export.json. The bar is absolute: 1e-4
on every logit and 99.99 % of equal ids.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime
import torch
from common import record, wall

from segue.export import Export, export
from segue.export.session import pictures
from segue.labels import load_space
from segue.models.base import SegModel
from segue.models.build import build_model
from segue.models.classify import to_input

BAR = 1e-4
EQUAL_SHARE = 0.9999
LARGEST_LOGIT = 20.0
SIZE = (512, 1024)


def network(backbone: str) -> SegModel:
    """Random weights, norms that are no identity, logits up to ``LARGEST_LOGIT``."""
    torch.manual_seed(0)
    model = build_model({"name": "bisenet", "backbone": backbone, "width": 1}, 19)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
        for _ in range(4):
            model(torch.rand(2, 3, 128, 256))
        model.eval()
        classifier = next(iter(model.classifiers().values()))
        seen = to_input(pictures(1, SIZE), torch.device("cpu"))
        classifier.get_parameter("weight").mul_(LARGEST_LOGIT / model(seen).logits.abs().max())
    return model


def main() -> int:
    rows, holds = [], True
    with tempfile.TemporaryDirectory() as folder:
        for backbone in ("stdc813", "stdc1446"):
            path, start = Path(folder) / f"{backbone}.onnx", wall()
            found = export(network(backbone), load_space("cityscapes19"), path, Export(size=SIZE))
            row = {
                "backbone": backbone,
                "file_mb": round(path.stat().st_size / 1e6, 1),
                "export_s": round(wall() - start),
            }
            for check in found["parity"]:
                row_holds = check["max_difference"] <= BAR and check["equal_share"] >= EQUAL_SHARE
                holds = holds and row_holds
                print(backbone, check, "holds" if row_holds else "MISSED")
                rows.append(row | check)
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    record("export", BAR, rows, interval="none: largest difference", equal_share=EQUAL_SHARE, versions=versions)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
