import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from qeff_engine.onnx_graph import functions


def run(function, inputs, **attributes):
    """The function's output for inputs of any shape, in ONNX Runtime."""
    node = helper.make_node(function.name, list(function.input), ["result"], domain=function.domain, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
    ]
    first = next(iter(inputs.values()))
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, [None] * first.ndim)
    graph = helper.make_graph([node], "test", values, [result])
    imports = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid(function.domain, 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]


def test_scatter_writes_at_slots_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    past_BHCD = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    new_BHSD = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    slots_BS = np.array([[3, 4], [0, -1]], dtype=np.int32)
    expected = past_BHCD.copy()
    expected[0, :, 3:5] = new_BHSD[0]
    expected[1, :, 0] = new_BHSD[1, :, 0]
    found = run(functions.ctx_scatter(), {"past": past_BHCD, "slots": slots_BS, "new": new_BHSD})
    np.testing.assert_array_equal(found, expected)


def test_padding_alone_writes_nothing_not_even_in_the_last_row():
    past_BHCD = np.ones((1, 1, 3, 2), dtype=np.float32)
    slots_BS = np.full((1, 3), -1, dtype=np.int32)
    found = run(functions.ctx_scatter(), {"past": past_BHCD, "slots": slots_BS, "new": 0 * past_BHCD})
    np.testing.assert_array_equal(found, past_BHCD)


def test_norm_is_the_root_mean_square_norm():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    weight = np.linspace(-1, 2, 8, dtype=np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * weight
    found = run(functions.rms_norm(), {"x": x, "weight": weight}, epsilon=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
