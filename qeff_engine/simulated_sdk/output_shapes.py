"""Dims of outputs that shape inference does not reach, found by running the model once on zeros."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from qeff_engine.simulated_sdk.refusal import model_refusal
from qeff_engine.simulated_sdk.shapes import StaticShape

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def complete(shape: StaticShape, *, model_path: Path, symbols: Mapping[str, int]) -> StaticShape:
    """``shape`` with all outputs known.

    Raises:
        Refusal: the model cannot be run.
    """
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    for symbol, size in symbols.items():
        settings.add_free_dimension_override_by_name(symbol, size)
    try:
        session = onnxruntime.InferenceSession(str(model_path), settings, providers=["CPUExecutionProvider"])
        feeds: dict[str, object] = {
            item.name: np.zeros(shape.inputs[item.name], _NUMPY[item.type]) for item in session.get_inputs()
        }
        names = [name for name, dims in shape.outputs.items() if dims is None]
        found = {name: array.shape for name, array in zip(names, session.run(names, feeds), strict=True)}
    except (RuntimeError, ValueError, KeyError) as error:
        raise model_refusal(f"The shape of an output cannot be inferred: {' '.join(str(error).split())}") from error
    return dataclasses.replace(shape, outputs=shape.outputs | found)
