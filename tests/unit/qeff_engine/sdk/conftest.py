"""A small program without states, compiled by the simulated SDK."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import compiler_cli
from tests.unit.qeff_engine.simulated_sdk import graphs


@pytest.fixture
def program(tmp_path, simulated_sdk_root):
    """The directory of ``y = x`` over two rows, for 4 cores."""
    side = (TensorProto.FLOAT, ["batch", 64])
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    weights = {"weight": np.eye(64, dtype=np.float32)}
    path = graphs.save(graphs.model([node], inputs={"x": side}, outputs={"y": side}, weights=weights), tmp_path)
    command = graphs.command(path, "-onnx-define-symbol=batch,2", "-aic-num-cores=4")
    assert compiler_cli.main(command, root=simulated_sdk_root) == 0
    return tmp_path / "qpc"
