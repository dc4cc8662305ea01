"""Segue keeps a semantic-segmentation model good when its data changes.

``segue.run(recipe)``, ``segue.load(path).predict(image)``, ``segue.evaluate(model, data)``. Importing this package
imports no torch; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.api import Predictor, check_predictions, evaluate, load, predict_files, run

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "check_predictions", "evaluate", "load", "predict_files", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("segue.api"), name)
    raise AttributeError(f"module 'segue' has no attribute {name!r}")
