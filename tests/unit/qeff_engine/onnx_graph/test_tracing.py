import contextlib

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from torch import nn

from qeff_engine import exported
from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import binding, tracing

X = exported.Tensor(dtype="float32", shape=("batch_size", "seq_len", 4))


class Sums(nn.Module):
    def forward(self, x):
        return x.sum(1) + x.shape[1]


class Unrolled(nn.Module):
    """A loop over the sequence, which a trace unrolls."""

    def forward(self, x):
        return sum(x[:, number] for number in range(x.shape[1]))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def traced(module, *, out):
    model = tracing.trace_plain(module, inputs={"x": X}, outputs={"y": out}, fake_mode=contextlib.nullcontext())
    binding.add_imports(model)
    return model


def test_axes_have_the_names_that_were_asked_for_and_any_size():
    model = traced(Sums(), out=exported.Tensor(dtype="float32", shape=("batch_size", 4)))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    assert session.get_inputs()[0].shape == ["batch_size", "seq_len", 4]
    assert session.get_outputs()[0].shape == ["batch_size", 4]
    x = np.ones((3, 9, 4), dtype=np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.full((3, 4), 18))


def test_an_axis_that_the_code_fixes_is_unsupported():
    with pytest.raises(Unsupported, match="Axis 1 of x is fixed at 6"):
        traced(Unrolled(), out=exported.Tensor(dtype="float32", shape=("batch_size", 4)))


def test_code_that_branches_on_values_is_unsupported():
    with pytest.raises(Unsupported, match="Branches cannot be traced"):
        traced(Branches(), out=X)


def test_no_two_symbols_have_one_size():
    inputs = {"x": exported.Tensor(dtype="float32", shape=("batch_size", "seq_len", "ctx_len", "a", "b"))}
    for variant in (0, 1):
        sizes = tracing.sizes_of(inputs, variant=variant)
        assert len(set(sizes.values())) == 5
    first, second = (tracing.sizes_of(inputs, variant=variant) for variant in (0, 1))
    assert all(first[name] != second[name] for name in first)
