import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qeff_engine import exported
from qeff_engine.onnx_graph import tracing

ROW = exported.Tensor(dtype="float32", shape=("batch_size",))


class Inverse(nn.Module):
    def forward(self, x):
        return torch.erfinv(x)


class ScaledByAConstant(nn.Module):
    def forward(self, x):
        return x * torch.erfinv(torch.tensor(0.9))


def traced(module):
    fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    return tracing.trace_plain(module, inputs={"x": ROW}, outputs={"y": ROW}, fake_mode=fake_mode)


def test_erfinv_in_the_middle_and_in_the_tails():
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(traced(Inverse())).SerializeToString())
    x = np.array([-0.99999, -0.95, -0.5, 0, 0.1, 0.9, 0.999], dtype="float32")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], torch.erfinv(torch.tensor(x)).numpy(), rtol=3e-7)


def test_erfinv_of_a_constant_leaves_a_constant():
    assert [node.op_type for node in traced(ScaledByAConstant()).graph] == ["Mul"]
