"""Models for use outside: one ONNX file that needs nothing of ours, checked against torch, and what it costs to run.

Everything here that touches ONNX needs the extra ``onnx``.
"""

from __future__ import annotations

from segue.export.session import ExportError
from segue.export.write import Export, export

__all__ = ["Export", "ExportError", "export"]
